//! Messages about types, as serde makes them for programmers, in words for everybody.

/// "invalid type: string \"abc\", expected f64" as what stands there and what is expected. `None` if it is no such message.
pub(super) fn plain(text: &str) -> Option<String> {
    let (at, fact) = ["invalid type: ", "invalid value: "].iter().find_map(|kind| text.split_once(kind))?;
    let (found, expected) = fact.rsplit_once(", expected ")?;
    let found = match found {
        "sequence" => "a list".to_owned(),
        "map" => "keys with values".to_owned(),
        "unit value" => "nothing".to_owned(),
        _ => match found.split_once(' ') {
            Some(("string", text)) => text.to_owned(),
            Some(("integer" | "boolean", number)) => number.trim_matches('`').to_owned(),
            Some(("floating", rest)) => rest.trim_start_matches("point ").trim_matches('`').to_owned(),
            _ => found.to_owned(),
        },
    };
    let expected = match expected {
        "f64" | "f32" => "a number is",
        "usize" | "u64" | "u32" | "u8" => "a whole number, 0 or more, is",
        "isize" | "i64" | "i32" => "a whole number is",
        "a boolean" => "true or false is",
        "a string" => "text is",
        "a sequence" => "a list is",
        other if other.starts_with("struct ") => "keys with values are",
        other => return Some(format!("{at}{found} stands here, {other} is expected")),
    };
    Some(format!("{at}{found} stands here, {expected} expected"))
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn says_what_stands_there_and_what_should() {
        for (text, said) in [
            (
                "a.b: invalid type: string \"x, expected y\", expected f64",
                "a.b: \"x, expected y\" stands here, a number is expected",
            ),
            ("invalid value: integer `-1`, expected usize", "-1 stands here, a whole number, 0 or more, is expected"),
            (
                "invalid type: floating point `1.5`, expected usize",
                "1.5 stands here, a whole number, 0 or more, is expected",
            ),
            ("invalid type: map, expected a boolean", "keys with values stands here, true or false is expected"),
            ("invalid type: unit value, expected struct Weight", "nothing stands here, keys with values are expected"),
            ("invalid type: integer `3`, expected a share as 1%", "3 stands here, a share as 1% is expected"),
        ] {
            assert_eq!(plain(text).as_deref(), Some(said));
        }
        assert_eq!(plain("did not find expected ','"), None);
    }
}
