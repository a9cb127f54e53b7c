//! Bytes of a guest as text for a model.

/// Text of one answer of `bash`: half from the beginning of the output, half from its end.
pub const TEXT_BYTES_MAX: usize = 102_400;

pub const NO_OUTPUT: &str = "(no output)";

/// A control string (a window title, a link) longer than this is not one.
const CONTROL_STRING_BYTES_MAX: usize = 4096;

/// The beginning and the end of an output, with what lies between left out.
pub struct Excerpt<'a> {
    pub head: &'a [u8],
    /// Empty if nothing is left out.
    pub tail: &'a [u8],
    pub omitted_bytes: u64,
    /// Where the guest can read all of it.
    pub whole_at: Option<&'a str>,
}

impl Excerpt<'_> {
    /// Without terminal sequences and without line feeds at the end, in [`TEXT_BYTES_MAX`] bytes
    /// and the line that says what is missing.
    pub fn render(&self) -> String {
        if self.omitted_bytes == 0 {
            let text = plain(&[self.head, self.tail].concat());
            if text.len() <= TEXT_BYTES_MAX {
                return text.trim_end_matches('\n').to_owned();
            }
            // Bytes that were no text have grown. Cut the text itself.
            let head = &text[..text.floor_char_boundary(TEXT_BYTES_MAX / 2)];
            let tail = &text[text.ceil_char_boundary(text.len() - TEXT_BYTES_MAX / 2)..];
            let omitted = (text.len() - head.len() - tail.len()) as u64;
            return self.join(head, omitted, tail);
        }
        let head = plain(without_torn_end(self.head));
        let tail = plain(without_torn_start(self.tail));
        let head_cut = &head[..head.floor_char_boundary(TEXT_BYTES_MAX / 2)];
        let from = tail.len().saturating_sub(TEXT_BYTES_MAX / 2);
        let tail_cut = &tail[tail.ceil_char_boundary(from)..];
        let cut = head.len() - head_cut.len() + tail.len() - tail_cut.len();
        self.join(head_cut, self.omitted_bytes + cut as u64, tail_cut)
    }

    fn join(&self, head: &str, omitted: u64, tail: &str) -> String {
        let line_end = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
        let place = match self.whole_at {
            Some(path) => format!("; the whole output is in {path}, for read and grep"),
            None => String::new(),
        };
        let tail = tail.trim_end_matches('\n');
        format!("{head}{line_end}[… {omitted} bytes omitted{place} …]\n{tail}")
    }
}

/// UTF-8 without terminal sequences.
pub fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.contains('\x1b') {
        true => without_escapes(&text),
        false => text.into_owned(),
    }
}

fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + escape_len(&rest.as_bytes()[at..])..];
    }
    plain.push_str(rest);
    plain
}

/// The length of the escape sequence that `bytes` begins with. All of its bytes are ASCII, so it
/// ends between characters; a sequence that is none is the escape character alone.
fn escape_len(bytes: &[u8]) -> usize {
    match bytes.get(1) {
        Some(b'[') => {
            let body = bytes[2..].iter().take_while(|b| (0x20..=0x3f).contains(*b)).count();
            match bytes.get(2 + body) {
                Some(0x40..=0x7e) => body + 3,
                // Cut off by the end of what was kept.
                None => body + 2,
                Some(_) => 1,
            }
        }
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let window = &bytes[..bytes.len().min(CONTROL_STRING_BYTES_MAX)];
            let bell = window.iter().position(|b| *b == 0x07).map(|at| at + 1);
            let terminator =
                window.windows(2).skip(1).position(|w| w == b"\x1b\\").map(|at| at + 3);
            match (bell, terminator) {
                (Some(a), Some(b)) => a.min(b),
                (a, b) => a.or(b).unwrap_or(1),
            }
        }
        Some(b'(' | b')' | b'*' | b'+') if bytes.get(2).is_some_and(u8::is_ascii) => 3,
        Some(b'=' | b'>' | b'7' | b'8' | b'c' | b'D' | b'E' | b'H' | b'M') => 2,
        _ => 1,
    }
}

/// Without the first bytes of a character whose rest was cut off.
fn without_torn_end(bytes: &[u8]) -> &[u8] {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let needed = match bytes[at] {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => 1,
        };
        return if needed > back { &bytes[..at] } else { bytes };
    }
    bytes
}

/// Without the last bytes of a character whose beginning was cut off.
fn without_torn_start(bytes: &[u8]) -> &[u8] {
    let torn = bytes.iter().take(3).take_while(|b| (0x80..=0xbf).contains(*b)).count();
    &bytes[torn..]
}

/// One line of the agent's own words, which a guest may have chosen.
pub fn line(text: &str, chars_max: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(chars_max).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terminal_sequences_are_removed_and_text_is_kept() {
        for (bytes, expected) in [
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b[?25lx\x1b[2K\x1b[38:5:1my", "xy"),
            ("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\y", "xy"),
            ("\x1b(Bx\x1b=y", "xy"),
            ("a\x1b[31", "a"),
            ("a\x1b[3é", "a[3é"),
            ("a\x1b]never ended", "a]never ended"),
            ("a\x1bé\x1b", "aé"),
            ("100%\rdone\t", "100%\rdone\t"),
        ] {
            assert_eq!(plain(bytes.as_bytes()), expected, "{bytes:?}");
        }
        assert_eq!(plain(b"a\xffb"), "a\u{fffd}b");
    }

    fn excerpt<'a>(head: &'a [u8], tail: &'a [u8], omitted_bytes: u64) -> Excerpt<'a> {
        Excerpt { head, tail, omitted_bytes, whole_at: Some("/run/sinew/output/c.out") }
    }

    #[test]
    fn what_is_left_out_is_counted_and_its_place_named() {
        assert_eq!(excerpt(b"\n a\n\n", b"", 0).render(), "\n a");
        assert_eq!(
            excerpt(b"one", b"two\n", 5).render(),
            "one\n[… 5 bytes omitted; the whole output is in /run/sinew/output/c.out, for read and \
             grep …]\ntwo"
        );
        let none = Excerpt { whole_at: None, ..excerpt(b"", b"two", 5) };
        assert_eq!(none.render(), "[… 5 bytes omitted …]\ntwo");
    }

    #[test]
    fn a_character_that_the_cut_tore_leaves_no_trace() {
        let e = "é€😀".as_bytes();
        for cut in 1..e.len() {
            let text = excerpt(&e[..cut], &e[cut..], 1).render();
            assert!(!text.contains('\u{fffd}'), "{cut}: {text}");
        }
    }

    #[test]
    fn binary_output_does_not_outgrow_the_limit() {
        let bytes = [0xff; TEXT_BYTES_MAX];
        for text in [
            excerpt(&bytes, b"", 0).render(),
            excerpt(&bytes[..TEXT_BYTES_MAX / 2], &bytes[..TEXT_BYTES_MAX / 2], 9).render(),
        ] {
            assert!(text.len() < TEXT_BYTES_MAX + 200, "{}", text.len());
            assert!(text.contains("bytes omitted"));
        }
    }

    proptest! {
        #[test]
        fn no_output_makes_the_rendering_panic_or_outgrow(
            head in proptest::collection::vec(any::<u8>(), 0..300),
            tail in proptest::collection::vec(any::<u8>(), 0..300),
            omitted: u64,
        ) {
            let text = excerpt(&head, &tail, omitted / 2).render();
            prop_assert!(text.len() <= 3 * (head.len() + tail.len()) + 200);
        }

        #[test]
        fn no_escapes_make_the_cleaning_panic(text in "[\x1b\\[\\]();0-9m\x07é\\\\]{0,40}") {
            let clean = plain(text.as_bytes());
            prop_assert!(clean.len() <= text.len());
        }
    }
}
