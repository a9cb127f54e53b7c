//! The suite that every store passes.
//!
//! A store's own test says how to open it ([`Place`]) and calls
//! [`store_contract!`](crate::store_contract), which makes one test of each promise. A new promise
//! is added to that list and to nothing else.

mod calls;
mod concurrency;
mod fixture;
mod log;
mod nodes;
mod prune;
mod sessions;
mod sizes;
mod work;

use std::sync::Arc;

use async_trait::async_trait;

use crate::Store;

pub use calls::*;
pub use concurrency::*;
pub use log::*;
pub use nodes::*;
pub use prune::*;
pub use sessions::*;
pub use sizes::*;
pub use work::*;

/// Where one store lives. It begins empty.
#[async_trait]
pub trait Place: Send + Sync {
    /// Opens the store. A second call opens the same content again, as a restart does, with
    /// nothing of the first one in memory.
    async fn open(&self) -> Arc<dyn Store>;

    /// Spoils a row behind the store's back.
    async fn damage(&self, damage: Damage);
}

/// What [`Place::damage`] spoils, in every row of the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    SessionPhase,
    SessionIdentity,
    WorkPhase,
    CallState,
    CallDocument,
    LogEvent,
}

/// One test of each promise: `store_contract!(SqlitePlace::new())`, where the expression makes
/// `Some` new [`Place`], or `None` where this machine cannot, having said why.
#[macro_export]
macro_rules! store_contract {
    ($place:expr) => {
        $crate::store_contract!(@tests $place,
            a_call_moves_only_forward,
            a_result_is_kept_byte_for_byte,
            a_tool_use_is_received_once,
            a_call_of_another_session_is_out_of_reach,
            calls_come_in_the_order_they_were_received,
            open_calls_are_those_not_settled,
            a_batch_is_all_or_nothing,
            racing_owners_leave_one_writer,
            racing_batches_lose_nothing,
            racing_batches_have_their_own_answers,
            readers_see_what_was_acknowledged,
            the_log_tells_what_happened_in_order,
            the_log_is_read_in_pages,
            the_log_bounds_inputs,
            a_living_node_keeps_its_sessions,
            a_node_that_is_gone_lets_go,
            a_node_without_a_place_lets_go,
            racing_nodes_leave_one_holder,
            items_of_a_node_that_is_gone_end,
            pruning_forgets_ended_sessions,
            pruning_keeps_what_is_unfinished,
            pruning_shortens_the_log_of_live_sessions,
            a_claim_makes_the_session,
            a_session_has_one_environment,
            a_new_owner_shuts_the_old_one_out,
            an_unknown_session_is_named,
            tenant_and_profile_are_chosen_once,
            a_sandbox_never_goes_back_an_epoch,
            phases_are_recorded_with_their_time,
            sessions_are_listed_by_activity,
            a_walk_over_owned_sessions_misses_none,
            what_cannot_be_read_is_said,
            times_are_the_stores_own,
            everything_survives_a_restart,
            a_large_body_comes_back_whole,
            pages_end_by_size,
            any_text_comes_back_the_same,
            numbers_keep_their_range,
            what_not_every_database_holds_is_refused_or_mended,
            a_work_item_moves_only_forward,
            a_claim_can_be_repeated,
            an_item_offered_again_starts_over,
            an_item_belongs_to_one_session,
            a_beat_without_answer_stays_open,
            an_ended_item_keeps_no_token,
            a_restart_finds_the_nodes_open_work,
        );
    };
    (@tests $place:expr, $($name:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                let Some(place) = $place else { return };
                $crate::contract::$name(&place).await;
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    /// A promise that is written and not in the list would never be tried.
    #[test]
    fn every_promise_is_in_the_list() {
        let list = include_str!("mod.rs");
        let files = [
            include_str!("calls.rs"),
            include_str!("concurrency.rs"),
            include_str!("log.rs"),
            include_str!("nodes.rs"),
            include_str!("prune.rs"),
            include_str!("sessions.rs"),
            include_str!("sizes.rs"),
            include_str!("work.rs"),
        ];
        let promises = files.iter().flat_map(|file| {
            file.lines().filter_map(|line| line.strip_prefix("pub async fn ")?.split_once('('))
        });
        let mut count = 0;
        for (promise, _) in promises {
            assert!(list.contains(&format!("            {promise},\n")), "{promise}");
            count += 1;
        }
        assert!(count > 30, "the promises were not found");
    }
}
