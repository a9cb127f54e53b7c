//! How things look: tables for people, JSON for programs, progress only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use base_types::Timestamp;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Prints one value as JSON, indented.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints one value as JSON on one line.
pub fn json_line<T: Serialize>(value: &T) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Whoever read our output has seen enough, as `head` has.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct NoReader;

/// Prints one line. A closed pipe ends the command quietly: [`NoReader`].
pub fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(NoReader.into()),
        printed => Ok(printed?),
    }
}

/// A table without frames, in the width of the terminal.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    line(&render(head, rows))
}

pub fn render(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| printable(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Texts of brains and guests reach terminals only without their control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '·' } else { c }).collect()
}

/// As much of a text as fits one line.
pub fn one_line(text: &str, width: usize) -> String {
    let flat: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match flat.char_indices().nth(width) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}

pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `850µs`, `2.3ms`, `12ms`, `4.56s`, `3m 05s`, `2h 10m`, `3d 4h`.
pub fn duration(value: Duration) -> String {
    let seconds = value.as_secs();
    match seconds {
        _ if value.is_zero() => "0ms".to_owned(),
        _ if value < Duration::from_millis(1) => format!("{}µs", value.as_micros()),
        0 if value < Duration::from_millis(10) => format!("{:.1}ms", value.as_secs_f64() * 1e3),
        0 => format!("{:.0}ms", value.as_secs_f64() * 1e3),
        1..60 => format!("{:.2}s", value.as_secs_f64()),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// `512 B`, `1.5 MiB`, `2.0 GiB`.
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

/// `3m 05s ago`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let passed = now.since(then);
    if passed < Duration::from_secs(1) {
        return "now".to_owned();
    }
    format!("{} ago", duration(Duration::from_secs(passed.as_secs())))
}

/// The time of day in UTC, to the millisecond.
pub fn clock(at: Timestamp) -> String {
    let text = at.to_string();
    text.split_once('T').map_or(text.clone(), |(_, time)| time.trim_end_matches('Z').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_wrote_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r"), "a·[2Jb·");
        assert_eq!(one_line("a\nb\tc", 80), "a b c");
        assert_eq!(one_line("äöü", 2), "äö…");
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 19), "1.5 MiB");
        assert_eq!(duration(Duration::from_micros(850)), "850µs");
        assert_eq!(duration(Duration::from_micros(2_340)), "2.3ms");
        assert_eq!(duration(Duration::from_micros(12_340)), "12ms");
        assert_eq!(duration(Duration::from_secs(185)), "3m 05s");
        assert_eq!(duration(Duration::from_secs(90_000)), "1d 1h");
        assert_eq!(clock(Timestamp(0)), "00:00:00.000");
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let text = render(&["id", "phase"], vec![vec!["s1".into(), "idle".into()]]);
        assert!(text.lines().all(|line| line == line.trim_end()), "{text:?}");
        assert!(text.contains("ID") && text.contains("s1"));
    }
}
