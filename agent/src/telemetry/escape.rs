//! Text that came from outside, made safe for one line of a log: nothing in it can end the line, end the quotes, or
//! speak to the terminal that shows it.
//!
//! Before: values of an access record, or of what the agent tells of itself. After: [`super::text`], [`super::json`] and the
//! tables of the command line. Knows nothing of either.

use std::fmt;

/// Shows its text for use between double quotes: `"` and `\` get a backslash, control characters and everything that
/// some reader takes for the end of a line become `\u` and four digits.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nearly always there is nothing to be done.
        if self.0.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
            return f.write_str(self.0);
        }
        let mut rest = self.0;
        while let Some(at) = rest.find(|c| c == '"' || c == '\\' || is_hidden(c)) {
            let (plain, from) = rest.split_at(at);
            f.write_str(plain)?;
            let mut chars = from.chars();
            match chars.next() {
                Some(c @ ('"' | '\\')) => write!(f, "\\{c}")?,
                Some(c) => write!(f, "\\u{:04x}", u32::from(c))?,
                None => {}
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

/// Shows its text on one line of a terminal, for people: control characters and what else [`is_hidden`] become `\u` and
/// four digits, quotes and backslashes stay as they are.
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(is_hidden) {
            match part.char_indices().next_back() {
                Some((at, c)) if is_hidden(c) => write!(f, "{}\\u{:04x}", &part[..at], u32::from(c))?,
                _ => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

/// Finished JSON in which the characters that JSON allows in strings, but that terminals and line splitters act upon,
/// are written as escapes. Outside of strings JSON has none of them.
pub fn harden_json(json: String) -> String {
    if json.bytes().all(|byte| matches!(byte, b' '..=b'~')) || !json.contains(is_hidden) {
        return json;
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_hidden(c) {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Control characters, the two Unicode line separators, and the marks that turn the direction of writing. All of them
/// lie in the basic plane, so that four digits name them.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_the_line_or_the_quotes() {
        let cases = [
            ("curl/8.0", "curl/8.0"),
            ("", ""),
            ("a\"b", "a\\\"b"),
            ("back\\slash", "back\\\\slash"),
            ("x\r\n[fake] line", "x\\u000d\\u000a[fake] line"),
            ("\u{1b}[31mred", "\\u001b[31mred"),
            ("sep\u{2028}arated\u{85}", "sep\\u2028arated\\u0085"),
            ("grün", "grün"),
        ];
        for (text, expected) in cases {
            assert_eq!(Quoted(text).to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn people_read_quotes_as_they_are_and_their_terminal_is_told_nothing() {
        let cases = [
            ("", ""),
            (r#"it's "web" \ böhm"#, r#"it's "web" \ böhm"#),
            ("\u{1b}[31mred\n", "\\u001b[31mred\\u000a"),
            ("a\u{202e}\u{7f}b", "a\\u202e\\u007fb"),
        ];
        for (text, expected) in cases {
            assert_eq!(Shown(text).to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn hardened_json_is_the_same_value_on_one_line() {
        let value = serde_json::json!({"agent": "a\u{2028}b\u{7f}c\nd\u{202e}"});
        let hardened = harden_json(value.to_string());
        assert!(!hardened.contains(is_hidden));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&hardened).expect("JSON"), value);
    }
}
