//! The jailed unpacker: reads an archive that anyone may have written, and puts its tree into a
//! directory. Everything below this module runs in the jail only.

mod documents;
pub mod error;
pub mod fuzz;
mod inventory;
mod jail;
mod layout;
pub mod limits;
mod place;
mod source;
mod stream;
mod tar;
mod tree;
mod users;
mod whiteouts;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

pub use inventory::this_architecture;

use crate::config::{ImageSource, SourceKind};
use crate::wire::{self, Job, Report, ToHost, ToUnpacker};
use error::UnpackError;
use source::{ARCHIVE, Source};
use tar::{Archive, End};
use tree::Tree;

/// How often a bar moves, and how soon a dead parent is noticed.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The process that started this one, outside the jail.
pub struct Host {
    socket: UnixStream,
}

/// Counts what is read, and tells the host.
#[derive(Clone)]
pub struct Watch(Rc<Watched>);

struct Watched {
    host: Rc<RefCell<Host>>,
    done: Cell<u64>,
    total: Cell<u64>,
    told: Cell<Instant>,
}

/// The unpacker's whole life: standard input is a socket of [`crate::wire`], standard output is
/// kept open and not used. Says whether the host heard what became of it.
pub fn main() -> bool {
    match separated() {
        Ok(host) => finish(host),
        Err(message) => {
            let failed = ToHost::Failed(UnpackError::Internal { message });
            stdin_socket().and_then(|socket| wire::send(&socket, &failed, &[])).is_ok()
        }
    }
}

fn stdin_socket() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

fn separated() -> Result<Host, String> {
    jail::separate().map_err(|error| error.to_string())?;
    let socket = stdin_socket().map_err(|error| error.to_string())?;
    Ok(Host { socket })
}

fn finish(host: Host) -> bool {
    let host = Rc::new(RefCell::new(host));
    // A panic is a mistake of ours; whoever waits shall read of it rather than of a signal.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serve(&host)));
    let last = match outcome {
        Ok(Ok(report)) => ToHost::Done(Box::new(report)),
        Ok(Err(error)) => ToHost::Failed(error),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            ToHost::Failed(UnpackError::Internal { message: error::shown(text.as_bytes()) })
        }
    };
    host.try_borrow().is_ok_and(|host| wire::send(&host.socket, &last, &[]).is_ok())
}

fn serve(host: &Rc<RefCell<Host>>) -> Result<Report, UnpackError> {
    let internal = |error: &dyn ToString| UnpackError::Internal { message: error.to_string() };
    let (job, mut descriptors) = {
        let host = host.borrow();
        wire::send(&host.socket, &ToHost::Separated, &[]).map_err(|error| internal(&error))?;
        match wire::receive_with(&host.socket).map_err(|error| internal(&error))? {
            (ToUnpacker::Go(job), descriptors) => (job, descriptors.into_iter()),
            _ => return Err(internal(&"a wrong first message")),
        }
    };
    jail::close(host.borrow().socket.as_fd()).map_err(|error| internal(&error))?;
    let root = descriptors.next().ok_or_else(|| internal(&"there is no root"))?;
    unpack(&job, root, descriptors.next().map(File::from), host)
}

fn unpack(
    job: &Job,
    root: OwnedFd,
    archive: Option<File>,
    host: &Rc<RefCell<Host>>,
) -> Result<Report, UnpackError> {
    let watch = Watch::new(Rc::clone(host));
    check_case(&root)?;
    let source = match archive {
        Some(file) => Source::open(file, &root, &job.limits, &watch)?,
        None => Source::Directory(Rc::clone(host)),
    };
    let mut tree = Tree::new(root, job.limits);
    let (source, config) = match &source {
        Source::Rootfs(blob) => (rootfs(blob, job, &mut tree, &watch)?, None),
        layout => {
            let done = layout::unpack(layout, job, &mut tree, &watch)?;
            (done.source, Some(done.config))
        }
    };
    if tree.entries() == 0 {
        return Err(UnpackError::Empty);
    }
    inventory::check_machine(tree.root(), &job.architecture)?;
    Ok(Report { source, config, packages: inventory::packages(tree.root()) })
}

/// The digest of such an archive is that of the file as it was given.
fn rootfs(
    blob: &source::Blob,
    job: &Job,
    tree: &mut Tree,
    watch: &Watch,
) -> Result<ImageSource, UnpackError> {
    if job.reference.is_some() {
        return Err(UnpackError::unsupported(
            "`--ref` for a root filesystem archive, which is one image",
        ));
    }
    watch.expect(blob.length);
    let mut stream = source::unpacked(blob, &job.limits, watch)?;
    tree.unpack(&mut Archive::new(&mut stream, End::Marked))?;
    let (packed, unpacked) = stream.finish()?;
    Ok(ImageSource {
        kind: SourceKind::Rootfs,
        from: String::new(),
        reference: None,
        digest: packed.digest(),
        diff_ids: vec![unpacked.digest()],
        left_out: tree.left_out,
    })
}

/// On a file system that takes `A` for `a`, an archive could write one file through another's name.
fn check_case(root: &OwnedFd) -> Result<(), UnpackError> {
    use rustix::fs::{AtFlags, Mode, mkdirat, statat, unlinkat};
    let failed = || UnpackError::system("write to the image cache");
    mkdirat(root, ".case", Mode::RWXU).map_err(failed())?;
    let ignores_case = statat(root, ".CASE", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    unlinkat(root, ".case", AtFlags::REMOVEDIR).map_err(failed())?;
    match ignores_case {
        true => Err(UnpackError::unsupported("an image cache on a file system that ignores case")),
        false => Ok(()),
    }
}

// === impl Host ===

impl Host {
    /// A file of the layout's directory, which only the host can open.
    pub fn open(&mut self, name: &str) -> Result<Option<File>, UnpackError> {
        let internal = |error: io::Error| UnpackError::Internal { message: error.to_string() };
        let request = ToHost::Open { name: name.to_owned() };
        wire::send(&self.socket, &request, &[]).map_err(internal)?;
        match wire::receive_with(&self.socket).map_err(internal)? {
            (ToUnpacker::Opened { found: false }, _) => Ok(None),
            (ToUnpacker::Opened { found: true }, descriptors) => {
                let file = descriptors.into_iter().next().map(File::from);
                Ok(Some(
                    file.ok_or_else(|| UnpackError::Missing {
                        what: error::shown(name.as_bytes()),
                    })?,
                ))
            }
            (ToUnpacker::Go(_), _) => {
                Err(UnpackError::Internal { message: "out of order".to_owned() })
            }
        }
    }
}

// === impl Watch ===

impl Watch {
    fn new(host: Rc<RefCell<Host>>) -> Self {
        let (done, total) = (Cell::new(0), Cell::new(0));
        Self(Rc::new(Watched { host, done, total, told: Cell::new(Instant::now()) }))
    }

    /// How much there is to read from now on.
    pub fn expect(&self, total: u64) {
        self.0.done.set(0);
        self.0.total.set(total);
    }

    pub fn read(&self, bytes: u64) -> io::Result<()> {
        let watched = &self.0;
        watched.done.set(watched.done.get() + bytes);
        if watched.told.get().elapsed() < PROGRESS_EVERY {
            return Ok(());
        }
        watched.told.set(Instant::now());
        let progress = ToHost::Progress { done: watched.done.get(), total: watched.total.get() };
        let sent = wire::send(&watched.host.borrow().socket, &progress, &[]);
        sent.map_err(|_| {
            UnpackError::Internal { message: format!("nobody waits for {ARCHIVE} any more") }.into()
        })
    }
}
