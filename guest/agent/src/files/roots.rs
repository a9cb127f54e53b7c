//! Paths that stay inside their roots.
//!
//! A walk goes one name at a time from the descriptor of a root. Each step opens the name without
//! following links; a link is read and its target takes the place of the name. So an absolute link
//! into an allowed root works, a link that leaves is noticed where it leaves, and nobody who swaps
//! a directory for a link meanwhile can make the walk open anything else than it believes.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use guest_protocol::Root;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Links followed in one walk, as the kernel does.
const HOPS_MAX: u32 = 40;
/// Names in one path, targets of links included.
const NAMES_MAX: usize = 4096;

pub struct Roots {
    roots: Vec<OpenRoot>,
    /// The first root, where relative paths start.
    workdir: Vec<OsString>,
}

struct OpenRoot {
    text: String,
    names: Vec<OsString>,
    directory: Rc<OwnedFd>,
    writable: bool,
}

/// Where a path leads.
pub enum Found {
    /// The root itself.
    Root { directory: Rc<OwnedFd>, place: Place },
    /// Something that is there, in the directory it was found in.
    Entry { directory: Rc<OwnedFd>, name: OsString, stat: Stat, place: Place },
    /// Nothing, from `name` on; `rest` are the names below it.
    Missing { directory: Rc<OwnedFd>, name: OsString, rest: Vec<OsString>, place: Place },
}

/// The same as text, and what may be done there.
pub struct Place {
    /// Absolute, without links.
    pub path: OsString,
    /// The read-only root it is in, if it is in one.
    pub read_only: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum WalkError {
    Outside,
    TooManyLinks,
    Os(Errno),
}

impl From<Errno> for WalkError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::LOOP => WalkError::TooManyLinks,
            other => WalkError::Os(other),
        }
    }
}

/// Opens `name`, one name without a slash, in `directory`, without following a link.
pub fn open_name(
    directory: &OwnedFd,
    name: &OsStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(directory, name, flags, mode, resolve) {
        // Kernels before 5.6 and filters without it: for a single name that is not `..`, which is
        // all that comes here, O_NOFOLLOW alone says the same.
        Err(Errno::NOSYS) => rustix::fs::openat(directory, name, flags, mode),
        opened => opened,
    }
}

// === impl Roots ===

impl Roots {
    /// A root that is not there holds nothing, and is left out.
    pub fn open(roots: &[Root]) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |root: &Root| {
            let directory = rustix::fs::open(root.path.as_str(), flags, Mode::empty()).ok()?;
            Some(OpenRoot {
                text: root.path.clone(),
                names: lexical(&[], OsStr::new(&root.path)),
                directory: Rc::new(directory),
                writable: root.writable,
            })
        };
        let first = roots.first().map_or("/", |root| root.path.as_str());
        Self {
            roots: roots.iter().filter_map(open).collect(),
            workdir: lexical(&[], OsStr::new(first)),
        }
    }

    pub fn has_several(&self) -> bool {
        self.roots.len() > 1
    }

    /// Walks to `path`. `.` and `..` that the caller wrote are taken by their text; those in the
    /// targets of links by what the directories are.
    pub fn find(&self, path: &str) -> Result<Found, WalkError> {
        let names = lexical(&self.workdir, OsStr::new(path));
        let mut walk = Walk {
            roots: self,
            absolute: Vec::new(),
            inside: None,
            pending: names.into(),
            hops: 0,
        };
        walk.enter_root();
        walk.run()
    }
}

/// The names of `path`, which starts at `base` if it is relative, with `.` and `..` taken out.
fn lexical(base: &[OsString], path: &OsStr) -> Vec<OsString> {
    let bytes = path.as_bytes();
    let mut names = if bytes.starts_with(b"/") { Vec::new() } else { base.to_vec() };
    for name in bytes.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    names
}

// === impl Walk ===

struct Walk<'a> {
    roots: &'a Roots,
    /// Where the walk is; real names only.
    absolute: Vec<OsString>,
    /// The root it is in, and the directories below it, innermost last.
    inside: Option<(&'a OpenRoot, Vec<Rc<OwnedFd>>)>,
    pending: VecDeque<OsString>,
    hops: u32,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<Found, WalkError> {
        while let Some(name) = self.pending.pop_front() {
            if name == ".." {
                self.go_up();
            } else if self.inside.is_some() {
                if let Some(found) = self.step(name)? {
                    return Ok(found);
                }
            } else {
                // Outside of all roots nothing is looked at; the names may yet lead into one.
                self.absolute.push(name);
                self.enter_root();
            }
        }
        let directory = self.directory().ok_or(WalkError::Outside)?;
        Ok(Found::Root { directory, place: self.place() })
    }

    /// Takes one name inside a root. `Some` when the walk has come to its end.
    fn step(&mut self, name: OsString) -> Result<Option<Found>, WalkError> {
        let directory = self.directory().ok_or(WalkError::Outside)?;
        let node = match open_name(&directory, &name, OFlags::PATH, Mode::empty()) {
            Ok(node) => node,
            Err(Errno::NOENT) => {
                let rest: Vec<OsString> = self.pending.drain(..).collect();
                self.absolute.push(name.clone());
                let mut place = self.place();
                for name in &rest {
                    place.path.push("/");
                    place.path.push(name);
                }
                return Ok(Some(Found::Missing { directory, name, rest, place }));
            }
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&node)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                self.follow(&node)?;
                Ok(None)
            }
            FileType::Directory => {
                self.absolute.push(name.clone());
                if self.pending.is_empty() && !self.is_root() {
                    return Ok(Some(Found::Entry { directory, name, stat, place: self.place() }));
                }
                if !self.enter_root()
                    && let Some((_, below)) = &mut self.inside
                {
                    below.push(Rc::new(node));
                }
                Ok(None)
            }
            _ if self.pending.is_empty() => {
                self.absolute.push(name.clone());
                Ok(Some(Found::Entry { directory, name, stat, place: self.place() }))
            }
            _ => Err(WalkError::Os(Errno::NOTDIR)),
        }
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<(), WalkError> {
        self.hops += 1;
        if self.hops > HOPS_MAX {
            return Err(WalkError::TooManyLinks);
        }
        let target = rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes();
        if target.starts_with(b"/") {
            self.absolute.clear();
            self.inside = None;
            self.enter_root();
        }
        let names = target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        for name in names.rev() {
            self.pending.push_front(OsStr::from_bytes(name).to_owned());
        }
        if self.pending.len() > NAMES_MAX {
            return Err(WalkError::TooManyLinks);
        }
        Ok(())
    }

    fn go_up(&mut self) {
        self.absolute.pop();
        let still_inside = match &mut self.inside {
            Some((_, below)) => below.pop().is_some(),
            None => false,
        };
        if !still_inside {
            self.inside = None;
            self.reenter();
        }
    }

    /// After leaving a root upwards: the walk may be in the middle of another one that contains
    /// it. That one is walked again from its own descriptor.
    fn reenter(&mut self) {
        let above = self.roots.roots.iter().filter(|root| self.absolute.starts_with(&root.names));
        let Some(root) = above.max_by_key(|root| root.names.len()) else { return };
        let below = self.absolute.split_off(root.names.len());
        for name in below.into_iter().rev() {
            self.pending.push_front(name);
        }
        self.inside = Some((root, Vec::new()));
    }

    /// Whether the walk stands on a root; from then on it is in that one.
    fn enter_root(&mut self) -> bool {
        let root = self.roots.roots.iter().find(|root| root.names == self.absolute);
        if let Some(root) = root {
            self.inside = Some((root, Vec::new()));
        }
        root.is_some()
    }

    fn is_root(&self) -> bool {
        self.roots.roots.iter().any(|root| root.names == self.absolute)
    }

    fn directory(&self) -> Option<Rc<OwnedFd>> {
        let (root, below) = self.inside.as_ref()?;
        Some(below.last().unwrap_or(&root.directory).clone())
    }

    fn place(&self) -> Place {
        let mut path = Vec::new();
        for name in &self.absolute {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        if path.is_empty() {
            path.push(b'/');
        }
        let root = self.inside.as_ref().map(|(root, _)| *root);
        let read_only = root.filter(|root| !root.writable).map(|root| root.text.clone());
        Place { path: OsString::from_vec(path), read_only }
    }
}
