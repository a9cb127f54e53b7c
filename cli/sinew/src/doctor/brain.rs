//! Whether the brain can be reached and takes the key, without claiming any work.

use base_config::{Config, Environment};
use base_types::Chain;
use base_types::SessionId;
use brain_api::{Brain, BrainErrorKind};
use brain_http::{HttpBrain, HttpBrainConfig, Timeouts};

use super::Check;

/// A session that does not exist: asking for it takes the key's way through the brain and changes
/// nothing. "Not found" is the good answer.
const NO_SESSION: &str = "sesn_doctor_asks_whether_the_key_works";

pub async fn examine(config: &Config, environment: &Environment) -> Check {
    let name = "brain";
    let at = format!("{} at {}", environment.id, environment.base_url);
    let extra_ca_pem = match environment.ca_file.as_ref().map(std::fs::read).transpose() {
        Ok(pem) => pem,
        Err(error) => {
            return Check::fail(
                name,
                format!("{at}: read the CA file: {error}"),
                "correct `ca_file`",
            );
        }
    };
    let limits = &config.limits;
    let brain = HttpBrain::new(HttpBrainConfig {
        environment: environment.id.clone(),
        key: environment.key.clone(),
        base_url: environment.base_url.clone(),
        worker_id: "sinew-doctor".to_owned(),
        allow_plain_http: environment.allow_plain_http,
        extra_ca_pem,
        reclaim: None,
        timeouts: Timeouts {
            connect: limits.brain_connect,
            // A person waits for the answer.
            request: std::time::Duration::from_secs(10),
            ..Timeouts::default()
        },
    });
    let brain = match brain {
        Ok(brain) => brain,
        Err(error) => {
            return Check::fail(name, Chain(&error).to_string(), "correct the environment");
        }
    };
    match brain.session(&SessionId::from(NO_SESSION), None).retrieve().await {
        Ok(_) => Check::ok(name, format!("{at} takes the key")),
        Err(error) => match error.kind {
            BrainErrorKind::NotFound => Check::ok(name, format!("{at} takes the key")),
            BrainErrorKind::Unauthorized { status } => Check::fail(
                name,
                format!("{at} refuses the key ({status})"),
                "make a new environment key at the brain and put it where the configuration says",
            ),
            _ => Check::fail(
                name,
                format!("{at}: {}", Chain(&error)),
                "check `base_url`, the network, a proxy and, for a private brain, `ca_file`",
            ),
        },
    }
}
