//! Doing what a plan says, one step after the other; what fails in the middle is undone.
//!
//! A file is written beside its place and renamed into it, so that at any moment the old one or the
//! new one is there, and a program that runs keeps the file it was started from. Until everything
//! is done the old one stays beside it.
//!
//! Between the plan and its steps somebody may have put a link in the place of what was looked at.
//! So owners and modes are changed through descriptors that were opened without following one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::OFlags;
use sandbox_launcher::wire::Leave;

use super::pieces::{Directory, Kind, Owner, Piece};
use super::plan::{Change, OWN_PROGRAM, Plan, group, ids, user};
use super::remove::OF_DATA;
use super::service::{ServiceChange, check_sandboxes, end_launcher, run, state, systemctl};
use super::target::{LAUNCHER_UNIT, SANDBOXES_UNIT, Target};

/// Does everything, or undoes what it did and says why. What cannot be undone comes last.
pub fn apply(target: &Target, plan: Plan) -> anyhow::Result<()> {
    let interrupts = Interrupts::hold()?;
    let (last, first): (Vec<Change>, Vec<Change>) =
        plan.changes.into_iter().partition(|change| is_for_good(target, change));
    let mut run = Run { target, undo: Vec::new(), backups: Vec::new() };
    for change in first {
        let done = match interrupts.came() {
            Some(signal) => Err(anyhow::anyhow!("interrupted by {signal}")),
            None => run.step(change),
        };
        if let Err(error) = done {
            let left = run.back_out();
            if left.is_empty() {
                return Err(error.context("nothing is installed or removed: every step was undone"));
            }
            let text = format!("not everything could be undone: {}", left.join("; "));
            return Err(error.context(text));
        }
    }
    run.commit();
    last.into_iter().try_for_each(|change| remove_for_good(target, change))
}

/// The record too: as long as anything else is left, a later run must find it.
fn is_for_good(target: &Target, change: &Change) -> bool {
    match change {
        Change::RemoveDirectory(_) | Change::RemoveTree(_) | Change::RemoveUser => true,
        Change::Remove(path) => *path == target.record() || is_left_over(path),
        _ => false,
    }
}

fn remove_for_good(target: &Target, change: Change) -> anyhow::Result<()> {
    match change {
        Change::RemoveDirectory(path) => remove_empty(&path).map(drop),
        Change::RemoveTree(path) => remove_tree(&path),
        Change::RemoveUser => remove_user(&target.user),
        Change::Remove(path) => remove_file(&path),
        // Done before.
        _ => Ok(()),
    }
}

/// Signals that would end us in the middle of a step are looked at between two.
struct Interrupts(SignalFd);

impl Interrupts {
    fn hold() -> anyhow::Result<Self> {
        let signals: SigSet =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().context("hold signals back")?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        Ok(Self(fd.context("hold signals back")?))
    }

    fn came(&self) -> Option<&'static str> {
        let came = self.0.read_signal().ok().flatten()?;
        Some(i32::try_from(came.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok())?.as_str())
    }
}

/// How one step is taken back.
enum Undo {
    Unlink(PathBuf),
    Restore {
        path: PathBuf,
        backup: PathBuf,
    },
    RemoveDirectory(PathBuf),
    /// The data directory, which a launcher may have filled since we made it.
    RemoveData(PathBuf),
    MendBack {
        path: PathBuf,
        mode: u32,
        owner: (u32, u32),
    },
    RemoveUser(String),
    Enable(&'static str),
    Disable(&'static str),
    Stop(&'static str),
    /// It ran before; it does again once its files are back.
    Revive(&'static str),
    Reload,
}

struct Run<'a> {
    target: &'a Target,
    undo: Vec<Undo>,
    /// Old files beside their places; they go when all is done.
    backups: Vec<PathBuf>,
}

// === impl Run ===

impl Run<'_> {
    fn step(&mut self, change: Change) -> anyhow::Result<()> {
        match change {
            Change::MakeUser => self.make_user(),
            Change::MakeDirectory(directory) => self.make_directory(&directory),
            Change::MendDirectory(directory) => self.mend_directory(&directory),
            Change::Write { piece, .. } => self.write(&piece),
            Change::Remove(path) => self.remove(&path),
            Change::Service(change) => self.service(change),
            other => remove_for_good(self.target, other),
        }
    }

    fn make_user(&mut self) -> anyhow::Result<()> {
        let name = &self.target.user;
        let mut useradd = Command::new("useradd");
        useradd.args(["--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]);
        useradd.args(["--comment", "Sinew", "--home-dir"]).arg(&self.target.data);
        match group(name)? {
            Some(_) => useradd.args(["--gid", name]),
            None => useradd.arg("--user-group"),
        };
        run(useradd.arg(name)).with_context(|| format!("make the user `{name}`"))?;
        self.undo.push(Undo::RemoveUser(name.clone()));
        Ok(())
    }

    fn make_directory(&mut self, directory: &Directory) -> anyhow::Result<()> {
        let place = self.target.place(&directory.path);
        DirBuilder::new()
            .mode(0o700)
            .create(&place)
            .with_context(|| format!("make {}", place.display()))?;
        self.undo.push(match directory.path == self.target.data {
            true => Undo::RemoveData(place.clone()),
            false => Undo::RemoveDirectory(place.clone()),
        });
        let opened = open_directory(&place)?;
        self.own(&opened, &place, directory.owner)?;
        set_mode(&opened, &place, directory.mode)
    }

    fn mend_directory(&mut self, directory: &Directory) -> anyhow::Result<()> {
        let opened = open_directory(&directory.path)?;
        let metadata = opened.metadata()?;
        self.undo.push(Undo::MendBack {
            path: directory.path.clone(),
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
        });
        self.own(&opened, &directory.path, directory.owner)?;
        set_mode(&opened, &directory.path, directory.mode)
    }

    fn write(&mut self, piece: &Piece) -> anyhow::Result<()> {
        let place = self.target.place(&piece.path);
        let (new, old) = (beside(&place, "new"), beside(&place, "old"));
        // Left over from a run that was killed.
        for path in [&new, &old] {
            remove_file(path)?;
        }
        let written = self.write_beside(&new, piece);
        let replaced = written.and_then(|()| {
            let had = match fs::hard_link(&place, &old) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                linked => {
                    linked.with_context(|| format!("keep {}", place.display()))?;
                    self.backups.push(old.clone());
                    true
                }
            };
            fs::rename(&new, &place)
                .with_context(|| format!("put {} in place", place.display()))?;
            self.undo.push(match had {
                true => Undo::Restore { path: place.clone(), backup: old },
                false => Undo::Unlink(place.clone()),
            });
            sync_directory(&place)
        });
        if replaced.is_err() {
            remove_file(&new)?;
        }
        replaced
    }

    fn write_beside(&self, new: &Path, piece: &Piece) -> anyhow::Result<()> {
        let what = || format!("write {}", new.display());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new)
            .with_context(what)?;
        match piece.kind {
            Kind::Program => {
                let mut own = File::open(OWN_PROGRAM).context("open this program")?;
                io::copy(&mut own, &mut file).map(drop).with_context(what)?;
            }
            _ => file.write_all(&piece.content).with_context(what)?,
        }
        self.own(&file, new, piece.owner)?;
        set_mode(&file, new, piece.mode)?;
        file.sync_all().with_context(what)
    }

    fn remove(&mut self, path: &Path) -> anyhow::Result<()> {
        let backup = beside(path, "old");
        remove_file(&backup)?;
        fs::rename(path, &backup).with_context(|| format!("remove {}", path.display()))?;
        self.backups.push(backup.clone());
        self.undo.push(Undo::Restore { path: path.to_owned(), backup });
        Ok(())
    }

    /// For a package everything is root's once it is unpacked.
    fn own(&self, file: &File, path: &Path, owner: Owner) -> anyhow::Result<()> {
        if self.target.destdir.is_some() {
            return Ok(());
        }
        let service = user(&self.target.user)?;
        let Some((uid, gid)) = ids(owner, service.as_ref()) else {
            bail!("there is no user `{}` to give {} to", self.target.user, path.display());
        };
        fchown(file, Some(uid.as_raw()), Some(gid.as_raw()))
            .with_context(|| format!("give {} away", path.display()))
    }

    fn service(&mut self, change: ServiceChange) -> anyhow::Result<()> {
        match change {
            ServiceChange::Reload => {
                self.undo.push(Undo::Reload);
                systemctl("daemon-reload", None)
            }
            ServiceChange::Enable(unit) => {
                systemctl("enable", Some(unit))?;
                self.undo.push(Undo::Disable(unit));
                Ok(())
            }
            ServiceChange::Disable(unit) => {
                systemctl("disable", Some(unit))?;
                self.undo.push(Undo::Enable(unit));
                Ok(())
            }
            ServiceChange::Start(unit) => {
                if unit == LAUNCHER_UNIT && !state(SANDBOXES_UNIT)?.active {
                    self.undo.push(Undo::Stop(SANDBOXES_UNIT));
                }
                self.undo.push(Undo::Stop(unit));
                systemctl("start", Some(unit))
            }
            ServiceChange::Restart(unit) => {
                self.undo.push(Undo::Revive(unit));
                systemctl("restart", Some(unit))
            }
            ServiceChange::Stop(unit) => {
                self.undo.push(Undo::Revive(unit));
                systemctl("stop", Some(unit))
            }
            ServiceChange::CheckSandboxes { may_end } => {
                check_sandboxes(&self.target.data, may_end)
            }
            ServiceChange::EndLauncher(leave) => {
                self.undo.push(Undo::Revive(LAUNCHER_UNIT));
                end_launcher(&self.target.data, leave)
            }
        }
    }

    /// Takes every step back, the last one first. Answers what could not be.
    fn back_out(mut self) -> Vec<String> {
        let mut left = Vec::new();
        let mut revive = Vec::new();
        while let Some(undo) = self.undo.pop() {
            if let Undo::Revive(unit) = undo {
                revive.push(unit);
                continue;
            }
            if let Err(error) = self.take_back(undo) {
                left.push(format!("{error:#}"));
            }
        }
        if !revive.is_empty() {
            let reloaded = systemctl("daemon-reload", None);
            left.extend(reloaded.err().map(|error| format!("{error:#}")));
        }
        for unit in revive.into_iter().rev() {
            let revived = systemctl("restart", Some(unit));
            left.extend(revived.err().map(|error| format!("{error:#}")));
        }
        left
    }

    fn take_back(&self, undo: Undo) -> anyhow::Result<()> {
        match undo {
            Undo::Unlink(path) => remove_file(&path),
            Undo::Restore { path, backup } => {
                fs::rename(&backup, &path).with_context(|| format!("put {} back", path.display()))
            }
            Undo::RemoveDirectory(path) => remove_empty(&path).map(drop),
            Undo::RemoveData(path) => {
                OF_DATA.iter().try_for_each(|name| remove_tree(&path.join(name)))?;
                remove_empty(&path).map(drop)
            }
            Undo::MendBack { path, mode, owner: (uid, gid) } => {
                let opened = open_directory(&path)?;
                fchown(&opened, Some(uid), Some(gid))
                    .with_context(|| format!("give {} back", path.display()))?;
                set_mode(&opened, &path, mode)
            }
            Undo::RemoveUser(name) => remove_user(&name),
            Undo::Enable(unit) => systemctl("enable", Some(unit)),
            Undo::Disable(unit) => systemctl("disable", Some(unit)),
            Undo::Stop(unit) => self.stop_again(unit),
            Undo::Reload => systemctl("daemon-reload", None),
            // Collected by the caller.
            Undo::Revive(_) => Ok(()),
        }
    }

    /// A launcher that never served anybody takes its pool along, so that its directory can go.
    fn stop_again(&self, unit: &'static str) -> anyhow::Result<()> {
        let is_new = |undo: &Undo| matches!(undo, Undo::RemoveData(_));
        if unit == LAUNCHER_UNIT && self.undo.iter().any(is_new) {
            // It may not have come up at all; then the stop is enough.
            let _ = end_launcher(&self.target.data, Leave::Nothing);
        }
        systemctl("stop", Some(unit))
    }

    fn commit(self) {
        for backup in self.backups {
            // It is in nobody's way, and the next run removes it.
            let _ = fs::remove_file(backup);
        }
    }
}

/// `.NAME.sinew-new`: hidden, in the same file system, and the same at every run.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.sinew-{what}"))
}

/// Where a run that is killed may leave something of a file's.
pub fn left_overs(path: &Path) -> [PathBuf; 2] {
    [beside(path, "new"), beside(path, "old")]
}

fn is_left_over(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b".") && (name.ends_with(b".sinew-new") || name.ends_with(b".sinew-old"))
}

/// A link in its place is not followed.
fn open_directory(path: &Path) -> anyhow::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .with_context(|| format!("open {}, which must be a directory", path.display()))
}

fn set_mode(file: &File, path: &Path, mode: u32) -> anyhow::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))
}

fn sync_directory(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.with_context(|| format!("write {} to the disk", parent.display()))
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether it went: what is in it belongs to somebody else.
fn remove_empty(path: &Path) -> anyhow::Result<bool> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound};
    match fs::remove_dir(path) {
        Err(error) if [DirectoryNotEmpty, NotFound].contains(&error.kind()) => Ok(false),
        removed => {
            removed.with_context(|| format!("remove {}", path.display()))?;
            Ok(true)
        }
    }
}

/// With the system's tool: `serve` may have nested directories deeper than there are descriptors
/// and stack for a recursion, and what is mounted inside is not ours.
fn remove_tree(path: &Path) -> anyhow::Result<()> {
    run(Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(path))
}

fn remove_user(name: &str) -> anyhow::Result<()> {
    if user(name)?.is_some() {
        run(Command::new("userdel").arg(name)).with_context(|| format!("remove user `{name}`"))?;
    }
    // `userdel` takes the group along where it is nobody else's.
    if group(name)?.is_some_and(|group| group.mem.is_empty()) {
        run(Command::new("groupdel").arg(name))
            .with_context(|| format!("remove group `{name}`"))?;
    }
    Ok(())
}
