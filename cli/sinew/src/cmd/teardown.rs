//! `sinew teardown --data DIR`: for whoever made a temporary installation and must leave nothing.

use crate::args::TeardownArgs;
use crate::cmd::block_on;
use crate::exit::Exit;
use crate::scratch::end_launcher;

pub fn run(args: TeardownArgs) -> anyhow::Result<Exit> {
    block_on(end_launcher(&args.data))?;
    Ok(Exit::Ok)
}
