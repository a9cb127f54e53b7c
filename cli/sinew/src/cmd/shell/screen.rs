//! What the sandbox shows, on the terminal we were started from.
//!
//! Live output goes through as it is: that is what a terminal is. What was shown before somebody
//! attached is drawn without the questions in it, whose answers would be typed into whatever runs
//! now. The modes that programs left on are known at every moment, so that they can be turned off.

use std::io;

use control_server::api::OutputGap;
use guest_protocol::vt::{Modes, Scanner};
use tokio::io::AsyncWriteExt;

use crate::output;

pub struct Screen {
    out: tokio::io::Stdout,
    scanner: Scanner,
    live: bool,
}

impl Default for Screen {
    fn default() -> Self {
        Self { out: tokio::io::stdout(), scanner: Scanner::default(), live: false }
    }
}

impl Screen {
    /// From now on output is of this moment.
    pub fn go_live(&mut self) {
        self.live = true;
    }

    pub async fn show(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.live {
            self.scanner.scan(bytes);
            return self.write(bytes).await;
        }
        let mut drawn = Vec::with_capacity(bytes.len());
        self.scanner.replayable(bytes, &mut drawn);
        self.write(&drawn).await
    }

    /// Output is missing: what follows begins with the modes that the missing part left on.
    pub async fn skip(&mut self, gap: OutputGap) -> io::Result<()> {
        let modes = Modes::from_bits(gap.modes);
        let text = skipped(self.scanner.modes(), self.live.then_some(gap.skipped_bytes), modes);
        self.scanner = Scanner::with_modes(modes);
        self.write(&text).await
    }

    /// As it was before, as far as bytes can do that.
    pub async fn restore(&mut self) -> io::Result<()> {
        let leave = self.scanner.modes().leave();
        self.write(&leave).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes).await?;
        self.out.flush().await
    }
}

/// What is missing before one attaches is missed by nobody.
fn skipped(before: Modes, missed: Option<u64>, after: Modes) -> Vec<u8> {
    let mut text = before.leave();
    if let Some(bytes) = missed {
        let size = output::bytes(bytes);
        text.extend(format!("\r\n[sinew shell: {size} of output were skipped]\r\n").bytes());
    }
    text.extend(after.enter());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_told_and_the_modes_after_it_are_entered() {
        let mut scanner = Scanner::default();
        scanner.scan(b"\x1b[?1049h\x1b[?25l");
        let full_screen = scanner.modes();
        let text = String::from_utf8(skipped(full_screen, Some(2048), Modes::default())).unwrap();
        let left = text.find("\x1b[?1049l").unwrap();
        assert!(text.find("2.0 KiB of output were skipped").unwrap() > left, "{text:?}");
        let text = String::from_utf8(skipped(Modes::default(), None, full_screen)).unwrap();
        assert!(text.ends_with("\x1b[?1049h\x1b[?25l") && !text.contains("skipped"), "{text:?}");
    }
}
