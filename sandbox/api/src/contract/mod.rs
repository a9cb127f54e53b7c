//! The suite that every tier's driver passes.
//!
//! A driver's own test says how to get at it ([`Place`]) and calls
//! [`driver_contract!`](crate::driver_contract), which makes one test of each promise. A new
//! promise is added to that list and to nothing else.

mod fixture;
mod leftovers;
mod life;
mod limits;
mod names;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base_types::ProfileName;

use crate::{Limits, SandboxDriver};

pub use leftovers::*;
pub use life::*;
pub use limits::*;
pub use names::*;

/// One installation of the driver. It begins without sandboxes and ends with the test.
#[async_trait]
pub trait Place: Send + Sync {
    async fn driver(&self) -> Arc<dyn SandboxDriver>;

    /// An image with a POSIX shell and the basic tools.
    fn image(&self) -> &str;

    /// A profile with the limits below.
    fn profile(&self) -> ProfileName;

    /// Small ones, so that they are soon reached: at most 256 MiB of memory and disk.
    fn limits(&self) -> Limits;

    /// Sockets of the host that no guest may reach.
    fn host_sockets(&self) -> Vec<PathBuf>;

    /// What the installation occupies on the machine now: mounts, control groups, namespaces,
    /// devices, processes, one line each. Two readings are compared.
    async fn footprint(&self) -> BTreeSet<String>;
}

/// One test of each promise: `driver_contract!(place().await)`, where the expression makes an
/// `Option` of a new [`Place`]; without one (the machine lacks something, which the expression has
/// said) the test is skipped.
#[macro_export]
macro_rules! driver_contract {
    ($place:expr) => {
        $crate::driver_contract!(@tests $place,
            a_new_sandbox_starts_from_the_image,
            creating_again_finds_the_running_sandbox,
            a_lost_volume_is_not_replaced,
            an_older_epoch_is_refused,
            a_later_epoch_ends_the_earlier_one,
            files_outlive_an_epoch_and_processes_do_not,
            a_stopped_sandbox_cannot_be_reached,
            stopping_and_destroying_may_be_repeated,
            what_is_told_of_sandboxes_is_true,
            an_end_is_reported_to_all_who_wait,
            many_start_at_once,
            memory_has_a_limit,
            processes_have_a_limit,
            the_disk_has_a_limit,
            one_sandbox_sees_nothing_of_another,
            no_socket_of_the_host_is_in_reach,
            only_ids_are_taken,
            what_does_not_exist_is_named,
            nothing_is_left_behind,
        );
    };
    (@tests $place:expr, $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = $place {
                    $crate::contract::$name(&place).await;
                }
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
            include_str!("leftovers.rs"),
            include_str!("life.rs"),
            include_str!("limits.rs"),
            include_str!("names.rs"),
        ];
        let promises = files.iter().flat_map(|file| file.lines()).filter_map(|line| {
            line.strip_prefix("pub async fn ").and_then(|rest| rest.split('(').next())
        });
        let missing: Vec<_> =
            promises.filter(|name| !list.contains(&format!("            {name},"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
