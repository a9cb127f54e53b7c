//! `sinew exec SESSION -- CMD`

use std::io::IsTerminal;

use anyhow::{Context, bail};
use control_server::api::{ExecRequest, Frame, TerminalSize, read_frame, write_frame};
use control_server::client::{ApiClient, ExecConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::ExecArgs;
use crate::cmd::block_on;
use crate::exit::{Exit, ProgramLost};
use crate::installation::Installation;
use crate::terminal::RawMode;

const STDIN_PIECE: usize = 16 << 10;

pub fn run(args: ExecArgs) -> anyhow::Result<Exit> {
    block_on(exec(args)).map_err(|error| ProgramLost { what: "exec", error }.into())
}

async fn exec(args: ExecArgs) -> anyhow::Result<Exit> {
    let client = ApiClient::new(Installation::of(&args.data)?.data());
    if args.tty && !std::io::stdin().is_terminal() {
        bail!("-t needs a terminal as standard input");
    }
    let request = ExecRequest {
        argv: args.argv,
        env: args.env,
        cwd: args.cwd,
        root: args.root,
        tty: if args.tty { crate::terminal::size() } else { None },
        // A terminal that nobody asked to connect is not read: typing ahead would be lost.
        stdin: args.tty || !std::io::stdin().is_terminal(),
        timeout_ms: args.timeout.map(|t| u64::try_from(t.0.as_millis()).unwrap_or(u64::MAX)),
    };
    let connection = client.exec(&args.session, &request).await?;
    let raw = if args.tty { Some(RawMode::enter().context("set up the terminal")?) } else { None };
    let ended = stream(connection, request.stdin).await;
    drop(raw);
    let exit = ended?;
    if let Some(note) = &exit.note {
        eprintln!("sinew exec: {}", crate::output::printable(note));
    }
    // Codes are a byte for the shell, here as everywhere.
    Ok(Exit::Program((exit.code & 0xff) as u8))
}

async fn stream(
    connection: ExecConnection,
    with_stdin: bool,
) -> anyhow::Result<control_server::api::ExecExit> {
    let (mut reader, writer) = tokio::io::split(connection);
    let input = base_tasks::spawn(base_tasks::TaskKind::ApiConnection, send(writer, with_stdin));
    let mut stdout = tokio::io::stdout();
    let ended = loop {
        match read_frame(&mut reader).await {
            Ok(Some(Frame::Output(bytes))) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            }
            Ok(Some(Frame::Exit(exit))) => break Ok(exit),
            Ok(Some(Frame::Failed(fault))) => {
                break Err(anyhow::anyhow!("{} ({})", fault.message, fault.hint));
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                break Err(anyhow::anyhow!(
                    "`sinew serve` ended before the program did; its outcome is not known"
                ));
            }
            Err(error) => break Err(error.into()),
        }
    };
    input.abort();
    ended
}

/// Sends input, and what a terminal does, until aborted.
async fn send(mut writer: WriteHalf<ExecConnection>, with_stdin: bool) {
    let sent = async {
        let mut resized = signal(SignalKind::window_change())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let mut stdin = tokio::io::stdin();
        let mut piece = vec![0; STDIN_PIECE];
        let mut open = with_stdin;
        loop {
            let frame = tokio::select! {
                read = stdin.read(&mut piece), if open => match read? {
                    0 => { open = false; Frame::StdinEnd }
                    count => Frame::Stdin(piece[..count].to_vec()),
                },
                _ = resized.recv() => match crate::terminal::size() {
                    Some(TerminalSize { rows, columns }) => Frame::Resize(TerminalSize { rows, columns }),
                    None => continue,
                },
                _ = interrupted.recv() => Frame::Signal(2),
                _ = terminated.recv() => Frame::Signal(15),
            };
            write_frame(&mut writer, &frame).await.map_err(std::io::Error::other)?;
        }
    };
    let Err::<std::convert::Infallible, std::io::Error>(error) = sent.await;
    tracing::debug!(%error, "input of exec ended");
}

/// Runs a program without input and returns its exit code and output.
pub async fn capture(
    client: &ApiClient,
    session: &base_types::SessionId,
    argv: &[&str],
) -> anyhow::Result<(i32, Vec<u8>)> {
    let argv = argv.iter().map(|arg| (*arg).to_owned()).collect();
    let request = ExecRequest { argv, ..ExecRequest::default() };
    let mut connection = client.exec(session, &request).await?;
    let mut output = Vec::new();
    loop {
        match read_frame(&mut connection).await? {
            Some(Frame::Output(bytes)) => output.extend(bytes),
            Some(Frame::Exit(exit)) => return Ok((exit.code, output)),
            Some(Frame::Failed(fault)) => bail!("{} ({})", fault.message, fault.hint),
            Some(_) => {}
            None => bail!("`sinew serve` ended before the program did"),
        }
    }
}
