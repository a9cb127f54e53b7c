//! What there is to do, found out by looking and changing nothing.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::unistd::{Gid, Group, Uid, User};

use super::pieces::{Directory, Kind, Owner, Piece, directories, pieces};
use super::record::Record;
use super::service::ServiceChange;
use super::target::Target;

/// This very program, also when its file was replaced or removed since it started.
pub const OWN_PROGRAM: &str = "/proc/self/exe";

/// No text of ours is larger; what lies in its place and is, is not read into memory.
const TEXT_BYTES_MAX: u64 = 4 << 20;
const COMPARE_BYTES: usize = 1 << 16;

pub enum Change {
    MakeUser,
    MakeDirectory(Directory),
    /// It is there and has another owner or mode.
    MendDirectory(Directory),
    Write {
        piece: Piece,
        /// What lies there, if it is a text of ours and another one.
        before: Option<Vec<u8>>,
    },
    Remove(PathBuf),
    /// Goes if nothing is in it.
    RemoveDirectory(PathBuf),
    /// Goes with everything in it.
    RemoveTree(PathBuf),
    RemoveUser,
    Service(ServiceChange),
}

#[derive(Default)]
pub struct Plan {
    pub changes: Vec<Change>,
    /// What to know before it is done.
    pub notes: Vec<String>,
    /// What is left to the operator afterwards.
    pub next: Vec<String>,
}

/// The files of an installation or upgrade, without its services.
pub fn of_files(target: &Target, before: Option<&Record>) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    let mut record = Record::new(target);
    if let Some(before) = before {
        record.directories.clone_from(&before.directories);
        record.config.clone_from(&before.config);
        record.made_user = before.made_user && before.user == target.user;
    }
    if target.destdir.is_none() {
        refuse_out_of_reach(target)?;
        plan.notes.extend(writable_by_others(&target.program(), "a program that root runs")?);
        plan.notes.extend(writable_by_others(&target.data, "what root's launcher works in")?);
        if user(&target.user)?.is_none() {
            plan.changes.push(Change::MakeUser);
            record.made_user = true;
        }
        for directory in directories(target) {
            plan.directory(target, directory, &mut record)?;
        }
    }
    for piece in pieces(target)? {
        record.files.insert(piece.path.clone());
        plan.piece(target, piece, &mut record)?;
    }
    let Some(before) = before.filter(|_| target.destdir.is_none()) else {
        plan.record(target, &record)?;
        plan.record_first(target);
        return Ok(plan);
    };
    for obsolete in before.files.difference(&record.files) {
        if is_there(obsolete)? {
            plan.changes.push(Change::Remove(obsolete.clone()));
        }
    }
    if before.data != target.data {
        let (old, new) = (before.data.display(), target.data.display());
        plan.notes.push(format!("{old} stays as it is; the service begins anew in {new}"));
    }
    plan.record(target, &record)?;
    Ok(plan)
}

// === impl Plan ===

impl Plan {
    /// Whether something at that path is written.
    pub fn writes(&self, path: &Path) -> bool {
        self.changes
            .iter()
            .any(|change| matches!(change, Change::Write { piece, .. } if piece.path == path))
    }

    /// Writes down what is installed, if that is not what is written there.
    pub fn record(&mut self, target: &Target, record: &Record) -> anyhow::Result<()> {
        if target.destdir.is_some() {
            return Ok(());
        }
        let piece = Piece {
            path: target.record(),
            kind: Kind::Generated,
            mode: 0o644,
            owner: Owner::Root,
            content: record.text(),
        };
        self.piece(target, piece, &mut record.clone())
    }

    /// The first time, what will be there is written down before it is: so that a run that is killed
    /// can be taken up, and taken back.
    fn record_first(&mut self, target: &Target) {
        if target.destdir.is_some() {
            return;
        }
        let record = target.record();
        let is_first = |change: &Change| match change {
            Change::MakeDirectory(directory) => record.parent() == Some(&directory.path),
            Change::Write { piece, .. } => piece.path == record,
            _ => false,
        };
        let changes = std::mem::take(&mut self.changes);
        let (first, rest): (Vec<Change>, Vec<Change>) = changes.into_iter().partition(is_first);
        self.changes.extend(first.into_iter().chain(rest));
    }

    fn directory(
        &mut self,
        target: &Target,
        directory: Directory,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        let Some(metadata) = look(&directory.path)? else {
            self.parents(target, &directory.path, record)?;
            record.directories.insert(directory.path.clone());
            self.changes.push(Change::MakeDirectory(directory));
            return Ok(());
        };
        if !metadata.is_dir() {
            bail!("{} is in the way: it is not a directory", directory.path.display());
        }
        let path = directory.path.display();
        let service = user(&target.user)?;
        let wanted = ids(directory.owner, service.as_ref());
        let of_service = service.as_ref().map(|user| user.uid.as_raw());
        let is_foreign = metadata.uid() != 0 && Some(metadata.uid()) != of_service;
        if is_foreign {
            bail!(
                "{path} belongs to user {}, and the service would run as `{}`: give it to that one \
                 (`chown -R`), name that one's user with --user, or another --data",
                metadata.uid(),
                target.user
            );
        }
        let is_right = wanted.is_some_and(|(uid, gid)| {
            (uid.as_raw(), gid.as_raw()) == (metadata.uid(), metadata.gid())
        });
        if !is_right || metadata.mode() & 0o7777 != directory.mode {
            self.changes.push(Change::MendDirectory(directory));
        }
        Ok(())
    }

    fn piece(&mut self, target: &Target, piece: Piece, record: &mut Record) -> anyhow::Result<()> {
        let place = target.place(&piece.path);
        let Some(metadata) = look(&place)? else {
            self.parents(target, &piece.path, record)?;
            if piece.kind == Kind::Config {
                record.config = Some(String::from_utf8_lossy(&piece.content).into_owned());
            }
            self.changes.push(Change::Write { piece, before: None });
            return Ok(());
        };
        if !metadata.is_file() {
            bail!(
                "{} is in the way: it is not a file (if it masks a unit, run `systemctl unmask`)",
                place.display()
            );
        }
        // Once written it is the operator's.
        if piece.kind == Kind::Config && target.destdir.is_none() {
            return Ok(());
        }
        let is_same = match piece.kind {
            Kind::Program => is_same_file(&place, Path::new(OWN_PROGRAM))?,
            _ => read(&place)?.as_ref() == Some(&piece.content),
        };
        let is_ours = target.destdir.is_some() || (metadata.uid(), metadata.gid()) == (0, 0);
        if is_same && is_ours && metadata.mode() & 0o7777 == piece.mode {
            return Ok(());
        }
        let before = match piece.kind {
            Kind::Program => None,
            _ => read(&place)?,
        };
        self.changes.push(Change::Write { piece, before });
        Ok(())
    }

    /// The directories on the way to a path that are missing, from the top down.
    fn parents(&mut self, target: &Target, path: &Path, record: &mut Record) -> anyhow::Result<()> {
        let planned: BTreeSet<PathBuf> = self
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::MakeDirectory(directory) => Some(directory.path.clone()),
                _ => None,
            })
            .collect();
        let mut missing = Vec::new();
        for parent in path.ancestors().skip(1) {
            if planned.contains(parent) || look_through(&target.place(parent))?.is_some() {
                break;
            }
            missing.push(parent.to_owned());
        }
        for path in missing.into_iter().rev() {
            record.directories.insert(path.clone());
            let directory = Directory { path, mode: 0o755, owner: Owner::Root };
            self.changes.push(Change::MakeDirectory(directory));
        }
        Ok(())
    }
}

/// The service's user must be able to walk to its directories.
fn refuse_out_of_reach(target: &Target) -> anyhow::Result<()> {
    for parent in target.data.ancestors().skip(1) {
        if look_through(parent)?.is_some_and(|found| found.mode() & 0o001 == 0) {
            bail!(
                "user `{}` could not reach {}: let others pass through {parent} (`chmod o+x \
                 {parent}`), or name another directory with --data",
                target.user,
                target.data.display(),
                parent = parent.display()
            );
        }
    }
    Ok(())
}

/// The launcher runs as root from there.
fn writable_by_others(path: &Path, what: &str) -> anyhow::Result<Option<String>> {
    for parent in path.ancestors().skip(1) {
        let is_open = |found: Metadata| found.uid() != 0 || found.mode() & 0o022 != 0;
        if look_through(parent)?.is_some_and(is_open) {
            let parent = parent.display();
            return Ok(Some(format!(
                "others than root can write in {parent}, and with it replace {what}"
            )));
        }
    }
    Ok(None)
}

pub fn user(name: &str) -> anyhow::Result<Option<User>> {
    let found = User::from_name(name).with_context(|| format!("look for user `{name}`"))?;
    if found.as_ref().is_some_and(|user| user.uid.is_root()) {
        bail!("user `{name}` is root by another name: the service must not be");
    }
    Ok(found)
}

pub fn group(name: &str) -> anyhow::Result<Option<Group>> {
    Group::from_name(name).with_context(|| format!("look for group `{name}`"))
}

/// `None` while the service's user does not exist.
pub fn ids(owner: Owner, service: Option<&User>) -> Option<(Uid, Gid)> {
    let root = (Uid::from_raw(0), Gid::from_raw(0));
    match (owner, service) {
        (Owner::Root, _) => Some(root),
        (Owner::RootForService, Some(user)) => Some((root.0, user.gid)),
        (Owner::Service, Some(user)) => Some((user.uid, user.gid)),
        (_, None) => None,
    }
}

pub fn is_there(path: &Path) -> anyhow::Result<bool> {
    Ok(look(path)?.is_some())
}

/// Follows no link: what lies at the path itself.
fn look(path: &Path) -> anyhow::Result<Option<Metadata>> {
    found(fs::symlink_metadata(path), path)
}

/// On the way to a path, a link of the system's is as good as a directory.
fn look_through(path: &Path) -> anyhow::Result<Option<Metadata>> {
    found(fs::metadata(path), path)
}

fn found(result: io::Result<Metadata>, path: &Path) -> anyhow::Result<Option<Metadata>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).with_context(|| format!("look at {}", path.display())),
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut content)?;
    Ok(Some(content).filter(|content| content.len() as u64 <= TEXT_BYTES_MAX))
}

fn is_same_file(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (a, b) = (one.metadata()?, other.metadata()?);
    if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
        return Ok(true);
    }
    if a.len() != b.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let count = one.read(&mut left)?;
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}
