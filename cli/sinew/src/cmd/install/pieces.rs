//! Every file of an installed service, with its content.

use std::path::PathBuf;

use super::target::{LAUNCHER_UNIT, SANDBOXES_UNIT, SERVE_UNIT, Target};
use crate::args::Shell;
use crate::cmd::{completions, manual};

const SANDBOXES: &str = include_str!("../../../../../deploy/systemd/sinew-sandboxes.service");
const LAUNCHER: &str = include_str!("../../../../../deploy/systemd/sinew-launcher.service");
const SERVE: &str = include_str!("../../../../../deploy/systemd/sinew.service");
const CONFIG: &str = include_str!("../../../../../deploy/sinew.toml");
const SYSUSERS: &str = include_str!("../../../../../deploy/systemd/sysusers.conf");
const TMPFILES: &str = include_str!("../../../../../deploy/systemd/tmpfiles.conf");

/// Whose a file or directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Root,
    /// Root's, and the service's group may read it.
    RootForService,
    Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This very program.
    Program,
    /// People read it: its content is shown before it is written.
    Unit,
    /// Written once, then the operator's.
    Config,
    /// Made from the command line's definition, or for a package's scripts.
    Generated,
}

pub struct Piece {
    pub path: PathBuf,
    pub kind: Kind,
    pub mode: u32,
    pub owner: Owner,
    /// Empty for the program.
    pub content: Vec<u8>,
}

pub struct Directory {
    pub path: PathBuf,
    pub mode: u32,
    pub owner: Owner,
}

/// The directories whose owner and mode matter. Others are made on the way to a file.
pub fn directories(target: &Target) -> Vec<Directory> {
    let directory = |path: PathBuf, mode, owner| Directory { path, mode, owner };
    vec![
        directory(target.keys(), 0o710, Owner::RootForService),
        directory(target.data.clone(), 0o755, Owner::Root),
        directory(target.data.join("serve"), 0o700, Owner::Service),
        directory(target.data.join(control_server::SOCKET_DIR), 0o755, Owner::Service),
    ]
}

pub fn pieces(target: &Target) -> anyhow::Result<Vec<Piece>> {
    let mut pieces = vec![Piece {
        path: target.program(),
        kind: Kind::Program,
        mode: 0o755,
        owner: Owner::Root,
        content: Vec::new(),
    }];
    for (name, text) in
        [(SANDBOXES_UNIT, SANDBOXES), (LAUNCHER_UNIT, LAUNCHER), (SERVE_UNIT, SERVE)]
    {
        pieces.push(Piece {
            path: target.units().join(name),
            kind: Kind::Unit,
            mode: 0o644,
            owner: Owner::Root,
            content: filled(text, target).into_bytes(),
        });
    }
    pieces.push(Piece {
        path: target.config(),
        kind: Kind::Config,
        mode: 0o640,
        owner: Owner::RootForService,
        content: filled(CONFIG, target).into_bytes(),
    });
    pieces.extend(generated(target)?);
    Ok(pieces)
}

fn generated(target: &Target) -> anyhow::Result<Vec<Piece>> {
    let share = target.share();
    let mut files = vec![
        (share.join("bash-completion/completions/sinew"), completions::script(Shell::Bash)),
        (share.join("zsh/site-functions/_sinew"), completions::script(Shell::Zsh)),
        (share.join("fish/vendor_completions.d/sinew.fish"), completions::script(Shell::Fish)),
    ];
    for (name, page) in manual::pages()? {
        files.push((share.join("man/man1").join(name), page));
    }
    if target.destdir.is_some() {
        // What a package cannot contain, its installation does.
        let lib = PathBuf::from("/usr/lib");
        files.push((lib.join("sysusers.d/sinew.conf"), filled(SYSUSERS, target).into_bytes()));
        files.push((lib.join("tmpfiles.d/sinew.conf"), filled(TMPFILES, target).into_bytes()));
    }
    let piece = |(path, content)| Piece {
        path,
        kind: Kind::Generated,
        mode: 0o644,
        owner: Owner::Root,
        content,
    };
    Ok(files.into_iter().map(piece).collect())
}

fn filled(template: &str, target: &Target) -> String {
    // Inside a home directory the service must see that much of it.
    let homes = ["/home", "/root", "/run/user"];
    let in_home = [&target.data, &target.prefix]
        .iter()
        .any(|path| homes.iter().any(|home| path.starts_with(home)));
    template
        .replace("@BIN@", &target.program().to_string_lossy())
        .replace("@DATA@", &target.data.to_string_lossy())
        .replace("@CONFIG@", &target.config().to_string_lossy())
        .replace("@KEYS@", &target.keys().to_string_lossy())
        .replace("@USER@", &target.user)
        .replace("@HOME@", if in_home { "read-only" } else { "yes" })
}
