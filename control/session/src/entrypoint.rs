//! What the session's log tells of the program beside the tools: that it did not start, or how it
//! ended. The agent, which is hostile, says so; the session depends on nothing of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sandbox_api::guest::client::GuestClient;
use sandbox_api::guest::{EntrypointInfo, Exit};

/// Characters of its last output in the log; its own log has more.
const OUTPUT_CHARS_MAX: usize = 200;
const REASON_CHARS_MAX: usize = 300;

/// Looks at one epoch's entrypoint until there is nothing more to tell.
pub struct EntrypointWatch {
    /// An end that is there at the first look is news.
    began_now: bool,
    seen_running: AtomicBool,
    over: AtomicBool,
}

impl EntrypointWatch {
    /// `began_now`: the epoch began with this watch, and nobody has told of it before.
    pub fn new(began_now: bool) -> Self {
        let [seen_running, over] = [false, false].map(AtomicBool::new);
        Self { began_now, seen_running, over }
    }

    /// What is to be told now. An agent that does not answer in `time` has its own watch.
    pub async fn look(&self, client: &GuestClient, time: Duration) -> Option<String> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        let info = tokio::time::timeout(time, client.info()).await.ok()?.ok()?;
        self.news(info.entrypoint)
    }

    fn news(&self, entrypoint: Option<EntrypointInfo>) -> Option<String> {
        let Some(entrypoint) = entrypoint else {
            self.over.store(true, Ordering::Relaxed);
            return None;
        };
        if entrypoint.end.is_none() {
            self.seen_running.store(true, Ordering::Relaxed);
            return None;
        }
        self.over.store(true, Ordering::Relaxed);
        let is_news = self.began_now || self.seen_running.load(Ordering::Relaxed);
        is_news.then(|| end_text(&entrypoint)).flatten()
    }
}

fn end_text(entrypoint: &EntrypointInfo) -> Option<String> {
    let command = cut(&entrypoint.command, OUTPUT_CHARS_MAX);
    let end = match &entrypoint.end.as_ref()?.exit {
        Exit::FailedToStart(why) => {
            return Some(format!(
                "the entrypoint did not start: {}; the session goes on without it",
                cut(why, REASON_CHARS_MAX)
            ));
        }
        Exit::Code(code) => format!("ended with exit code {code}"),
        Exit::Signal(signal) => format!("was ended by signal {signal}"),
        Exit::TimedOut | Exit::Killed | Exit::ShellDied(_) => "was ended".to_owned(),
    };
    let output = cut(&String::from_utf8_lossy(&entrypoint.tail), usize::MAX);
    let skipped = output.chars().count().saturating_sub(OUTPUT_CHARS_MAX);
    let output: String = output.chars().skip(skipped).collect();
    let output = match output.trim() {
        "" => String::new(),
        output => format!("; its last output: {output}"),
    };
    Some(format!("the entrypoint `{command}` {end}, and is not started again{output}"))
}

/// As one line.
fn cut(text: &str, chars_max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use sandbox_api::guest::EntrypointEnd;

    use super::*;

    fn info(exit: Option<Exit>, tail: &str) -> EntrypointInfo {
        EntrypointInfo {
            command: "nginx -g".into(),
            started_at_ms: 1,
            end: exit.map(|exit| EntrypointEnd { exit, at_ms: 2 }),
            output_bytes: tail.len() as u64,
            tail: tail.as_bytes().to_vec(),
        }
    }

    fn text(exit: Exit, tail: &str) -> String {
        end_text(&info(Some(exit), tail)).unwrap()
    }

    #[test]
    fn an_end_is_told_once_and_not_again_after_a_restart() {
        let [running, ended] = [None, Some(Exit::Code(0))].map(|exit| Some(info(exit, "")));
        let is_told = |began_now, looks: &[&Option<EntrypointInfo>]| {
            let watch = EntrypointWatch::new(began_now);
            let told: Vec<bool> =
                looks.iter().map(|look| watch.news((*look).clone()).is_some()).collect();
            (told, watch.over.load(Ordering::Relaxed))
        };
        assert_eq!(is_told(true, &[&ended]), (vec![true], true));
        assert_eq!(is_told(true, &[&running, &running]), (vec![false, false], false));
        assert_eq!(is_told(false, &[&running, &ended]), (vec![false, true], true));
        assert_eq!(is_told(false, &[&ended]), (vec![false], true), "an earlier process told");
        assert_eq!(is_told(true, &[&None]), (vec![false], true), "there is none");
    }

    #[test]
    fn an_end_is_one_line_with_its_reason() {
        assert_eq!(
            text(Exit::Code(3), "one\ntwo\n"),
            "the entrypoint `nginx -g` ended with exit code 3, and is not started again; its last \
             output: one two"
        );
        assert_eq!(
            text(Exit::FailedToStart("nginx: no such\nfile".into()), ""),
            "the entrypoint did not start: nginx: no such file; the session goes on without it"
        );
        let hostile = text(Exit::Signal(9), &"\u{1b}[31mä\u{0}".repeat(9999));
        assert!(hostile.chars().count() < 400 && !hostile.contains(char::is_control), "{hostile}");
    }
}
