//! `sinew launcher`: the privileged process, composed of the parts it names by trait only.

mod containers;
mod images;
mod profiles;
mod volumes;

use std::path::PathBuf;

use anyhow::{Context, bail};
use sandbox_launcher::parts::Parts;
use sandbox_launcher::{Prepared, ServeUser};

use crate::installation::{Installation, prepare_for_serve};
use crate::supervisor::Supervisor;
use containers::ContainerParts;
use images::ImageParts;
use profiles::{ConfiguredProfiles, Settings};
use volumes::PoolVolumes;

#[derive(Debug, clap::Args)]
pub struct LauncherArgs {
    /// The installation's directory
    #[arg(long, value_name = "DIR", env = "SINEW_DATA")]
    pub data: PathBuf,
    /// The image cache [default: the configuration's]
    #[arg(long, value_name = "DIR", env = "SINEW_IMAGES")]
    pub images: Option<PathBuf>,
    /// The configuration file; it must be root's own
    #[arg(long, value_name = "FILE", env = "SINEW_CONFIG")]
    pub config: Option<PathBuf>,
    /// The user that `sinew serve` runs as, by name or number [default: the configuration's]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Lead a session of its own, so that no terminal's end is this process's
    #[arg(long)]
    pub detached: bool,
}

/// Serves until it is told to leave. Returns when it has.
pub fn run(args: LauncherArgs) -> anyhow::Result<()> {
    crate::logging::init(crate::args::LogFormat::Text, "info");
    serve(args)
}

fn serve(args: LauncherArgs) -> anyhow::Result<()> {
    if args.detached {
        nix::unistd::setsid().context("lead a session")?;
    }
    let profiles = ConfiguredProfiles::load(&args)?;
    let Settings { user: configured, images, pool, starts_ahead } = profiles.settings();
    let user = match &args.user {
        Some(named) => serve_user(named)?,
        None => ServeUser::of_same_number(configured),
    };
    let supervisor = Supervisor::of_environment();
    // From here on this process has few capabilities, and the installation to itself.
    let prepared = Prepared::take(&args.data, user)?;
    // One that a unit starts as that user could not make its own directories.
    prepare_for_serve(&Installation::at(args.data.clone()), user)?;
    let parts = Parts {
        ahead: starts_ahead,
        images: Box::new(ImageParts::open(&images)?),
        volumes: Box::new(PoolVolumes::open(&prepared.layout().pool(), pool)?),
        containers: Box::new(ContainerParts::new(&prepared.layout().installation())?),
        profiles: Box::new(profiles),
    };
    prepared.serve(parts, || supervisor.ready("starts and watches sandboxes"))?;
    supervisor.stopping();
    Ok(())
}

/// A number needs no entry in `/etc/passwd`, and is its own group.
fn serve_user(named: &str) -> anyhow::Result<ServeUser> {
    let user = match named.parse() {
        Ok(number) => ServeUser::of_same_number(number),
        Err(_) => {
            let found = nix::unistd::User::from_name(named);
            let found = found.with_context(|| format!("look for user `{named}`"))?;
            let found = found.with_context(|| format!("there is no user `{named}`"))?;
            ServeUser { uid: found.uid.as_raw(), gid: found.gid.as_raw() }
        }
    };
    if user.uid == 0 || user.gid == 0 {
        bail!("`serve` must not run as root: name another user with --user");
    }
    Ok(user)
}

/// A part's failure as the launcher passes it on: one line with its causes.
fn failed(error: &(dyn std::error::Error + 'static)) -> sandbox_launcher::parts::PartError {
    sandbox_launcher::parts::PartError::Failed(base_types::Chain(error).to_string())
}
