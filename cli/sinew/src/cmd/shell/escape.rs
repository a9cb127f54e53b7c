//! The keys that leave a shell, as `ssh` has them: at the beginning of a line, `~` and then `.`.

use std::str::FromStr;

const ENTER: u8 = b'\r';
const NEWLINE: u8 = b'\n';
const DETACH: u8 = b'.';

/// The key that begins an escape; `None`: every key is the program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EscapeKey(pub Option<u8>);

impl FromStr for EscapeKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            b"none" => Ok(Self(None)),
            [key] if key.is_ascii_graphic() && *key != DETACH => Ok(Self(Some(*key))),
            [b'^', key @ b'@'..=b'_'] => Ok(Self(Some(key & 0x1f))),
            [b'^', key @ b'a'..=b'z'] => Ok(Self(Some(key & 0x1f))),
            _ => Err("write one character (not a dot), one like ^], or none".to_owned()),
        }
    }
}

/// The key as people write it.
pub fn shown(key: u8) -> String {
    if key < 0x20 { format!("^{}", char::from(key + 0x40)) } else { char::from(key).to_string() }
}

pub struct Escape {
    key: EscapeKey,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    LineStart,
    InLine,
    /// The key was typed and is held back.
    Key,
}

impl Escape {
    pub fn new(key: EscapeKey) -> Self {
        Self { key, at: At::LineStart }
    }

    /// Appends to `through` what the program gets; `true`: the person wants to leave.
    pub fn pass(&mut self, typed: &[u8], through: &mut Vec<u8>) -> bool {
        let Some(key) = self.key.0 else {
            through.extend_from_slice(typed);
            return false;
        };
        for byte in typed {
            match self.at {
                At::LineStart if *byte == key => {
                    self.at = At::Key;
                    continue;
                }
                At::Key if *byte == DETACH => return true,
                At::Key if *byte == key => {}
                At::Key => through.push(key),
                At::LineStart | At::InLine => {}
            }
            through.push(*byte);
            self.at = if matches!(*byte, ENTER | NEWLINE) { At::LineStart } else { At::InLine };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(key: &str, pieces: &[&str]) -> (String, bool) {
        let mut escape = Escape::new(key.parse().unwrap());
        let mut through = Vec::new();
        let left = pieces.iter().any(|piece| escape.pass(piece.as_bytes(), &mut through));
        (String::from_utf8(through).unwrap(), left)
    }

    #[test]
    fn only_at_the_beginning_of_a_line_the_key_is_ours() {
        assert_eq!(typed("~", &["~."]), (String::new(), true));
        assert_eq!(typed("~", &["ls\r~", "."]), ("ls\r".into(), true));
        assert_eq!(typed("~", &["cd ~.\r"]), ("cd ~.\r".into(), false));
        assert_eq!(typed("~", &["~~."]), ("~.".into(), false));
        assert_eq!(typed("~", &["~/bin\r"]), ("~/bin\r".into(), false));
        assert_eq!(typed("~", &["~\r~."]), ("~\r".into(), true));
        assert_eq!(typed("none", &["\r~."]), ("\r~.".into(), false));
        assert_eq!(typed("^]", &["a\r\u{1d}."]), ("a\r".into(), true));
    }

    #[test]
    fn a_key_is_one_character() {
        assert_eq!("^]".parse(), Ok(EscapeKey(Some(0x1d))));
        assert_eq!("^a".parse(), Ok(EscapeKey(Some(1))));
        assert_eq!("%".parse(), Ok(EscapeKey(Some(b'%'))));
        for wrong in ["", ".", "ab", "ä", " ", "^^^", "^1"] {
            assert!(wrong.parse::<EscapeKey>().is_err(), "{wrong:?}");
        }
        assert_eq!((shown(0x1d), shown(b'~')), ("^]".to_owned(), "~".to_owned()));
    }
}
