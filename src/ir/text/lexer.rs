//! Text to tokens with their places.

use std::fmt;

use crate::error::{Error, Result};

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A bare word.
    Word(String),
    /// A quoted string, without quotes and escapes.
    Quoted(String),
    /// A number as written.
    Number(String),
    /// One of `<>()[]{},:=.?@` or another single character.
    Sign(char),
    /// `=>`
    Arrow,
    /// `...`
    Ellipsis,
    /// The end of the text.
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(w) | Self::Number(w) => write!(f, "{w:?}"),
            Self::Quoted(s) => write!(f, "the string {s:?}"),
            Self::Sign(c) => write!(f, "{:?}", c.to_string()),
            Self::Arrow => f.write_str("\"=>\""),
            Self::Ellipsis => f.write_str("\"...\""),
            Self::End => f.write_str("the end of the text"),
        }
    }
}

/// The tokens of a text, each with the byte offset where it starts; the last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, usize)>> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = skip_blank(rest);
        let at = text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            out.push((Token::End, at));
            return Ok(out);
        };
        let (token, len) = if first == '"' {
            quoted(rest).ok_or_else(|| error(text, at, "a string without its closing quote"))?
        } else if first.is_alphabetic() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            (Token::Word(rest[..len].to_owned()), len)
        } else if let Some(len) = number(rest) {
            (Token::Number(rest[..len].to_owned()), len)
        } else if rest.starts_with("=>") {
            (Token::Arrow, 2)
        } else if rest.starts_with("...") {
            (Token::Ellipsis, 3)
        } else {
            (Token::Sign(first), first.len_utf8())
        };
        out.push((token, at));
        rest = &rest[len..];
    }
}

/// An error at a byte offset of the text, as line and column.
pub(super) fn error(text: &str, at: usize, what: &str) -> Error {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.len() - before.rfind('\n').map_or(0, |i| i + 1) + 1;
    Error::malformed(format!("model text, line {line}, column {column}: {what}"))
}

fn skip_blank(mut rest: &str) -> &str {
    loop {
        rest = rest.trim_start();
        if !rest.starts_with('#') {
            return rest;
        }
        rest = rest.find('\n').map_or("", |i| &rest[i..]);
    }
}

/// A backslash stands in front of a character that is meant literally, as in ONNX's parser.
fn quoted(rest: &str) -> Option<(Token, usize)> {
    let mut s = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((Token::Quoted(s), i + 1)),
            '\\' => s.push(chars.next()?.1),
            c => s.push(c),
        }
    }
    None
}

/// The length of the number that the text starts with; `-inf` and `-nan` too.
fn number(rest: &str) -> Option<usize> {
    let b = rest.as_bytes();
    let digits = |mut i: usize| {
        while b.get(i).is_some_and(u8::is_ascii_digit) {
            i += 1;
        }
        i
    };
    let start = usize::from(matches!(b.first(), Some(b'-' | b'+')));
    for word in ["inf", "nan"] {
        if start == 1 && rest[1..].starts_with(word) {
            return Some(1 + word.len());
        }
    }
    let mut end = digits(start);
    let whole = end > start;
    if b.get(end) == Some(&b'.') && (whole || b.get(end + 1).is_some_and(u8::is_ascii_digit)) {
        end = digits(end + 1);
    }
    if end == start {
        return None;
    }
    if matches!(b.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(b.get(end + 1), Some(b'-' | b'+')));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    Some(end)
}
