//! Exit codes, decided in one place.

use std::process::ExitCode;

use control_server::client::ApiError;

/// What the process ends with. `sinew exec` and `sinew shell` end with the program's own code
/// instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    Failed,
    /// The command line or the configuration is wrong; nothing was done.
    Usage,
    /// `bench --strict`: a goal was missed.
    GoalMissed,
    /// No `sinew serve` answers for this data directory.
    NotRunning,
    /// `sinew exec` or `sinew shell` itself failed; every smaller code is the program's.
    ExecFailed,
    /// The code of a program in a sandbox.
    Program(u8),
}

/// The documented codes: number, name, meaning.
pub const CODES: &[(Exit, &str)] = &[
    (Exit::Ok, "it worked"),
    (Exit::Failed, "it failed; the message says why"),
    (Exit::Usage, "the command line or the configuration is wrong; nothing was done"),
    (Exit::GoalMissed, "`bench --strict`: a goal was missed"),
    (Exit::NotRunning, "no `sinew serve` answers for this data directory"),
    (
        Exit::ExecFailed,
        "`sinew exec` or `sinew shell` itself failed; other codes are those of the program",
    ),
];

/// A mistake of whoever wrote the command line or the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The program in the sandbox could not be run, or was lost.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ProgramLost {
    pub what: &'static str,
    #[source]
    pub error: anyhow::Error,
}

impl Exit {
    pub fn number(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::GoalMissed => 3,
            Exit::NotRunning => 4,
            Exit::ExecFailed => 125,
            Exit::Program(code) => code,
        }
    }

    pub fn code(self) -> ExitCode {
        ExitCode::from(self.number())
    }
}

pub fn of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if cause.is::<ProgramLost>() {
            return Exit::ExecFailed;
        }
        if let Some(ApiError::NotRunning { .. }) = cause.downcast_ref() {
            return Exit::NotRunning;
        }
        if cause.is::<UsageError>() || cause.is::<base_config::ConfigErrors>() {
            return Exit::Usage;
        }
    }
    Exit::Failed
}

/// Help and version are successes that clap reports as errors.
pub fn of_clap(error: &clap::Error) -> ExitCode {
    // Printing fails when nobody listens any more; the code still tells.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.code() } else { Exit::Ok.code() }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_cause_decides_the_code_however_deep_it_is() {
        let not_running = ApiError::NotRunning { data: "/d".to_owned() };
        let error = Err::<(), _>(not_running).context("list sessions").unwrap_err();
        assert_eq!(of(&error), Exit::NotRunning);
        let usage = Err::<(), _>(UsageError("no".to_owned())).context("read").unwrap_err();
        assert_eq!(of(&usage), Exit::Usage);
        assert_eq!(of(&anyhow::anyhow!("other")), Exit::Failed);
        let exec = ProgramLost { what: "exec", error: anyhow::anyhow!("lost") };
        assert_eq!(of(&anyhow::Error::new(exec)), Exit::ExecFailed);
    }

    #[test]
    fn codes_are_distinct() {
        let mut numbers: Vec<u8> = CODES.iter().map(|(exit, _)| exit.number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), CODES.len());
    }
}
