//! A PostgreSQL server of a test's own: Debian's programs, a temporary cluster, no root.
//!
//! The cluster is copied from one that is made once per machine, with everything synced as in
//! production. The server listens on a loopback port and on a socket in its directory, and is
//! ended and removed with the value.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;

use crate::skip::skip;

const PROGRAMS: &str = "/usr/lib/postgresql";
/// On a disk, and open to be walked through: the server is another user.
const PARENT: &str = "/var/tmp";
/// The user that Debian's package makes; the server refuses to be root.
const SERVER_USER: &str = "postgres";
/// The owner of everything in a test's cluster.
const SUPERUSER: &str = "sinew";
/// A busy machine takes its time.
const READY_WAIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Small, so that many run side by side.
const SETTINGS: &str = "\
shared_buffers = '16MB'
max_wal_size = '96MB'
min_wal_size = '32MB'
log_min_messages = warning
listen_addresses = '127.0.0.1'
";

/// What a test wants different.
#[derive(Default)]
pub struct PostgresSettings {
    /// Lines of `postgresql.conf`, after the usual ones.
    pub config: String,
    /// Lines of `pg_hba.conf`; empty lets everybody on this machine in.
    pub hba: String,
}

/// How a server is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In order, its connections cut.
    Fast,
    /// At once, without a checkpoint: it recovers at the next start.
    Immediate,
    /// SIGKILL to the first process; the others find out.
    Kill,
}

/// Ended and removed when it is dropped.
pub struct Postgres {
    dir: TempDir,
    programs: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Postgres {
    /// Starts a server, or says loudly why `test` is skipped.
    pub fn start(test: &str) -> Option<Postgres> {
        Self::start_with(test, PostgresSettings::default())
    }

    /// # Panics
    /// When the programs are there and the server does not start.
    pub fn start_with(test: &str, settings: PostgresSettings) -> Option<Postgres> {
        let Some(programs) = programs() else {
            skip(test, &format!("no PostgreSQL in {PROGRAMS}: run `scripts/setup.sh test`"));
            return None;
        };
        let template = template(&programs);
        let mut server = Self { dir: temporary(), programs, port: free_port(), server: None };
        copy(&template, &server.data());
        server.configure(&settings);
        server.start_again();
        Some(server)
    }

    fn configure(&self, settings: &PostgresSettings) {
        let mut config =
            File::options().append(true).open(self.data().join("postgresql.conf")).unwrap();
        let directory = self.socket_directory();
        let (port, sockets) = (self.port, directory.display());
        write!(
            config,
            "{SETTINGS}port = {port}\nunix_socket_directories = '{sockets}'\n{}\n",
            settings.config
        )
        .unwrap();
        if !settings.hba.is_empty() {
            fs::write(self.data().join("pg_hba.conf"), format!("{}\n", settings.hba)).unwrap();
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn user(&self) -> &'static str {
        SUPERUSER
    }

    pub fn socket_directory(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `postgres://user@127.0.0.1:port/postgres`
    pub fn url(&self) -> String {
        format!("postgres://{SUPERUSER}@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts the server after it was ended, and waits until it lets clients in.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let until = Instant::now() + READY_WAIT;
        loop {
            let mut child = self.spawn();
            if self.becomes_ready(&mut child, until) {
                self.server = Some(child);
                return;
            }
            // The processes of one that was killed may hold its memory a little longer.
            assert!(Instant::now() < until, "PostgreSQL does not start:\n{}", self.log());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    /// The server says what it is in the last line of its pid file. `false` when it ended instead.
    fn becomes_ready(&self, child: &mut Child, until: Instant) -> bool {
        while Instant::now() < until {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            let mut lines = text.lines();
            let of = lines.next().and_then(|line| line.trim().parse::<u32>().ok());
            let status = lines.next_back().map(str::trim);
            if of == Some(child.id()) && matches!(status, Some("ready" | "standby")) {
                return true;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }

    /// Ends the server and waits until its first process is gone.
    pub fn end(&mut self, ending: Ending) {
        let mut server = self.server.take().expect("the server runs");
        let signal = match ending {
            Ending::Fast => Signal::SIGINT,
            Ending::Immediate => Signal::SIGQUIT,
            Ending::Kill => Signal::SIGKILL,
        };
        kill(Pid::from_raw(server.id() as i32), signal).unwrap();
        server.wait().unwrap();
    }

    /// Reads its configuration files again.
    pub fn reload(&self) {
        let server = self.server.as_ref().expect("the server runs");
        kill(Pid::from_raw(server.id() as i32), Signal::SIGHUP).unwrap();
    }

    /// What a statement answers, as its superuser, one line a row.
    ///
    /// # Panics
    /// When it fails.
    pub fn sql(&self, statement: &str) -> String {
        let mut command = self.program("psql");
        command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-d", "postgres"]);
        command.arg("-h").arg(self.socket_directory()).arg("-p").arg(self.port.to_string());
        let output = command.args(["-c", statement]).stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}: {errors}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Tables that are made from now on are on a disk of their own, of so many MiB; says where, or
    /// loudly why `test` is skipped.
    pub fn keep_tables_on_a_small_disk(&self, test: &str, mib: u32) -> Option<PathBuf> {
        let disk = self.small_disk();
        fs::create_dir(&disk).unwrap();
        if !mount(&disk, mib) {
            skip(test, "cannot mount a tmpfs");
            return None;
        }
        let tables = disk.join("tables");
        fs::create_dir(&tables).unwrap();
        give(&tables);
        self.sql(&format!("CREATE TABLESPACE small LOCATION '{}'", tables.display()));
        self.sql(&format!("ALTER ROLE {SUPERUSER} SET default_tablespace = 'small'"));
        Some(disk)
    }

    fn small_disk(&self) -> PathBuf {
        self.dir.path().join("small")
    }

    /// A standby that follows this server, and that this one waits for at every commit.
    pub fn synchronous_standby(&self) -> Postgres {
        let dir = temporary();
        let port = free_port();
        let mut standby = Self { dir, programs: self.programs.clone(), port, server: None };
        let mut command = self.program("pg_basebackup");
        command.args(["-U", SUPERUSER, "-R", "-X", "stream", "-c", "fast", "-N", "-D"]);
        command.arg(standby.data());
        let from = format!(
            "host={} port={} application_name=standby",
            self.socket_directory().display(),
            self.port
        );
        let output = command.args(["-d", &from]).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        standby.configure(&PostgresSettings::default());
        standby.start_again();
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
        self.sql("SELECT pg_reload_conf()");
        let until = Instant::now() + READY_WAIT;
        while self.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "1"
        {
            assert!(Instant::now() < until, "the standby does not follow:\n{}", standby.log());
            std::thread::sleep(LOOK_EVERY);
        }
        standby
    }

    /// Makes a standby the server that takes writes.
    pub fn promote(&self) {
        // It followed one that waited for it; it has nobody to wait for.
        self.sql("SELECT pg_promote(true)");
    }

    /// Puts a file into the cluster, as the server's own.
    pub fn put(&self, file: &Path, name: &str) {
        let to = self.data().join(name);
        fs::copy(file, &to).unwrap();
        give(&to);
        fs::set_permissions(&to, Permissions::from_mode(0o600)).unwrap();
    }

    /// What the server said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    fn program(&self, name: &str) -> Command {
        as_server_user(&self.programs.join(name))
    }
}

impl Drop for Postgres {
    /// It must not panic: it may run in a panic.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- PostgreSQL ---\n{}", self.log());
        }
        if let Some(mut server) = self.server.take() {
            let _ = kill(Pid::from_raw(server.id() as i32), Signal::SIGQUIT);
            let _ = server.wait();
        }
        if self.small_disk().exists() {
            // The folder is removed next; a mount that stays would be reported by that.
            let _ = Command::new("umount").arg("-l").arg(self.small_disk()).status();
        }
    }
}

/// The newest version that is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(PROGRAMS).ok()?.flatten();
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| version(path))?;
    let programs = newest.join("bin");
    programs.join("postgres").is_file().then_some(programs)
}

/// Another program, as the user who may run a server.
fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if nix::unistd::geteuid().is_root() {
        let user = User::from_name(SERVER_USER).ok().flatten().expect("the package made its user");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
    command
}

/// A folder that the server's user owns.
fn temporary() -> TempDir {
    let dir = tempfile::Builder::new().prefix("sinew-postgres-").tempdir_in(PARENT).unwrap();
    give(dir.path());
    dir
}

fn give(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = User::from_name(SERVER_USER).ok().flatten().expect("the package made its user");
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// A small file system.
fn mount(folder: &Path, mib: u32) -> bool {
    let options = format!("size={mib}m");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(folder).status();
    let mounted = mounted.is_ok_and(|status| status.success());
    if mounted {
        give(folder);
    }
    mounted
}

/// A cluster to copy from, made by the first test on this machine that needs one.
fn template(programs: &Path) -> PathBuf {
    let uid = nix::unistd::geteuid();
    let version = programs.parent().and_then(Path::file_name).unwrap_or_default();
    let home = Path::new(PARENT)
        .join(format!("sinew-postgres-template-{uid}-{}", version.to_string_lossy()));
    fs::create_dir_all(&home).unwrap();
    give(&home);
    let lock = File::create(home.join("lock")).unwrap();
    lock.lock().unwrap();
    let made = home.join("data");
    if !made.is_dir() {
        let making = home.join("making");
        if making.exists() {
            fs::remove_dir_all(&making).unwrap();
        }
        let mut command = as_server_user(&programs.join("initdb"));
        command.args(["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-D"]);
        let output = command.arg(&making).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::rename(&making, &made).unwrap();
    }
    made
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "copy {}", from.display());
}

/// Nobody's at the moment; taken by whoever is quickest, which has not been anybody else so far.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
