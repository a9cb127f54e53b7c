//! Log lines go to stderr; stdout belongs to what was asked for.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// The variable that says what is logged, as in `SINEW_LOG=debug` or `SINEW_LOG=brain_http=trace`.
pub const LOG_VARIABLE: &str = "SINEW_LOG";

/// Call once, before anything logs. `default` is the level where [`LOG_VARIABLE`] says nothing.
pub fn init(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call leaves the first one's choice in place.
    let _ = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}
