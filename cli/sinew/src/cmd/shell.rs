//! `sinew shell SESSION`: a terminal in the session's sandbox, to open, leave and come back to.
//!
//! Whatever ends the command, the terminal it was started from is as it was before: its settings
//! come back first, then what a full-screen program left on is turned off.

mod escape;
mod screen;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, bail};
use base_types::{Clock, SystemClock};
use control_server::api::{
    ExecExit, Frame, TerminalAttached, TerminalRequest, TerminalSize, TerminalView, read_frame,
    write_frame,
};
use control_server::client::{ApiClient, ExecConnection};
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use self::escape::Escape;
pub use self::escape::EscapeKey;
use self::screen::Screen;
use crate::args::ShellArgs;
use crate::cmd::block_on;
use crate::exit::{Exit, ProgramLost, UsageError};
use crate::installation::Installation;
use crate::output;
use crate::terminal::RawMode;

const KEYS_PIECE: usize = 16 << 10;
/// Pieces typed or pasted that wait for the program to read. The keys that detach are heard until
/// then, whatever the program does.
const KEYS_QUEUE_MAX: usize = 64;
/// Longest name of a terminal's kind that is passed on.
const TERM_CHARS_MAX: usize = 64;
const TERM_DEFAULT: &str = "xterm-256color";
/// A terminal that takes nothing any more does not keep the command from ending.
const RESTORE_WAIT: Duration = Duration::from_secs(1);

pub fn run(args: ShellArgs) -> anyhow::Result<Exit> {
    if args.json.json && !args.list && !args.kill {
        return Err(UsageError("--json is for --list and --kill".to_owned()).into());
    }
    if args.list {
        return block_on(list(args));
    }
    if args.kill {
        return block_on(kill(args));
    }
    block_on(attach(args)).map_err(|error| ProgramLost { what: "shell", error }.into())
}

// === without a terminal ===

async fn list(args: ShellArgs) -> anyhow::Result<Exit> {
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    let list = client.terminals(&args.session).await.context("list terminals")?;
    if args.json.json {
        output::json(&list)?;
    } else if list.terminals.is_empty() {
        output::line(&format!("{} has no terminals", args.session))?;
    } else {
        let head = ["name", "user", "state", "started", "size", "viewers"];
        output::table(&head, list.terminals.iter().map(row).collect())?;
    }
    Ok(Exit::Ok)
}

fn row(view: &TerminalView) -> Vec<String> {
    let state = match view.exit_code {
        Some(code) => format!("{} with {code}", view.state),
        None => view.state.clone(),
    };
    vec![
        view.name.clone(),
        if view.root { "root" } else { "tools" }.to_owned(),
        state,
        output::ago(view.started_at, SystemClock.now()),
        format!("{}x{}", view.columns, view.rows),
        view.viewers.to_string(),
    ]
}

async fn kill(args: ShellArgs) -> anyhow::Result<Exit> {
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    let name = args.name.as_str();
    let closed = client.close_terminal(&args.session, name).await.context("end a shell")?;
    if args.json.json {
        output::json(&closed)?;
    } else {
        output::line(&format!("the shell {name} of {} is ended", args.session))?;
    }
    Ok(Exit::Ok)
}

// === attached ===

/// Why the terminal is shown no more.
enum Left {
    /// The shell has ended.
    Exit(ExecExit),
    Detached,
    /// We were told to end.
    Signal(i32),
    Lost(anyhow::Error),
}

async fn attach(args: ShellArgs) -> anyhow::Result<Exit> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        bail!("this needs a terminal; in a script use `sinew exec {} -- CMD`", args.session);
    }
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    let request = TerminalRequest {
        root: args.root,
        command: args.command.clone(),
        env: environment(|name| std::env::var(name).ok()),
        size: crate::terminal::size().unwrap_or_default(),
    };
    let name = args.name.as_str();
    let mut connection = client.terminal(&args.session, name, &request).await?;
    let attached = match read_frame(&mut connection).await? {
        Some(Frame::Attached(attached)) => attached,
        Some(Frame::Failed(fault)) => bail!("{} ({})", fault.message, fault.hint),
        _ => bail!("`sinew serve` answered with something else than a terminal"),
    };
    greet(&args, &attached);
    let mut screen = Screen::default();
    let raw = RawMode::enter().context("set up the terminal")?;
    let left = show(connection, Escape::new(args.escape), &mut screen).await;
    drop(raw);
    // A terminal that is gone takes no farewell.
    let restored = tokio::time::timeout(RESTORE_WAIT, screen.restore()).await;
    tracing::debug!(?restored, "the terminal is as it was");
    leave(&args, left)
}

fn leave(args: &ShellArgs, left: Left) -> anyhow::Result<Exit> {
    match left {
        Left::Exit(exit) => {
            if let Some(note) = &exit.note {
                eprintln!("sinew shell: {}", output::printable(note));
            }
            // Codes are a byte for the shell, here as everywhere.
            Ok(Exit::Program((exit.code & 0xff) as u8))
        }
        Left::Detached => {
            eprintln!("\nsinew shell: detached; the shell goes on: {}", again(args));
            Ok(Exit::Ok)
        }
        Left::Signal(number) => Ok(Exit::Program(128 + number as u8)),
        Left::Lost(error) => {
            let hint = format!("the terminal is lost; to come back to its shell: {}", again(args));
            Err(error.context(hint))
        }
    }
}

/// The command that comes back to this shell.
fn again(args: &ShellArgs) -> String {
    format!("`sinew shell {} --name {}`", args.session, args.name)
}

fn greet(args: &ShellArgs, attached: &TerminalAttached) {
    let began = if attached.created {
        "opened".to_owned()
    } else {
        format!("attached, started {}", output::ago(attached.started_at, SystemClock.now()))
    };
    let others = match attached.viewers.saturating_sub(1) {
        0 => String::new(),
        count => format!(", {count} more attached"),
    };
    let keys = match args.escape.0 {
        Some(key) => format!("; Enter {0}. detaches, {0}{0} types {0}", escape::shown(key)),
        None => String::new(),
    };
    eprintln!("sinew shell: {} of {}: {began}{others}{keys}", args.name, args.session);
    if !attached.created && args.command.is_some() {
        eprintln!("sinew shell: it was there before, so that --command was not run");
    }
    if !attached.created && args.root && !attached.root {
        eprintln!("sinew shell: it was there before and is not root's; choose another --name");
    }
}

/// What a program should know of the terminal.
fn environment(variable: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let plain = |text: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+@:".contains(c);
        (1..=TERM_CHARS_MAX).contains(&text.len()) && text.chars().all(plain)
    };
    let first = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(plain));
    let term = first(&["TERM"]).unwrap_or_else(|| TERM_DEFAULT.to_owned());
    let mut env = vec![("TERM".to_owned(), term)];
    for (name, sources) in
        [("COLORTERM", &["COLORTERM"][..]), ("LANG", &["LC_ALL", "LC_CTYPE", "LANG"][..])]
    {
        env.extend(first(sources).map(|value| (name.to_owned(), value)));
    }
    env
}

async fn show(connection: ExecConnection, escape: Escape, screen: &mut Screen) -> Left {
    let (reader, writer) = tokio::io::split(connection);
    let (now_live, live) = oneshot::channel();
    let (keys, typed) = mpsc::channel(KEYS_QUEUE_MAX);
    tokio::select! {
        left = show_output(reader, screen, now_live) => left,
        left = read_keys(escape, keys) => left,
        left = send(writer, live, typed) => left,
        left = signals() => left,
    }
}

async fn show_output(
    mut reader: ReadHalf<ExecConnection>,
    screen: &mut Screen,
    now_live: oneshot::Sender<()>,
) -> Left {
    let mut now_live = Some(now_live);
    loop {
        let shown = match read_frame(&mut reader).await {
            Ok(Some(Frame::Output(bytes))) => screen.show(&bytes).await,
            Ok(Some(Frame::Gap(gap))) => screen.skip(gap).await,
            Ok(Some(Frame::Live)) => {
                screen.go_live();
                if let Some(live) = now_live.take() {
                    let _ = live.send(()); // Keys are sent until we are over.
                }
                Ok(())
            }
            Ok(Some(Frame::Exit(exit))) => return Left::Exit(exit),
            Ok(Some(Frame::Failed(fault))) => {
                return Left::Lost(anyhow::anyhow!("{} ({})", fault.message, fault.hint));
            }
            Ok(Some(_)) => Ok(()),
            Ok(None) => return Left::Lost(anyhow::anyhow!("`sinew serve` has ended")),
            Err(error) => return Left::Lost(error.into()),
        };
        if let Err(error) = shown {
            return Left::Lost(anyhow::Error::new(error).context("write to the terminal"));
        }
    }
}

/// From the first moment on, so that whatever the sandbox does, a person can leave.
async fn read_keys(mut escape: Escape, keys: mpsc::Sender<Vec<u8>>) -> Left {
    let mut stdin = tokio::io::stdin();
    let mut piece = vec![0; KEYS_PIECE];
    loop {
        let count = match stdin.read(&mut piece).await {
            // The terminal is gone.
            Ok(0) | Err(_) => return Left::Detached,
            Ok(count) => count,
        };
        let mut through = Vec::with_capacity(count + 1);
        let detach = escape.pass(piece.get(..count).unwrap_or_default(), &mut through);
        if !through.is_empty() && keys.send(through).await.is_err() {
            return std::future::pending().await;
        }
        if detach {
            return Left::Detached;
        }
    }
}

/// Keys wait until what was shown before is on the screen, so that none goes to what is not seen.
async fn send(
    mut writer: WriteHalf<ExecConnection>,
    live: oneshot::Receiver<()>,
    mut typed: mpsc::Receiver<Vec<u8>>,
) -> Left {
    if live.await.is_err() {
        return std::future::pending().await;
    }
    let sent = async {
        let mut resized = signal(SignalKind::window_change())?;
        loop {
            let frame = tokio::select! {
                Some(keys) = typed.recv() => Frame::Stdin(keys),
                _ = resized.recv() => match crate::terminal::size() {
                    Some(TerminalSize { rows, columns }) => Frame::Resize(TerminalSize { rows, columns }),
                    None => continue,
                },
            };
            write_frame(&mut writer, &frame).await.map_err(std::io::Error::other)?;
        }
    };
    let Err::<std::convert::Infallible, std::io::Error>(error) = sent.await;
    // What the server said last is still to be read, and says more.
    tracing::debug!(%error, "keys are not taken any more");
    std::future::pending().await
}

/// In raw mode no key makes one of these: somebody else wants us to end, or the terminal is gone.
async fn signals() -> Left {
    let waited = async {
        let mut hung_up = signal(SignalKind::hangup())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut terminated = signal(SignalKind::terminate())?;
        Ok::<_, std::io::Error>(tokio::select! {
            _ = hung_up.recv() => 1,
            _ = interrupted.recv() => 2,
            _ = quit.recv() => 3,
            _ = terminated.recv() => 15,
        })
    };
    match waited.await {
        Ok(number) => Left::Signal(number),
        Err(error) => Left::Lost(anyhow::Error::new(error).context("listen to signals")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_learns_of_the_terminal_and_nothing_strange() {
        let env = |pairs: &'static [(&str, &str)]| {
            let find = move |name: &str| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            environment(find)
        };
        let text = |pairs: &[(String, String)]| {
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let full = env(&[("TERM", "tmux-256color"), ("COLORTERM", "truecolor"), ("LANG", "C")]);
        assert_eq!(text(&full), ["TERM=tmux-256color", "COLORTERM=truecolor", "LANG=C"]);
        let strange = env(&[("TERM", "../x y"), ("LC_ALL", ""), ("LANG", "de_DE.UTF-8")]);
        assert_eq!(text(&strange), ["TERM=xterm-256color", "LANG=de_DE.UTF-8"]);
    }
}
