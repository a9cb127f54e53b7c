//! What is asked of systemd, and of a launcher and a `serve` that run.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use base_config::Overrides;
use rustix::fs::FlockOperation;
use sandbox_api::{SandboxDriver, Vitality};
use sandbox_image::ImageStore;
use sandbox_launcher::wire::Leave;
use sandbox_launcher::{LauncherDriver, Layout};

use super::plan::{Change, Plan, is_there};
use super::target::{LAUNCHER_UNIT, SANDBOXES_UNIT, SERVE_UNIT, Target};
use crate::cmd::block_on;
use crate::exit::UsageError;
use crate::installation::{Installation, sources};
use crate::output;

/// What an error quotes of a unit's log.
const LOG_LINES: &str = "15";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceChange {
    Reload,
    Enable(&'static str),
    Disable(&'static str),
    Start(&'static str),
    Restart(&'static str),
    Stop(&'static str),
    /// Fails where sandboxes run and may not be ended.
    CheckSandboxes {
        may_end: bool,
    },
    EndLauncher(Leave),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    pub active: bool,
    pub enabled: bool,
}

/// Whether systemd manages this machine, as `sd_booted(3)` finds out.
pub fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

pub fn state(unit: &str) -> anyhow::Result<UnitState> {
    let ask = |verb: &str| -> anyhow::Result<String> {
        let asked = Command::new("systemctl").args([verb, unit]).stdin(Stdio::null()).output();
        let said = asked.context("run systemctl")?.stdout;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    };
    Ok(UnitState {
        active: ["active", "activating", "reloading"].contains(&ask("is-active")?.as_str()),
        enabled: ask("is-enabled")? == "enabled",
    })
}

/// Runs `systemctl` and says what the unit's log says when it fails.
pub fn systemctl(verb: &str, unit: Option<&str>) -> anyhow::Result<()> {
    let mut command = Command::new("systemctl");
    command.arg(verb).args(unit);
    match run(&mut command) {
        Err(error) if ["start", "restart"].contains(&verb) => {
            let unit = unit.unwrap_or_default();
            let log = Command::new("journalctl")
                .args(["--no-pager", "--output=cat", "--lines", LOG_LINES, "--unit", unit])
                .stdin(Stdio::null())
                .output();
            let log = log.map(|log| output::printable(&String::from_utf8_lossy(&log.stdout)));
            Err(error.context(format!("the end of its log:\n{}", log.unwrap_or_default().trim())))
        }
        done => done,
    }
}

/// In a group of its own: an interrupt at the terminal is for us, and between two steps.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    let shown = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).process_group(0).output();
    let output = output.with_context(|| format!("run `{shown}`"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = output::printable(String::from_utf8_lossy(&output.stderr).trim());
    bail!("`{shown}` failed ({}): {said}", output.status)
}

/// Adds what brings the services of these files up, or up to date.
pub fn add(plan: &mut Plan, target: &Target, no_start: bool) -> anyhow::Result<()> {
    let booted = is_booted();
    if !booted && !no_start {
        let text = "systemd does not manage this machine: start `sinew serve` by hand or from your \
                    service manager; `--destdir DIR` writes the files into a directory, and \
                    `--no-start` writes them here without starting anything";
        return Err(UsageError(text.to_owned()).into());
    }
    let units = [SANDBOXES_UNIT, LAUNCHER_UNIT, SERVE_UNIT];
    let is_new = |unit: &str, plan: &Plan| plan.writes(&target.units().join(unit));
    if booted && units.iter().any(|unit| is_new(unit, plan)) {
        plan.changes.push(Change::Service(ServiceChange::Reload));
    }
    for unit in [LAUNCHER_UNIT, SERVE_UNIT] {
        if !state(unit)?.enabled {
            plan.changes.push(Change::Service(ServiceChange::Enable(unit)));
        }
    }
    if no_start {
        plan.next.push(format!("systemctl start {LAUNCHER_UNIT} {SERVE_UNIT}"));
        return Ok(());
    }
    if is_new(SANDBOXES_UNIT, plan) && state(SANDBOXES_UNIT)?.active {
        plan.notes.push(format!("{SANDBOXES_UNIT} goes on as it was until the next boot"));
    }
    let new_program = plan.writes(&target.program());
    let mut bring_up = |unit| -> anyhow::Result<()> {
        let change = match state(unit)?.active {
            false => ServiceChange::Start(unit),
            true if new_program || is_new(unit, plan) => ServiceChange::Restart(unit),
            true => return Ok(()),
        };
        plan.changes.push(Change::Service(change));
        Ok(())
    };
    refuse_started_by_hand(target)?;
    bring_up(LAUNCHER_UNIT)?;
    let missing = missing_to_serve(target);
    if missing.is_empty() {
        return bring_up(SERVE_UNIT);
    }
    plan.next.extend(missing);
    plan.next.push(format!("systemctl start {SERVE_UNIT}"));
    Ok(())
}

/// A launcher or a `serve` that no unit runs would be in the way of the one that a unit starts.
fn refuse_started_by_hand(target: &Target) -> anyhow::Result<()> {
    let data = target.data.display();
    if !state(SERVE_UNIT)?.active && is_serving(target) {
        bail!("a `sinew serve` for {data} was started by hand: end it first (its sandboxes go on)");
    }
    if state(LAUNCHER_UNIT)?.active {
        return Ok(());
    }
    let Ok(launcher) = Layout::at(&target.data).connect() else { return Ok(()) };
    let pid = rustix::net::sockopt::socket_peercred(&launcher).map(|peer| peer.pid);
    let pid = pid.map_or(0, |pid| pid.as_raw_nonzero().get());
    bail!(
        "a launcher for {data} was started by hand: end it first with `kill {pid}` (its sandboxes \
         go on, and the unit's launcher finds them)"
    )
}

fn is_serving(target: &Target) -> bool {
    let dir = Installation::at(target.data.clone()).serve_dir();
    File::open(dir).is_ok_and(|dir| {
        let taken = rustix::fs::flock(&dir, FlockOperation::NonBlockingLockShared);
        taken == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// What the operator has to do before `serve` can run; empty if it can.
fn missing_to_serve(target: &Target) -> Vec<String> {
    let overrides = Overrides {
        config: Some(target.config()).filter(|config| config.exists()),
        data: Some(target.data.clone()),
        ..Overrides::default()
    };
    let config = match base_config::load(&sources(overrides)) {
        Ok(config) => config,
        Err(errors) => return vec![format!("mend {}: {errors}", target.config().display())],
    };
    let mut missing = Vec::new();
    if config.environments.is_empty() {
        let config = target.config();
        missing.push(format!("write an [[environment]] into {}", config.display()));
    }
    let images = config.images.as_path();
    let store = images.exists().then(|| ImageStore::open(images).ok()).flatten();
    let has = |name: &str| store.as_ref().is_some_and(|store| store.get(name).is_ok());
    if config.profiles.iter().any(|profile| !has(&profile.image)) {
        missing.push(format!("sinew image build --images {}", images.display()));
    }
    missing
}

/// How many sandboxes have a running process, by whoever knows it; `None` where nobody answers.
pub fn running_sandboxes(data: &Path) -> anyhow::Result<Option<usize>> {
    if Layout::at(data).connect().is_err() {
        return Ok(None);
    }
    block_on(async {
        let launcher = LauncherDriver::observe(data).await.context("ask the launcher")?;
        let all = launcher.list().await.context("ask the launcher for its sandboxes")?;
        let is_running = |vitality: &Vitality| matches!(vitality, Vitality::Running { .. });
        Ok(Some(all.iter().filter(|status| is_running(&status.vitality)).count()))
    })
}

pub fn refuse_running(count: usize) -> anyhow::Result<()> {
    match count {
        0 => Ok(()),
        count => bail!(
            "{}: stop the sessions first (`sinew session stop`), or end the processes with \
             --end-sandboxes",
            if count == 1 { "1 sandbox runs".to_owned() } else { format!("{count} sandboxes run") }
        ),
    }
}

/// A launcher that does not run is started, because only it knows what its predecessor left.
pub fn check_sandboxes(data: &Path, may_end: bool) -> anyhow::Result<()> {
    let count = match running_sandboxes(data)? {
        Some(count) => count,
        None => {
            systemctl("start", Some(LAUNCHER_UNIT))
                .context("start the launcher, to learn which sandboxes run")?;
            running_sandboxes(data)?.context("the launcher does not answer")?
        }
    };
    if may_end { Ok(()) } else { refuse_running(count) }
}

pub fn end_launcher(data: &Path, leave: Leave) -> anyhow::Result<()> {
    block_on(async {
        let launcher = LauncherDriver::observe(data).await.context("reach the launcher")?;
        launcher.shutdown(leave).await.context("end the launcher and its sandboxes")
    })
}

/// Whether a launcher ever ran for this directory.
pub fn had_launcher(data: &Path) -> anyhow::Result<bool> {
    is_there(Layout::at(data).root())
}
