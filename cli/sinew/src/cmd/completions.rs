//! `sinew completions SHELL`: the script that a shell reads to complete our commands.

use clap_complete::{Shell as Generator, generate};

use crate::args::{CompletionsArgs, Shell, visible_command};
use crate::exit::Exit;
use crate::output;

pub fn run(args: CompletionsArgs) -> anyhow::Result<Exit> {
    output::line(String::from_utf8_lossy(&script(args.shell)).trim_end())?;
    Ok(Exit::Ok)
}

/// In memory: the generator panics where writing fails, and a closed pipe is no mistake.
pub fn script(shell: Shell) -> Vec<u8> {
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    generate(generator, &mut visible_command(), "sinew", &mut script);
    script
}
