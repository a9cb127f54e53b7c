//! What the bytes of a terminal do besides showing text: modes they leave on, and questions that
//! the terminal would answer as if somebody had typed.
//!
//! Both ends need it. The agent keeps the end of a terminal's output only, and remembers which
//! modes the forgotten part left on, so that an editor opened yesterday is shown on its own screen
//! today. The command line resets what is still on when it leaves, and takes the questions out of
//! output that it replays: their answers would arrive as input of whatever runs now.
//!
//! It is no terminal emulator: it follows the structure of sequences, and knows those few. The
//! bytes are a guest's; what is held of an unfinished sequence is bounded.

/// Longest sequence held back until it is complete; titles and links are far shorter. A longer one
/// has no effect that we track, and is not replayed.
const SEQUENCE_BYTES_MAX: usize = 4096;

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;
const ENQ: u8 = 0x05;
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;

/// Private modes that programs set and a shell does not expect, and what each is from the start.
/// The place in the list is the bit on the wire: it is only appended to.
const PRIVATE: [(u16, bool); 20] = [
    (1049, false),
    (1047, false),
    (47, false),
    (1, false),
    (5, false),
    (6, false),
    (7, true),
    (9, false),
    (25, true),
    (1000, false),
    (1002, false),
    (1003, false),
    (1004, false),
    (1005, false),
    (1006, false),
    (1015, false),
    (1016, false),
    (2004, false),
    (2026, false),
    (66, false),
];

/// What is not a private mode: bits after those, sequence that turns it on, and off.
const OTHER: [(Other, &str, &str); 4] = [
    (Other::Keypad, "\x1b=", "\x1b>"),
    // Turning it on needs the numbers, which are not kept: a program that redraws sets them.
    (Other::Margins, "", "\x1b7\x1b[r\x1b8"),
    (Other::KittyKeys, "", "\x1b[<9u"),
    (Other::ModifiedKeys, "\x1b[>4;1m", "\x1b[>4m"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    Keypad,
    Margins,
    KittyKeys,
    ModifiedKeys,
}

impl Other {
    fn bit(self) -> u64 {
        // From the other end, so that private modes may be appended.
        1 << (63 - self as u64)
    }
}

/// Which modes are not as a terminal has them when nothing ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes(u64);

// === impl Modes ===

impl Modes {
    /// From the wire: what this build does not know is dropped.
    pub fn from_bits(bits: u64) -> Self {
        let private = (1 << PRIVATE.len()) - 1;
        let other = OTHER.iter().fold(0, |bits, (other, ..)| bits | other.bit());
        Self(bits & (private | other))
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    pub fn is_default(self) -> bool {
        self.0 == 0
    }

    /// What a fresh terminal is sent to have these modes.
    pub fn enter(self) -> Vec<u8> {
        let mut text = String::new();
        self.for_private(|mode, on_at_start| {
            text.push_str(&format!("\x1b[?{mode}{}", if on_at_start { 'l' } else { 'h' }));
        });
        for (_, on, _) in self.others() {
            text.push_str(on);
        }
        text.into_bytes()
    }

    /// What a terminal with these modes is sent to be as it was before. Colours and the character
    /// set are reset always.
    pub fn leave(self) -> Vec<u8> {
        let mut text = "\x18\x1b[0m\x0f\x1b(B".to_owned();
        for (_, _, off) in self.others() {
            text.push_str(off);
        }
        self.for_private(|mode, on_at_start| {
            text.push_str(&format!("\x1b[?{mode}{}", if on_at_start { 'h' } else { 'l' }));
        });
        text.into_bytes()
    }

    fn for_private(self, mut each: impl FnMut(u16, bool)) {
        for (at, (mode, on_at_start)) in PRIVATE.into_iter().enumerate() {
            if self.0 & (1 << at) != 0 {
                each(mode, on_at_start);
            }
        }
    }

    fn others(self) -> impl Iterator<Item = (Other, &'static str, &'static str)> {
        OTHER.into_iter().filter(move |(other, ..)| self.0 & other.bit() != 0)
    }

    fn set_private(&mut self, mode: u16, on: bool) {
        let Some(at) = PRIVATE.iter().position(|(known, _)| *known == mode) else { return };
        let differs = PRIVATE.get(at).is_some_and(|(_, on_at_start)| *on_at_start != on);
        self.set_bit(1 << at, differs);
    }

    fn set(&mut self, other: Other, on: bool) {
        self.set_bit(other.bit(), on);
    }

    fn set_bit(&mut self, bit: u64, on: bool) {
        if on { self.0 |= bit } else { self.0 &= !bit }
    }
}

/// Follows one stream of output.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    state: State,
    /// The unfinished sequence, from its ESC on.
    sequence: Vec<u8>,
    /// It has grown too long, and is forgotten.
    overlong: bool,
    modes: Modes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    /// After ESC, and after its intermediate bytes.
    Escape,
    Csi,
    /// Operating system command: ended by BEL or ESC \.
    Osc,
    /// Device control and private strings: ended by ESC \.
    Text,
    /// ESC inside one of those two.
    TextEscape,
}

/// What one byte did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It stands for itself.
    Plain,
    /// It belongs to a sequence that goes on.
    Held,
    /// With it a sequence is complete.
    Complete,
    /// The sequence before it is void.
    Void,
}

// === impl Scanner ===

impl Scanner {
    /// A stream that begins with these modes on.
    pub fn with_modes(modes: Modes) -> Self {
        Self { modes, ..Self::default() }
    }

    pub fn modes(&self) -> Modes {
        self.modes
    }

    /// Whether the stream could be cut here without breaking a sequence.
    pub fn between_sequences(&self) -> bool {
        self.state == State::Ground
    }

    /// Follows `bytes`.
    pub fn scan(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.state == State::Ground {
                // Nearly everything is text, and only ESC begins something.
                let Some(at) = rest.iter().position(|byte| *byte == ESC) else { return };
                rest = rest.get(at..).unwrap_or_default();
            }
            let Some((byte, after)) = rest.split_first() else { return };
            if self.step(*byte) == Step::Complete {
                self.apply();
            }
            rest = after;
        }
    }

    /// Follows `bytes` and appends to `out` what of them may be shown again later: no questions,
    /// no bells, nothing that reaches beyond the screen.
    pub fn replayable(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for byte in bytes {
            match self.step(*byte) {
                Step::Plain if matches!(*byte, BEL | ENQ) => {}
                Step::Plain => out.push(*byte),
                Step::Held | Step::Void => {}
                Step::Complete => {
                    self.apply();
                    if !self.overlong && may_be_replayed(&self.sequence) {
                        out.extend_from_slice(&self.sequence);
                    }
                }
            }
        }
    }

    fn step(&mut self, byte: u8) -> Step {
        match (self.state, byte) {
            (State::Ground, ESC) => self.begin(),
            (State::Ground, _) => Step::Plain,
            (State::TextEscape, b'\\') => self.complete(byte),
            // Any other sequence ends the text before it, as terminals have it.
            (State::TextEscape, _) => {
                self.begin();
                self.step(byte)
            }
            (State::Osc | State::Text, ESC) => {
                self.hold(byte);
                self.state = State::TextEscape;
                Step::Held
            }
            (_, CAN | SUB) => {
                self.state = State::Ground;
                Step::Void
            }
            (State::Osc, BEL) => self.complete(byte),
            (State::Osc | State::Text, _) => self.hold(byte),
            (_, ESC) => self.begin(),
            // Control characters inside of a sequence act at once and leave it as it is; none that
            // does matters here.
            (_, 0..=0x1f | 0x7f..) => Step::Held,
            (State::Escape, _) => self.after_escape(byte),
            (State::Csi, 0x40..) => self.complete(byte),
            (State::Csi, _) => self.hold(byte),
        }
    }

    fn after_escape(&mut self, byte: u8) -> Step {
        let first = self.sequence.len() == 1;
        self.state = match byte {
            b'[' if first => State::Csi,
            b']' if first => State::Osc,
            b'P' | b'_' | b'^' | b'X' if first => State::Text,
            0x20..=0x2f => State::Escape,
            _ => return self.complete(byte),
        };
        self.hold(byte)
    }

    fn begin(&mut self) -> Step {
        self.sequence.clear();
        self.overlong = false;
        self.state = State::Escape;
        self.hold(ESC)
    }

    fn hold(&mut self, byte: u8) -> Step {
        if self.sequence.len() < SEQUENCE_BYTES_MAX {
            self.sequence.push(byte);
        } else {
            self.overlong = true;
        }
        Step::Held
    }

    fn complete(&mut self, byte: u8) -> Step {
        self.hold(byte);
        self.state = State::Ground;
        Step::Complete
    }

    /// What the complete sequence does to the modes.
    fn apply(&mut self) {
        if self.overlong {
            return;
        }
        match self.sequence.as_slice() {
            [ESC, b'c'] => self.modes = Modes::default(),
            [ESC, b'='] => self.modes.set(Other::Keypad, true),
            [ESC, b'>'] => self.modes.set(Other::Keypad, false),
            [ESC, b'[', b'?', numbers @ .., end @ (b'h' | b'l')] => {
                for mode in numbers.split(|byte| *byte == b';').filter_map(number) {
                    self.modes.set_private(mode, *end == b'h');
                }
            }
            [ESC, b'[', b'>' | b'=', .., b'u'] => self.modes.set(Other::KittyKeys, true),
            [ESC, b'[', b'<', .., b'u'] => self.modes.set(Other::KittyKeys, false),
            [ESC, b'[', b'>', b'4', rest @ .., b'm'] => {
                self.modes.set(Other::ModifiedKeys, rest.len() > 1 && rest != b";0");
            }
            [ESC, b'[', numbers @ .., b'r'] if numbers.iter().all(is_number) => {
                self.modes.set(Other::Margins, !numbers.is_empty());
            }
            [ESC, b'[', b'!', b'p'] => self.soft_reset(),
            _ => {}
        }
    }

    fn soft_reset(&mut self) {
        for (mode, on) in [(1, false), (6, false), (7, true), (25, true), (66, false)] {
            self.modes.set_private(mode, on);
        }
        self.modes.set(Other::Keypad, false);
        self.modes.set(Other::Margins, false);
    }
}

fn is_number(byte: &u8) -> bool {
    byte.is_ascii_digit() || *byte == b';'
}

fn number(text: &[u8]) -> Option<u16> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Of a complete sequence: whether showing it again does no more than draw.
fn may_be_replayed(sequence: &[u8]) -> bool {
    match sequence {
        // Titles and links; not the clipboard, not questions for colours.
        [ESC, b']', command @ .., _] => {
            let number = command.split(|byte| *byte == b';').next().unwrap_or_default();
            matches!(number, b"0" | b"1" | b"2" | b"8")
        }
        [ESC, b'P' | b'_' | b'^' | b'X' | b'Z', ..] => false,
        // Status, identity, settings, the window, keyboard and graphics.
        [ESC, b'[', .., b'n' | b'c' | b't' | b'x'] => false,
        [ESC, b'[', rest @ .., b'p' | b'y'] => !rest.iter().any(|byte| b"$*".contains(byte)),
        [ESC, b'[', b'>', .., b'q'] | [ESC, b'[', b'?', .., b'u' | b'S' | b'm'] => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn modes_after(text: &str) -> Modes {
        let mut scanner = Scanner::default();
        scanner.scan(text.as_bytes());
        scanner.modes()
    }

    fn replayed(text: &str) -> String {
        let mut out = Vec::new();
        Scanner::default().replayable(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn modes_that_a_program_leaves_on_are_known_and_undone() {
        let vim = "\x1b[?1049h\x1b[22;0;0t\x1b[?1h\x1b=\x1b[?2004h\x1b[1;24r\x1b[?25l\x1b[>4;2m";
        let left = modes_after(vim);
        assert!(!left.is_default());
        let undone = String::from_utf8(left.leave()).unwrap();
        for off in ["\x1b[?1049l", "\x1b[?1l", "\x1b>", "\x1b[?2004l", "\x1b[r", "\x1b[?25h"] {
            assert!(undone.contains(off), "{off:?} in {undone:?}");
        }
        assert!(modes_after(&format!("{vim}{undone}")).is_default());
        assert_eq!(modes_after("\x1b[?1000;1006h").enter(), b"\x1b[?1000h\x1b[?1006h");
        for nothing in ["plain", "\x1b[?1049h\x1bc", "\x1b[?25l\x1b[!p", "\x1b[?9999h", "\x1b[31m"]
        {
            assert!(modes_after(nothing).is_default(), "{nothing:?}");
        }
        assert!(modes_after("\x1b[>1u").leave().windows(5).any(|part| part == b"\x1b[<9u"));
    }

    #[test]
    fn entering_the_modes_of_a_stream_is_the_stream_for_them() {
        let left = modes_after("\x1b[?1049h\x1b[?25l\x1b=\x1b[?2004h");
        let entered = String::from_utf8(left.enter()).unwrap();
        assert_eq!(modes_after(&entered), left);
        assert_eq!(Modes::from_bits(left.bits()), left);
        assert_eq!(Modes::from_bits(u64::MAX).bits() & (1 << 40), 0, "an unknown bit is dropped");
    }

    #[test]
    fn questions_are_not_replayed_and_drawing_is() {
        for question in [
            "\x1b[6n",
            "\x1b[c",
            "\x1b[>c",
            "\x1b[?25$p",
            "\x1b[>q",
            "\x1b[18t",
            "\x1b[?u",
            "\x1b]10;?\x07",
            "\x1b]11;?\x1b\\",
            "\x1b]52;c;c2VjcmV0\x07",
            "\x1bP+q544e\x1b\\",
            "\x1b_Gi=1,a=q;AAAA\x1b\\",
            "\x1bZ",
            "\x05",
            "\x07",
        ] {
            assert_eq!(replayed(&format!("a{question}b")), "ab", "{question:?}");
        }
        for drawing in [
            "\x1b[1;31mred\x1b[0m",
            "\x1b]0;title\x07",
            "\x1b]8;;http://x\x1b\\",
            "\x1b[2J\x1b[H",
            "\x1b(0",
            "\x1b[?1049h",
            "\x1b[3;4H",
            "\x1b[2 q",
            "grün\r\n",
            "\x1b7\x1b8",
        ] {
            assert_eq!(replayed(drawing), drawing);
        }
        assert_eq!(replayed("\x1b[12\x18ok"), "ok");
        assert_eq!(replayed("\x1b]0;cut by\x1b[1mbold"), "\x1b[1mbold");
        let long = format!("\x1b]0;{}\x07after", "x".repeat(SEQUENCE_BYTES_MAX));
        assert_eq!(replayed(&long), "after");
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_are_followed_alike(
            bytes in proptest::collection::vec(prop_oneof![
                Just(ESC), Just(b'['), Just(b']'), Just(b'?'), Just(b';'), Just(b'h'), Just(b'l'),
                Just(BEL), Just(b'\\'), Just(b'1'), Just(b'P'), Just(b'n'), any::<u8>(),
            ], 0..200),
            cut in 0usize..200,
        ) {
            let cut = cut.min(bytes.len());
            let mut whole = Scanner::default();
            whole.scan(&bytes);
            let mut pieces = Scanner::default();
            let mut out = Vec::new();
            pieces.replayable(&bytes[..cut], &mut out);
            pieces.replayable(&bytes[cut..], &mut out);
            prop_assert_eq!(whole.modes(), pieces.modes());
            prop_assert_eq!(whole.between_sequences(), pieces.between_sequences());
            prop_assert!(pieces.sequence.len() <= SEQUENCE_BYTES_MAX);
            // What may be replayed may be replayed again.
            let mut again = Vec::new();
            Scanner::default().replayable(&out, &mut again);
            prop_assert_eq!(out, again);
        }
    }
}
