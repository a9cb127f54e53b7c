//! `sinew doctor`: what is right and wrong with this machine and this installation.

use serde::Serialize;

use crate::args::DoctorArgs;
use crate::cmd::block_on;
use crate::doctor::{self, Check, Verdict};
use crate::exit::Exit;
use crate::output;

#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    checks: &'a [Check],
}

pub fn run(args: DoctorArgs) -> anyhow::Result<Exit> {
    crate::serve::install_tls();
    let json = args.json.json;
    let checks = block_on(async { Ok(doctor::examine(args).await) })?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    if json {
        output::json(&Answer { ok: !failed, checks: &checks })?;
    } else {
        for check in &checks {
            for line in check.lines() {
                output::line(&line)?;
            }
        }
        let warned = checks.iter().filter(|check| check.verdict == Verdict::Warn).count();
        let verdict = match (failed, warned) {
            (true, _) => {
                "doctor: something must be mended before sessions can be served".to_owned()
            }
            (false, 0) => "doctor: ok".to_owned(),
            (false, count) => format!("doctor: ok, with {count} warnings"),
        };
        output::line(&verdict)?;
    }
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}
