//! The key file of an environment, read again when the brain refuses the key.

use std::path::PathBuf;
use std::sync::Arc;

use base_types::Chain;
use brain_http::HttpBrain;
use control_session::KeySource;

pub struct KeyFile {
    pub path: PathBuf,
    pub brain: Arc<HttpBrain>,
}

impl KeySource for KeyFile {
    /// A file that only root can read was read before `serve` gave up root: it cannot be again.
    fn renew(&self) -> Result<bool, String> {
        let key = base_config::read_key_file(&self.path)
            .map_err(|error| format!("key file {} {error}", self.path.display()))?;
        self.brain.replace_key(&key).map_err(|error| Chain(&error).to_string())
    }
}
