//! Profiles of the configuration as the session driver asks for them.

use std::sync::Arc;

use base_config::{Config, Tier};
use base_types::ProfileName;
use control_session::{Chosen, Profiles, SessionFacts, Shape};
use tools_api::ToolLimits;

pub struct ConfiguredProfiles(pub Arc<Config>);

impl Profiles for ConfiguredProfiles {
    fn choose(&self, facts: &SessionFacts<'_>) -> Chosen {
        let chosen = self.0.choose(&base_config::SessionFacts {
            environment: facts.environment,
            agent: facts.agent,
            tenant: facts.tenant,
            metadata: facts.metadata,
        });
        Chosen { profile: chosen.profile.name.clone(), by: chosen.by }
    }

    fn shape(&self, name: &ProfileName) -> Option<Shape> {
        let profile = self.0.profiles.iter().find(|profile| profile.name == *name)?;
        Some(Shape {
            tier: match profile.tier {
                Tier::Container => sandbox_api::Tier::Container,
            },
            image: profile.image.clone(),
            tools: ToolLimits {
                bash: profile.bash_timeout,
                bash_max: profile.bash_timeout_max,
                other: profile.tool_timeout,
            },
            keep_running: profile.keep_running,
            retain: profile.retain,
        })
    }
}
