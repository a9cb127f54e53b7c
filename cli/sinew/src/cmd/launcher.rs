//! `sinew launcher`: the privileged process, composed of the parts it names by trait only.

mod containers;
mod images;
mod profiles;
mod volumes;

use std::path::PathBuf;

use anyhow::Context;
use sandbox_launcher::Prepared;
use sandbox_launcher::parts::Parts;

use containers::ContainerParts;
use images::ImageParts;
use profiles::ConfiguredProfiles;
use volumes::PoolVolumes;

#[derive(Debug, clap::Args)]
pub struct LauncherArgs {
    /// The installation's directory
    #[arg(long, value_name = "DIR", env = "SINEW_DATA")]
    pub data: PathBuf,
    /// The image cache
    #[arg(long, value_name = "DIR", env = "SINEW_IMAGES")]
    pub images: PathBuf,
    /// The configuration file; it must be root's own
    #[arg(long, value_name = "FILE", env = "SINEW_CONFIG")]
    pub config: Option<PathBuf>,
    /// The user that `sinew serve` runs as, by number [default: the configuration's]
    #[arg(long, value_name = "UID")]
    pub user: Option<u32>,
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
    let (user, pool) = profiles.user_and_pool();
    // From here on this process has few capabilities, and the installation to itself.
    let prepared = Prepared::take(&args.data, user)?;
    let parts = Parts {
        ahead: profiles.starts_ahead(),
        images: Box::new(ImageParts::open(&args.images)?),
        volumes: Box::new(PoolVolumes::open(&prepared.layout().pool(), pool)?),
        containers: Box::new(ContainerParts::new(&prepared.layout().installation())?),
        profiles: Box::new(profiles),
    };
    prepared.serve(parts)?;
    Ok(())
}

/// A part's failure as the launcher passes it on: one line with its causes.
fn failed(error: &(dyn std::error::Error + 'static)) -> sandbox_launcher::parts::PartError {
    sandbox_launcher::parts::PartError::Failed(base_types::Chain(error).to_string())
}
