//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use base_types::{AgentId, ByteSize, EnvironmentId, HumanDuration, SessionId, TenantId};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use guest_protocol::terminal::TerminalName;
use sandbox_image::ImportLimits;

use crate::cmd::shell::EscapeKey;

/// The hands for AI agents: runs the tool calls of agent sessions in sandboxes of your own.
#[derive(Debug, Parser)]
#[command(name = "sinew", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Start with `sinew doctor`; see it work with `sinew demo`.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the sessions of the configured environments
    Serve(ServeArgs),
    /// Run the development brain: a scripted stand-in for the agent service
    Brain(BrainArgs),
    /// Show everything at work on a temporary installation, then remove it
    Demo(DemoArgs),
    /// Check this machine and this installation, with a fix for what is wrong
    Doctor(DoctorArgs),
    /// Build, import, list and remove the images that sandboxes run from
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look at sessions and stop them
    #[command(subcommand)]
    Session(SessionCommand),
    /// Check the profiles, and say why a session gets which one
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Run a program in a session's sandbox
    Exec(ExecArgs),
    /// Open a shell in a session's sandbox, or come back to one
    Shell(ShellArgs),
    /// Measure this machine against our goals
    Bench(BenchArgs),
    /// Make a service of this machine, upgrade it, or remove it
    Install(InstallArgs),
    /// Print what makes a shell complete the commands of sinew
    Completions(CompletionsArgs),
    /// Run the privileged launcher (`serve` starts it where nobody else does)
    #[command(hide = true)]
    Launcher(crate::cmd::launcher::LauncherArgs),
    /// Unpack an archive in a jail (`image import` starts it)
    #[command(hide = true)]
    Unpack,
    /// End the launcher of an installation, with every sandbox and volume it has
    #[command(hide = true)]
    Teardown(TeardownArgs),
    /// Print a generated reference page
    #[command(hide = true)]
    Reference(ReferenceArgs),
}

/// Which installation.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// The installation's directory [default: /var/lib/sinew for root, else ~/.local/share/sinew]
    #[arg(long, value_name = "DIR", env = "SINEW_DATA")]
    pub data: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct ImagesArgs {
    /// The image cache; installations may share one [default: images/ in the data directory]
    #[arg(long, value_name = "DIR", env = "SINEW_IMAGES")]
    pub images: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct JsonArgs {
    /// Print JSON with stable keys instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    /// The configuration file; not needed when ANTHROPIC_ENVIRONMENT_ID and
    /// ANTHROPIC_ENVIRONMENT_KEY are set
    #[arg(long, value_name = "FILE", env = "SINEW_CONFIG")]
    pub config: Option<PathBuf>,
    /// Open the API's socket to this group, by number
    #[arg(long, value_name = "GID")]
    pub socket_group: Option<u32>,
    /// How log lines on stderr look
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "SINEW_LOG_FORMAT")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub struct BrainArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8484")]
    pub listen: SocketAddr,
    /// A directory of scenario files (NAME.toml), beside the built-in ones
    #[arg(long, value_name = "DIR")]
    pub scenarios: Option<PathBuf>,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The image cache that stays between runs
    #[arg(long, value_name = "DIR", env = "SINEW_IMAGES", default_value = crate::installation::SHARED_IMAGES)]
    pub images: PathBuf,
    /// Keep the journal in this PostgreSQL database, in a schema that is removed at the end
    /// (`postgres://USER@HOST/DATABASE`; the password in SINEW_STORE_PASSWORD)
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// Keep the temporary directory with its logs (sandboxes and launcher end all the same)
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    #[arg(long, value_name = "FILE", env = "SINEW_CONFIG", help = "The configuration file")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build the default Debian image into the cache (needs root)
    Build(ImageBuildArgs),
    /// Import a root filesystem, an OCI layout or what `docker save` writes (needs root)
    Import(ImageImportArgs),
    /// List the images in the cache
    Ls(ImageLsArgs),
    /// Show one image: where it came from, how its programs run, who uses it
    Inspect(ImageInspectArgs),
    /// Remove an image that no sandbox runs from, or one of its names
    Rm(ImageRmArgs),
}

#[derive(Debug, Args)]
pub struct ImageBuildArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    /// Build again even if the cache has it
    #[arg(long)]
    pub force: bool,
    /// The bare image of a few seconds, for tests, instead of the default one
    #[arg(long)]
    pub minimal: bool,
    /// A Debian mirror instead of the host's own package sources
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The kind of archive and its compression (gzip, zstd, xz) are read from its \
                        content. It is unpacked by a process without network, privileges or any \
                        other file; its digests are checked before the image can be used."
)]
pub struct ImageImportArgs {
    /// A file, the directory of an OCI layout, or `-` for standard input
    pub source: PathBuf,
    /// What profiles call it; an image that had this name keeps its id
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Which image of the archive, where it holds several
    #[arg(long = "ref", value_name = "NAME")]
    pub reference: Option<String>,
    /// What its files may add up to
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(ImportLimits::BYTES_DEFAULT))]
    pub max_size: ByteSize,
    /// How many files, directories and links it may hold, in all layers together
    #[arg(long, value_name = "COUNT", default_value_t = ImportLimits::ENTRIES_DEFAULT,
        value_parser = clap::value_parser!(u64).range(1..=ImportLimits::ENTRIES_MAX))]
    pub max_entries: u64,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// Its name or its id
    pub image: String,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct ImageRmArgs {
    /// Its name, which goes and takes the image along if it was the last; or its id
    pub image: String,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct ImageLsArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List sessions, newest activity first
    Ls(SessionLsArgs),
    /// Show one session: identity, sandbox, usage, calls, warnings
    Show(SessionShowArgs),
    /// Stop a session's work item; its volume stays unless --forget
    Stop(SessionStopArgs),
    /// Print a session's log
    Log(SessionLogArgs),
}

#[derive(Debug, Args)]
pub struct SessionLsArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Only sessions that have not ended or failed
    #[arg(long)]
    pub open: bool,
    /// At most this many
    #[arg(long, default_value_t = 100)]
    pub limit: u32,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct SessionShowArgs {
    pub session: SessionId,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct SessionStopArgs {
    pub session: SessionId,
    #[command(flatten)]
    pub data: DataArgs,
    /// Also remove its sandbox and its files, and end it here
    #[arg(long)]
    pub forget: bool,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct SessionLogArgs {
    pub session: SessionId,
    #[command(flatten)]
    pub data: DataArgs,
    /// Go on as things happen
    #[arg(short, long)]
    pub follow: bool,
    /// Only entries from this time on: a duration back ("10min") or an RFC 3339 time
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Since>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    Ago(HumanDuration),
    At(base_types::Timestamp),
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ago) = text.parse() {
            return Ok(Since::Ago(ago));
        }
        let at: jiff::Timestamp = text.parse().map_err(|_| {
            "write a duration like \"10min\" or a time like \"2026-11-24T18:00:00Z\"".to_owned()
        })?;
        Ok(Since::At(base_types::Timestamp(at.as_millisecond())))
    }
}

#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Check the configuration, its rules and its images; needs no running serve and no key
    Check(ProfileCheckArgs),
    /// Say which profile a session gets, and of every rule why it holds or not
    Explain(ProfileExplainArgs),
}

#[derive(Debug, Args)]
pub struct ProfileCheckArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImagesArgs,
    #[arg(long, value_name = "FILE", env = "SINEW_CONFIG", help = "The configuration file")]
    pub config: Option<PathBuf>,
    /// End with code 1 for a warning too, as for a rule that never decides
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct ProfileExplainArgs {
    /// A session of the running serve; or describe one with the flags
    #[arg(
        required_unless_present_any = ["agent", "meta", "environment", "tenant"],
        conflicts_with_all = ["agent", "meta", "environment", "tenant"]
    )]
    pub session: Option<SessionId>,
    /// The agent's id
    #[arg(long, value_name = "ID")]
    pub agent: Option<AgentId>,
    /// Metadata of the session; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_value)]
    pub meta: Vec<(String, String)>,
    /// The environment's id [default: the only one of the configuration]
    #[arg(long, value_name = "ID")]
    pub environment: Option<EnvironmentId>,
    /// The tenant [default: what the environment and the metadata say]
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<TenantId>,
    #[command(flatten)]
    pub data: DataArgs,
    #[arg(long, value_name = "FILE", env = "SINEW_CONFIG", help = "The configuration file")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "It first shows what it will do, and asks. Run again it does what is missing, \
                        so that with a newer program it is an upgrade: sandboxes and sessions go on."
)]
pub struct InstallArgs {
    /// As units of systemd: one for the launcher, one for `sinew serve`, and one that holds the
    /// sandboxes' control group
    #[arg(long, required_unless_present = "uninstall")]
    pub systemd: bool,
    /// Where the program, its completions and its manual pages go
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    pub prefix: PathBuf,
    /// The installation's directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sinew")]
    pub data: PathBuf,
    /// The system user that `sinew serve` runs as; it is made if it is not there
    #[arg(long, value_name = "NAME", default_value = "sinew")]
    pub user: String,
    /// Only write the files, and below this directory, as for a package
    #[arg(long, value_name = "DIR", conflicts_with = "uninstall")]
    pub destdir: Option<PathBuf>,
    /// Start nothing
    #[arg(long, conflicts_with = "uninstall")]
    pub no_start: bool,
    /// Remove what was installed; the data and a changed configuration stay
    #[arg(long, conflicts_with_all = ["systemd", "prefix", "data", "user"])]
    pub uninstall: bool,
    /// Remove the data, the keys, the configuration and the user too
    #[arg(long, requires = "uninstall")]
    pub purge: bool,
    /// End the processes of sandboxes that still run
    #[arg(long, requires = "uninstall")]
    pub end_sandboxes: bool,
    /// Show what would be done, and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    pub session: SessionId,
    #[command(flatten)]
    pub data: DataArgs,
    /// With a terminal, as for a shell
    #[arg(short, long)]
    pub tty: bool,
    /// As root of the sandbox
    #[arg(long)]
    pub root: bool,
    /// The directory to start in [default: the sandbox's work directory]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set a variable for the program
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = name_value)]
    pub env: Vec<(String, String)>,
    /// Kill the program after this long
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<HumanDuration>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// The shell goes on when the command ends: come back to it by its name. It ends with its sandbox,
/// which a shell that nobody watches does not keep awake.
#[derive(Debug, Args)]
pub struct ShellArgs {
    pub session: SessionId,
    #[command(flatten)]
    pub data: DataArgs,
    /// Which shell; it is opened if there is none of this name
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub name: TerminalName,
    /// As root of the sandbox
    #[arg(long)]
    pub root: bool,
    /// What the shell runs instead of asking for commands
    #[arg(long, value_name = "CMD")]
    pub command: Option<String>,
    /// The key that, with a dot after it at the beginning of a line, detaches; or "none"
    #[arg(long, value_name = "KEY", default_value = "~")]
    pub escape: EscapeKey,
    /// List the shells of the session's sandbox
    #[arg(long, conflicts_with_all = ["root", "command", "kill"])]
    pub list: bool,
    /// End the shell and what runs in it
    #[arg(long, conflicts_with_all = ["root", "command"])]
    pub kill: bool,
    #[command(flatten)]
    pub json: JsonArgs,
}

fn name_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Which: container-start, exec, tool-call, idle-memory [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Runs of each measurement
    #[arg(long, default_value_t = bench::RUNS_MIN)]
    pub runs: usize,
    /// End with code 3 if a goal is missed
    #[arg(long)]
    pub strict: bool,
    /// The image cache
    #[arg(long, value_name = "DIR", env = "SINEW_IMAGES", default_value = crate::installation::SHARED_IMAGES)]
    pub images: PathBuf,
    /// One JSON object a line, one for each benchmark
    #[arg(long)]
    pub json: bool,
}

/// For temporary installations only: it removes their sessions' files, so that the directory must
/// be named.
#[derive(Debug, Args)]
pub struct TeardownArgs {
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Debug, Args)]
pub struct ReferenceArgs {
    #[arg(value_enum)]
    pub page: ReferencePage,
    /// Where the manual pages go; it is made if it is not there
    #[arg(long, value_name = "DIR", required_if_eq("page", "man"))]
    pub dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReferencePage {
    /// docs/user/config.md
    Config,
    /// docs/user/cli.md
    Cli,
    /// docs/user/api.md
    Api,
    /// docs/user/errors.md
    Errors,
    /// docs/user/policy.md
    Policy,
    /// One manual page for each command
    Man,
}

/// The command line without what is hidden: for everything that is generated from it.
pub fn visible_command() -> clap::Command {
    let whole = Cli::command();
    let subcommands: Vec<clap::Command> =
        whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut visible = clap::Command::new("sinew")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .subcommand_required(true)
        .max_term_width(100)
        .about(whole.get_about().cloned().unwrap_or_default())
        .after_help(whole.get_after_help().cloned().unwrap_or_default())
        .subcommands(subcommands);
    visible.build();
    visible
}
