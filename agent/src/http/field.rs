//! What stands in a header's value, as both sides of HTTP read it.

/// The members of a list, without the space around them (RFC 9110 section 5.6.1).
pub fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether the list has `token` in it, in whatever case.
pub fn lists(value: &[u8], token: &str) -> bool {
    members(value).any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
}

/// A non-empty run of digits that fits: no sign, no space.
pub fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_searched_whatever_its_case_and_space() {
        for (value, expected) in [("close", true), ("keep-alive,\tClose ", true), ("", false), ("closed, x", false)] {
            assert_eq!(lists(value.as_bytes(), "close"), expected, "{value}");
        }
        assert_eq!(members(b"a,, b ").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
    }

    #[test]
    fn only_digits_that_fit_are_a_number() {
        let cases = [("0", Some(0)), ("007", Some(7)), ("18446744073709551615", Some(u64::MAX))];
        for (value, expected) in cases {
            assert_eq!(digits(value.as_bytes()), expected, "{value}");
        }
        for value in ["", "+5", "-1", " 5", "5 ", "0x5", "18446744073709551616", "\u{665}"] {
            assert_eq!(digits(value.as_bytes()), None, "{value}");
        }
    }
}
