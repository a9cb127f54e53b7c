//! The words of an expression.

use super::ExpressionError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Name(String),
    Text(String),
    Int(i64),
    Symbol(&'static str),
    End,
}

/// Longer ones first, so that `<=` is not read as `<`.
const SYMBOLS: &[&str] = &[
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ",", ".", "?", ":", "-",
];

/// Every word with the byte where it begins.
pub(super) fn words(text: &str) -> Result<Vec<(Token, usize)>, ExpressionError> {
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
        at += blank;
        let rest = rest.get(blank..).unwrap_or_default();
        let Some(first) = rest.chars().next() else {
            words.push((Token::End, at));
            return Ok(words);
        };
        let (token, length) = word(rest, first).map_err(|what| error(text, at, what))?;
        words.push((token, at));
        at += length;
    }
}

pub(super) fn error(text: &str, at: usize, what: impl Into<String>) -> ExpressionError {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    ExpressionError {
        what: what.into(),
        column: 1 + String::from_utf8_lossy(before).chars().count(),
    }
}

fn word(rest: &str, first: char) -> Result<(Token, usize), String> {
    let run = |fits: fn(char) -> bool| rest.find(|c| !fits(c)).unwrap_or(rest.len());
    if matches!(first, '"' | '\'') {
        return quoted(rest, first).map(|(text, length)| (Token::Text(text), length));
    }
    if let Some(raw) = rest.strip_prefix('r')
        && let Some(quote) = raw.chars().next().filter(|c| matches!(c, '"' | '\''))
    {
        let inner = raw.get(1..).unwrap_or_default();
        let end = inner.find(quote).ok_or("the text has no end")?;
        return Ok((Token::Text(inner[..end].to_owned()), end + 3));
    }
    if first.is_ascii_digit() {
        let length = run(|c| c.is_ascii_alphanumeric() || c == '.');
        let number = rest[..length].parse();
        let number = number.map_err(|_| "not a whole number that fits 64 bits")?;
        return Ok((Token::Int(number), length));
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let length = run(|c| c.is_ascii_alphanumeric() || c == '_');
        return Ok((Token::Name(rest[..length].to_owned()), length));
    }
    match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
        Some(symbol) => Ok((Token::Symbol(symbol), symbol.len())),
        None => Err(format!("`{}` means nothing here", first.escape_default())),
    }
}

fn quoted(rest: &str, quote: char) -> Result<(String, usize), String> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Ok((text, at + c.len_utf8())),
            '\n' => break,
            '\\' => text.push(escaped(&mut chars)?),
            c => text.push(c),
        }
    }
    Err("the text has no end".to_owned())
}

fn escaped(chars: &mut impl Iterator<Item = (usize, char)>) -> Result<char, String> {
    let mut next = || chars.next().map(|(_, c)| c).ok_or("the text has no end");
    let digits = match next()? {
        'n' => return Ok('\n'),
        'r' => return Ok('\r'),
        't' => return Ok('\t'),
        c @ ('\\' | '"' | '\'') => return Ok(c),
        'x' => 2,
        'u' => 4,
        other => {
            let shown = other.escape_default();
            return Err(format!("`\\{shown}` is no escape; a raw text is r\"…\""));
        }
    };
    let mut code = 0;
    for _ in 0..digits {
        code = code * 16 + next()?.to_digit(16).ok_or("an escape needs hexadecimal digits")?;
    }
    char::from_u32(code).ok_or_else(|| "the escape is no character".to_owned())
}
