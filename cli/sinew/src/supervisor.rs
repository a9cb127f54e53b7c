//! What a service manager is told: that we are ready, alive, and leaving (`sd_notify(3)`).
//!
//! Where nobody asked to be told, nothing is sent. Nothing here fails: a service that works and
//! cannot say so is ended by its manager, which knows why.

use std::convert::Infallible;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A status line is for one line of a terminal.
const STATUS_CHARS_MAX: usize = 200;

pub struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Silent for longer than this, the service is taken for dead.
    watchdog: Option<Duration>,
}

// === impl Supervisor ===

impl Supervisor {
    pub fn of_environment() -> Self {
        let variable = |name| std::env::var(name).ok();
        let meant_for_us =
            variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let micros = variable("WATCHDOG_USEC").and_then(|text| text.parse().ok());
        let watchdog = micros.filter(|micros| *micros > 0 && meant_for_us);
        Self {
            socket: variable("NOTIFY_SOCKET").and_then(|name| open(&name)),
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    pub fn ready(&self, status: &str) {
        let status: String =
            status.chars().filter(|c| !c.is_control()).take(STATUS_CHARS_MAX).collect();
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=draining");
    }

    /// Says that we are alive, at half the interval, for as long as this is polled: by the task
    /// that does the work, so that one that hangs is silent. Never returns.
    pub async fn keep_alive(&self) -> Infallible {
        let Some(watchdog) = self.watchdog else {
            return std::future::pending().await;
        };
        loop {
            self.send("WATCHDOG=1");
            tokio::time::sleep(watchdog / 2).await;
        }
    }

    fn send(&self, text: &str) {
        let Some((socket, to)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), to) {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}

/// A path, or a name in the abstract namespace behind an `@`.
fn open(name: &str) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    };
    // Not to be held up by a manager that does not read.
    let socket = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    match (address, socket) {
        (Ok(address), Ok(socket)) => Some((socket, address)),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, name, "cannot reach the service manager");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervised(name: &str, watchdog: Option<Duration>) -> (Supervisor, UnixDatagram) {
        let heard = UnixDatagram::bind_addr(
            &SocketAddr::from_abstract_name(name.trim_start_matches('@')).unwrap(),
        )
        .unwrap();
        heard.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (Supervisor { socket: open(name), watchdog }, heard)
    }

    fn hear(heard: &UnixDatagram) -> String {
        let mut text = [0; 512];
        let length = heard.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    #[test]
    fn readiness_is_one_line_of_status_whatever_it_says() {
        let (supervisor, heard) = supervised(&format!("@sinew-ready-{}", std::process::id()), None);
        supervisor.ready("serving a\nREADY=0\n from /x");
        assert_eq!(hear(&heard), "READY=1\nSTATUS=serving aREADY=0 from /x");
        supervisor.stopping();
        assert!(hear(&heard).starts_with("STOPPING=1"));
    }

    #[tokio::test]
    async fn it_is_alive_for_as_long_as_its_task_runs() {
        let name = format!("@sinew-alive-{}", std::process::id());
        let (supervisor, heard) = supervised(&name, Some(Duration::from_millis(10)));
        tokio::select! {
            never = supervisor.keep_alive() => match never {},
            () = tokio::time::sleep(Duration::from_millis(30)) => {}
        }
        assert_eq!(hear(&heard), "WATCHDOG=1");
        assert_eq!(hear(&heard), "WATCHDOG=1");
    }
}
