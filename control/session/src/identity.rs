//! Who a session is: fetched from the brain, never from a guest. Tenant and profile are chosen at
//! the first fetch and kept; a session that later claims another tenant is refused.

use std::sync::Arc;
use std::time::Duration;

use base_types::{EnvironmentId, TenantId};
use brain_api::{BrainSession, SessionInfo};
use store_api::Identity;

use crate::message::{Inside, Outbox};
use crate::parts::{Profiles, SessionFacts, Tenancy};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Fetches the session until the brain answers for good, one way or the other.
pub async fn fetch(session: Arc<dyn BrainSession>, outbox: Outbox) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let fetched = tokio::select! {
            fetched = session.retrieve() => fetched,
            () = outbox.stopping().cancelled() => return,
        };
        match fetched {
            Err(error) if error.is_transient() => {
                let wait = error.retry_after().unwrap_or(backoff);
                if outbox.pause(wait).await.is_err() {
                    return;
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
            fetched => {
                let _ = outbox.tell(Inside::Identity(fetched)).await;
                return;
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "the session was of tenant `{known}` and is now reported as of `{reported}`: it is not \
         served under another tenant"
    )]
    TenantChanged { known: TenantId, reported: TenantId },
}

/// The identity to record: what the brain says now, with tenant and profile of the first time.
pub fn identify(
    info: SessionInfo,
    known: Option<&Identity>,
    environment: &EnvironmentId,
    tenancy: &Tenancy,
    profiles: &dyn Profiles,
) -> Result<Identity, IdentityError> {
    let tenant = tenancy.tenant_of(&info.metadata);
    let (profile, chosen_by) = match known {
        Some(known) if known.tenant != tenant => {
            let known = known.tenant.clone();
            return Err(IdentityError::TenantChanged { known, reported: tenant });
        }
        Some(known) => (known.profile.clone(), known.chosen_by.clone()),
        None => {
            let chosen = profiles.choose(&SessionFacts {
                environment,
                tenant: &tenant,
                agent: info.agent.as_ref(),
                metadata: &info.metadata,
            });
            (chosen.profile, chosen.by)
        }
    };
    Ok(Identity {
        tenant,
        profile,
        chosen_by,
        agent: info.agent,
        agent_version: info.agent_version,
        agent_name: info.agent_name,
        title: info.title,
        metadata: info.metadata,
        unserved: info.unserved,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base_types::{ProfileName, SessionId};
    use brain_api::SessionStatus;

    use super::*;
    use crate::parts::{Chosen, Shape};

    struct ByTier;

    impl Profiles for ByTier {
        fn choose(&self, facts: &SessionFacts<'_>) -> Chosen {
            let profile = facts.metadata.get("size").map_or("default", String::as_str);
            Chosen { profile: ProfileName::from(profile), by: "a test rule".to_owned() }
        }

        fn shape(&self, _: &ProfileName) -> Option<Shape> {
            None
        }
    }

    fn info(metadata: &[(&str, &str)]) -> SessionInfo {
        SessionInfo {
            id: SessionId::from("sesn_1"),
            status: SessionStatus::Running,
            agent: None,
            agent_version: None,
            agent_name: Some("big".into()),
            title: Some("size=big".into()),
            metadata: metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            unserved: vec![],
        }
    }

    fn identify_with(
        metadata: &[(&str, &str)],
        known: Option<&Identity>,
    ) -> Result<Identity, IdentityError> {
        let tenancy =
            Tenancy { tenant: TenantId::from("acme"), metadata_key: Some("tenant".into()) };
        identify(info(metadata), known, &EnvironmentId::from("env_1"), &tenancy, &ByTier)
    }

    #[test]
    fn the_profile_of_the_first_time_stays() {
        let first = identify_with(&[("size", "big")], None).unwrap();
        assert_eq!(first.profile.as_str(), "big");
        let later = identify_with(&[("size", "small")], Some(&first)).unwrap();
        assert_eq!(later.profile.as_str(), "big");
        assert_eq!(later.metadata, BTreeMap::from([("size".into(), "small".into())]));
    }

    #[test]
    fn another_tenant_is_refused_later() {
        let first = identify_with(&[("tenant", "a")], None).unwrap();
        assert_eq!(first.tenant.as_str(), "a");
        assert!(identify_with(&[("tenant", "b")], Some(&first)).is_err());
        assert!(identify_with(&[], Some(&first)).is_err(), "the default is another tenant too");
        assert_eq!(identify_with(&[("tenant", "")], None).unwrap().tenant.as_str(), "acme");
    }
}
