//! Patterns for texts and for paths, matched in time linear in the text for each star.

use std::fmt;

/// `*` stands for any characters, also none. Everything else stands for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob(Box<str>);

impl Glob {
    pub fn new(pattern: &str) -> Glob {
        Glob(pattern.into())
    }

    pub fn matches(&self, text: &str) -> bool {
        wildcard(self.0.as_bytes(), text.as_bytes(), Case::Exact)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A path by its segments: `*` within one, `**` for any number of whole ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathGlob {
    text: Box<str>,
    segments: Box<[Segment]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Any,
    Literal(Box<str>),
    Pattern(Box<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Exact,
    /// For rules that close: a server may not tell the letters apart.
    Folded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathGlobError {
    #[error("does not begin with `/`")]
    NoSlash,
    #[error("has `**` beside other characters of its segment")]
    PartialStars,
    #[error("has an empty segment, `.` or `..`, which no path that is let through has")]
    Segment,
    #[error("has a `;`, `?`, `#`, `\\` or a control character")]
    Character,
    #[error("has a `%`: paths are compared decoded, so write the character itself")]
    Percent,
}

impl PathGlob {
    pub fn parse(text: &str) -> Result<PathGlob, PathGlobError> {
        let rest = text.strip_prefix('/').ok_or(PathGlobError::NoSlash)?;
        if text.contains('%') {
            return Err(PathGlobError::Percent);
        }
        if text.contains(|c: char| c.is_control() || matches!(c, ';' | '?' | '#' | '\\')) {
            return Err(PathGlobError::Character);
        }
        let count = rest.split('/').count();
        let mut segments = Vec::new();
        for (index, segment) in rest.split('/').enumerate() {
            let is_last = index + 1 == count;
            segments.push(match segment {
                "**" => Segment::Any,
                "." | ".." => return Err(PathGlobError::Segment),
                "" if !is_last => return Err(PathGlobError::Segment),
                _ if segment.contains("**") => return Err(PathGlobError::PartialStars),
                _ if segment.contains('*') => Segment::Pattern(segment.into()),
                _ => Segment::Literal(segment.into()),
            });
        }
        Ok(PathGlob { text: text.into(), segments: segments.into() })
    }

    /// `path` begins with `/` and is decoded.
    pub fn matches(&self, path: &str, case: Case) -> bool {
        let path = path.strip_prefix('/').unwrap_or(path);
        // A server may take a path for the same with a slash at its end.
        let folded = path.trim_end_matches('/');
        let as_it_is = self.matches_segments(path, case);
        as_it_is || (case == Case::Folded && folded != path && self.matches_segments(folded, case))
    }

    /// Two pointers and the place of the last `**`: never more than segments × pattern.
    fn matches_segments(&self, path: &str, case: Case) -> bool {
        let mut rest = Some(path);
        let mut at = 0;
        let mut retry: Option<(usize, Option<&str>)> = None;
        loop {
            let step = match (self.segments.get(at), rest) {
                (None, None) => return true,
                (Some(Segment::Any), _) => {
                    retry = Some((at, rest));
                    at += 1;
                    continue;
                }
                (Some(segment), Some(path)) => {
                    let (first, after) = split(path);
                    segment.matches(first, case).then_some(after)
                }
                (None, Some(_)) | (Some(_), None) => None,
            };
            match (step, retry) {
                (Some(after), _) => {
                    rest = after;
                    at += 1;
                }
                (None, Some((any, Some(from)))) => {
                    let (_, after) = split(from);
                    retry = Some((any, after));
                    rest = after;
                    at = any + 1;
                }
                (None, _) => return false,
            }
        }
    }

    /// Whether it holds for every path that the other one holds for; `false` when unsure.
    pub fn covers(&self, other: &PathGlob) -> bool {
        if self == other {
            return true;
        }
        let Some((Segment::Any, front)) = self.segments.split_last() else { return false };
        let literal = |segment: &Segment| matches!(segment, Segment::Literal(_));
        front.iter().all(literal) && other.segments.starts_with(front)
    }

    /// A segment that every path has which it holds for: the longest, as that is the rarest.
    pub(crate) fn literal(&self) -> Option<&str> {
        let literals = self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(text) => Some(&**text),
            Segment::Any | Segment::Pattern(_) => None,
        });
        literals.max_by_key(|text| text.len())
    }
}

fn split(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((first, after)) => (first, Some(after)),
        None => (path, None),
    }
}

impl Segment {
    fn matches(&self, segment: &str, case: Case) -> bool {
        match (self, case) {
            (Segment::Any, _) => true,
            (Segment::Literal(literal), Case::Exact) => **literal == *segment,
            (Segment::Literal(literal), Case::Folded) => literal.eq_ignore_ascii_case(segment),
            (Segment::Pattern(text), _) => wildcard(text.as_bytes(), segment.as_bytes(), case),
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PathGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn wildcard(pattern: &[u8], text: &[u8], case: Case) -> bool {
    let same = |a: u8, b: u8| match case {
        Case::Exact => a == b,
        Case::Folded => a.eq_ignore_ascii_case(&b),
    };
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if same(*byte, text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    star = Some((star_p, star_t + 1));
                    p = star_p + 1;
                    t = star_t + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, holds) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("*a*b*", "xxaxxbxx", true),
            ("a", "A", false),
            ("", "a", false),
            ("**", "é", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), holds, "{pattern} {text}");
        }
    }

    #[test]
    fn paths_match_by_segments() {
        for (pattern, path, holds) in [
            ("/a", "/a", true),
            ("/a", "/a/", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/**", "/a", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/ab", false),
            ("/**/z", "/a/b/z", true),
            ("/**/z", "/z", true),
            ("/**/a/*/b", "/a/a/x/b", true),
            ("/**/a/*/b", "/a/a/x/c", false),
            ("/v*/x", "/v2/x", true),
            ("/", "/", true),
            ("/**", "/", true),
        ] {
            let glob = PathGlob::parse(pattern).unwrap();
            assert_eq!(glob.matches(path, Case::Exact), holds, "{pattern} {path}");
        }
        let admin = PathGlob::parse("/admin").unwrap();
        for path in ["/Admin", "/admin/", "/ADMIN//"] {
            assert!(admin.matches(path, Case::Folded), "{path}");
            assert!(!admin.matches(path, Case::Exact), "{path}");
        }
    }

    #[test]
    fn covering_is_never_claimed_wrongly() {
        let glob = |text| PathGlob::parse(text).unwrap();
        assert!(glob("/**").covers(&glob("/a/*/c")));
        assert!(glob("/a/**").covers(&glob("/a/b")));
        assert!(glob("/a/**").covers(&glob("/a")));
        assert!(!glob("/a/**").covers(&glob("/b")));
        assert!(!glob("/*/**").covers(&glob("/")));
    }
}
