//! The checks. Each says what it found, what that means and how to mend it; none changes anything
//! that stays.

mod brain;
mod installation;
mod kernel;
mod limits;
mod store;
mod tools;

use serde::Serialize;

use crate::args::DoctorArgs;
use crate::output::printable;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at; stable, for scripts.
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found, and what it means where it is not as it should be.
    pub found: String,
    /// What to do, unless all is well.
    pub fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Everything, in the order in which one mends things.
pub async fn examine(args: DoctorArgs) -> Vec<Check> {
    let mut checks = kernel::examine();
    checks.extend(limits::examine());
    checks.extend(tools::examine());
    checks.extend(installation::examine(&args).await);
    checks
}

impl Check {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), fix: None }
    }

    pub fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    pub fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), fix: Some(fix.into()) }
    }

    pub fn lines(&self) -> Vec<String> {
        let mark = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let mut lines = vec![format!("{mark}  {:<16} {}", self.name, printable(&self.found))];
        if let Some(fix) = &self.fix {
            lines.push(format!("      {:<16} fix: {}", "", printable(fix)));
        }
        lines
    }
}
