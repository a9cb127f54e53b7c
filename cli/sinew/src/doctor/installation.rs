//! The configuration, the data directory, the images, and the processes.

use std::path::Path;

use base_config::{Config, Overrides};
use base_types::{ByteSize, Chain};
use control_server::api::{EnvironmentView, SessionQuery, StatusAnswer};
use control_server::client::{ApiClient, ApiError};
use rustix::fs::statvfs;
use sandbox_image::ImageStore;
use sandbox_launcher::{LauncherDriver, Layout};

use super::{Check, brain, store};
use crate::args::DoctorArgs;
use crate::installation::{Installation, is_root, sources};
use crate::output;

/// Less free space than this beyond the pool, and the journal may soon not be written.
const DISK_SPARE: ByteSize = ByteSize::gib(1);
/// Sessions looked through for attachments that are not served.
const SESSIONS_LOOKED_AT: u32 = 200;

pub async fn examine(args: &DoctorArgs) -> Vec<Check> {
    let overrides = Overrides {
        config: args.config.clone(),
        data: args.data.data.clone(),
        images: args.images.images.clone(),
        ..Overrides::default()
    };
    let sources = sources(overrides);
    let config = match base_config::load(&sources) {
        Ok(config) => config,
        Err(errors) => {
            let fix = "mend what is listed; docs/user/config.md has every key";
            let mut checks = vec![Check::fail("configuration", errors.to_string(), fix)];
            // Without environments the rest can be looked at all the same.
            if let Ok(config) = base_config::load_without_environments(&sources) {
                checks.extend(of_config(&config).await);
            }
            return checks;
        }
    };
    let file = config.file.as_ref().map(|file| file.display().to_string());
    let from = file.unwrap_or_else(|| "variables and defaults".to_owned());
    let mut checks = vec![Check::ok("configuration", format!("from {from}"))];
    for warning in &config.warnings {
        checks.push(Check::warn("configuration", warning.to_string(), "see docs/user/config.md"));
    }
    checks.extend(of_config(&config).await);
    checks.extend(store::examine(&config.store).await);
    for environment in &config.environments {
        checks.push(brain::examine(&config, environment).await);
    }
    checks
}

async fn of_config(config: &Config) -> Vec<Check> {
    let installation = Installation::at(config.data.clone());
    let mut checks = vec![privileges(&installation), disk(config)];
    checks.extend(images(config));
    checks.push(launcher(&installation).await);
    checks.extend(serve(&installation).await);
    checks
}

fn privileges(installation: &Installation) -> Check {
    if is_root() {
        return Check::ok("privileges", "root: `sinew serve` can start its launcher");
    }
    let socket = Layout::at(installation.data()).root().join("launcher.sock");
    if socket.exists() {
        return Check::ok("privileges", "not root, and a launcher is there");
    }
    Check::warn(
        "privileges",
        "not root, and no launcher runs: `sinew serve` could not start one; some checks saw less",
        "run `sudo sinew doctor`, and `sinew serve` as root (it gives root up by itself)",
    )
}

fn disk(config: &Config) -> Check {
    let existing = config.data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let Ok(space) = statvfs(existing) else {
        return Check::warn("disk", "its free space cannot be read", "check the data directory");
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let pool = Layout::at(&config.data).pool().exists();
    let wanted = DISK_SPARE.0 + if pool { 0 } else { config.pool.initial.0 };
    let text = format!("{} free for {}", output::bytes(free), config.data.display());
    if free >= wanted {
        return Check::ok("disk", text);
    }
    Check::fail(
        "disk",
        format!("{text}; {} are needed", output::bytes(wanted)),
        "free some space, or name a larger disk with --data; `initial` of [pool] may be smaller",
    )
}

fn images(config: &Config) -> Vec<Check> {
    let build = format!("sinew image build --images {}", config.images.display());
    let mut wanted: Vec<&str> = config.profiles.iter().map(|p| p.image.as_str()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if !config.images.exists() {
        let found = format!("no image cache at {}", config.images.display());
        return vec![Check::fail("image", found, build)];
    }
    let store = match ImageStore::open(&config.images) {
        Ok(store) => store,
        Err(error) => return vec![Check::fail("image", Chain(&error).to_string(), build)],
    };
    let check = |name: &str| match store.get(name) {
        Ok(image) => {
            let size = output::bytes(image.manifest.size_bytes);
            Check::ok("image", format!("{name}: {} ({size})", image.id()))
        }
        Err(error) => Check::fail("image", Chain(&error).to_string(), build.clone()),
    };
    wanted.into_iter().map(check).collect()
}

/// Whether `sinew install --systemd` or a package made a service of this machine.
fn is_installed() -> bool {
    let units = ["/etc/systemd/system/sinew.service", "/usr/lib/systemd/system/sinew.service"];
    units.iter().any(|unit| Path::new(unit).exists())
}

async fn launcher(installation: &Installation) -> Check {
    let socket = Layout::at(installation.data()).root().join("launcher.sock");
    if !socket.exists() {
        let found = match is_installed() {
            true => "not running; start it with `systemctl start sinew-launcher.service`",
            false => "not running; `sinew serve` starts it",
        };
        return Check::ok("launcher", found);
    }
    match LauncherDriver::observe(installation.data()).await {
        Ok(driver) => match sandbox_api::SandboxDriver::list(&driver).await {
            Ok(sandboxes) => {
                Check::ok("launcher", format!("runs, knows {} sandboxes", sandboxes.len()))
            }
            Err(error) => {
                Check::warn("launcher", Chain(&error).to_string(), "see its launcher.log")
            }
        },
        Err(error) => Check::warn(
            "launcher",
            format!("does not answer: {}", Chain(&error)),
            "nothing, if `sinew serve` is stopped: it starts one; else see launcher.log",
        ),
    }
}

async fn serve(installation: &Installation) -> Vec<Check> {
    let client = ApiClient::new(installation.data());
    let status = match client.status().await {
        Ok(status) => status,
        Err(ApiError::NotRunning { .. }) => {
            let found = match is_installed() {
                true => "not running; start it with `systemctl start sinew.service`",
                false => "not running; start it with `sinew serve`",
            };
            return vec![Check::ok("serve", found)];
        }
        Err(error) => {
            let fix = "see its log; stop it and start it again";
            return vec![Check::warn("serve", Chain(&error).to_string(), fix)];
        }
    };
    let mut checks =
        vec![Check::ok("serve", format!("version {}, pid {}", status.version, status.pid))];
    checks.extend(troubles(&status));
    checks.extend(unserved(&client).await);
    checks
}

/// What only a running `serve` knows.
fn troubles(status: &StatusAnswer) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(trouble) = &status.store.trouble {
        checks.push(Check::fail("journal", trouble, "check the disk of the data directory"));
    }
    if let Some(trouble) = &status.driver.health.trouble {
        checks.push(Check::fail("driver", trouble, "see launcher.log in the data directory"));
    }
    for environment in &status.environments {
        checks.push(of_environment(environment));
    }
    checks
}

/// How one environment is doing: others go on whatever it says.
fn of_environment(environment: &EnvironmentView) -> Check {
    let EnvironmentView { environment: id, serving, concurrency_max, .. } = environment;
    let Some(trouble) = &environment.trouble else {
        let full = serving >= concurrency_max;
        let more = if full { ": at its limit, new sessions wait" } else { "" };
        return Check::ok("polling", format!("{id}: serves {serving} of {concurrency_max}{more}"));
    };
    let found = format!("{id}: {trouble}");
    match (environment.configured, environment.refused) {
        (false, _) => Check::warn(
            "polling",
            found,
            "put it back into the configuration, or remove each of them with `sinew session stop \
             --forget`",
        ),
        (true, true) => Check::fail(
            "polling",
            found,
            "put a valid key where the configuration says; serve looks for it there, and needs a \
             restart only where it cannot read it",
        ),
        (true, false) => {
            Check::warn("polling", found, "serve goes on trying; check the brain and the network")
        }
    }
}

async fn unserved(client: &ApiClient) -> Option<Check> {
    let query = SessionQuery { open: true, limit: Some(SESSIONS_LOOKED_AT) };
    let sessions = client.sessions(&query).await.ok()?.sessions;
    let with: Vec<String> = sessions
        .iter()
        .filter(|session| !session.unserved.is_empty())
        .map(|session| format!("{} ({})", session.id, session.unserved.join(", ")))
        .collect();
    if with.is_empty() {
        return None;
    }
    let found = format!("sessions served without what is attached to them: {}", with.join("; "));
    Some(Check::warn(
        "attachments",
        found,
        "this version serves no skills, memory stores and files",
    ))
}
