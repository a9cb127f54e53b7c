//! A stand-in for the guest agent, small enough to see what the container alone does: it runs
//! each line it is sent as a shell command of the payload and answers with output and status.
//! Built by the tests as one static executable, without any crate.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

fn main() {
    // SAFETY: the launcher passes the listener as descriptor 3.
    let listener = unsafe { UnixListener::from_raw_fd(3) };
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        std::thread::spawn(move || serve(stream));
    }
}

fn serve(stream: std::os::unix::net::UnixStream) {
    let mut line = String::new();
    let mut reader = BufReader::new(&stream);
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let (user, command) = line.trim_end().split_once(' ').unwrap_or(("0", ""));
    let command = command.replace('\u{1}', "\n");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &command]).stdin(Stdio::null());
    shell.stdout(stream.try_clone().map(std::os::fd::OwnedFd::from).unwrap());
    shell.stderr(stream.try_clone().map(std::os::fd::OwnedFd::from).unwrap());
    // SAFETY: writes to inherited descriptors only.
    unsafe {
        shell.pre_exec(|| {
            for fd in [6, 7] {
                let mut procs = std::mem::ManuallyDrop::new(File::from_raw_fd(fd));
                match procs.write_all(b"0") {
                    // Fewer hierarchies than descriptors we try.
                    Err(error) if error.raw_os_error() == Some(9) => {}
                    other => other?,
                }
            }
            Ok(())
        });
    }
    if user != "0" {
        let id: u32 = user.parse().unwrap();
        shell.uid(id).gid(id);
    }
    let status = match shell.status() {
        Ok(status) => status.code().unwrap_or(-status.signal().unwrap_or(0)),
        Err(error) => 1000 + error.raw_os_error().unwrap_or(0),
    };
    let _ = write!(&stream, "\nstatus {status}\n");
}
