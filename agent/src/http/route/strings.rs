//! Matching of texts: header values and query parameters.
//!
//! Nothing here allocates. Header values are bytes; one that is no UTF-8 matches no regular expression.

use super::{HeaderMatch, HeaderValueMatch, QueryMatch, QueryValueMatch, StringMatch, StringMatchKind};

impl StringMatch {
    /// Whether `value` is such a text.
    pub fn matches(&self, value: &[u8]) -> bool {
        let equal = |own: &str, part: Option<&[u8]>| {
            part.is_some_and(|part| match self.ignore_case {
                true => part.eq_ignore_ascii_case(own.as_bytes()),
                false => part == own.as_bytes(),
            })
        };
        match &self.kind {
            StringMatchKind::Exact(own) => equal(own, Some(value)),
            StringMatchKind::Prefix(own) => equal(own, value.get(..own.len())),
            StringMatchKind::Suffix(own) => {
                equal(own, value.len().checked_sub(own.len()).and_then(|start| value.get(start..)))
            }
            StringMatchKind::Contains(own) => {
                own.is_empty() || value.windows(own.len()).any(|part| equal(own, Some(part)))
            }
            StringMatchKind::SafeRegex(regex) => str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
        }
    }
}

impl HeaderValueMatch {
    /// Whether `value` is such a value; [`Self::Present`] holds for any.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(present) => *present,
            Self::Range { start, end } => number(value).is_some_and(|number| (*start..*end).contains(&number)),
            Self::String(string) => string.matches(value),
        }
    }
}

impl HeaderMatch {
    /// Whether a header with this value (several joined with a comma; `None` when it is absent) is what the row wants.
    pub fn matches(&self, value: Option<&[u8]>) -> bool {
        if let HeaderValueMatch::Present(present) = self.value {
            return (value.is_some() == present) != self.invert;
        }
        match value {
            Some(value) => self.value.matches(value) != self.invert,
            None if self.treat_missing_header_as_empty => self.value.matches(b"") != self.invert,
            // Even when inverted: Envoy matches no header that is not there.
            None => false,
        }
    }
}

impl QueryMatch {
    /// Whether a parameter with this value (`None` when it is absent) is what the row wants.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match (&self.value, value) {
            (QueryValueMatch::Present(present), value) => value.is_some() == *present,
            (QueryValueMatch::String(string), Some(value)) => string.matches(value.as_bytes()),
            (QueryValueMatch::String(_), None) => false,
        }
    }
}

/// A base-10 i64 with optional sign and surrounding white space, as `absl::SimpleAtoi` reads it.
fn number(value: &[u8]) -> Option<i64> {
    str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

/// The value of the first parameter called `name` in `query`, not percent-decoded; empty when it has none.
pub fn query_parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|parameter| {
        let (own, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (own == name && !parameter.is_empty()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::route::FullRegex;

    fn string(kind: StringMatchKind, ignore_case: bool) -> HeaderValueMatch {
        HeaderValueMatch::String(StringMatch { kind, ignore_case })
    }

    fn header(value: HeaderValueMatch) -> HeaderMatch {
        HeaderMatch { name: "x".to_owned(), value, invert: false, treat_missing_header_as_empty: false }
    }

    #[test]
    fn each_kind_of_value_matches_as_documented() {
        let exact = |text: &str| StringMatchKind::Exact(text.to_owned());
        let cases = [
            (string(exact("true"), false), "true", true),
            (string(exact("true"), false), "TRUE", false),
            (string(exact("true"), true), "TRUE", true),
            (string(StringMatchKind::Prefix("ab".to_owned()), false), "abc", true),
            (string(StringMatchKind::Prefix("ab".to_owned()), false), "a", false),
            (string(StringMatchKind::Suffix("bc".to_owned()), true), "aBC", true),
            (string(StringMatchKind::Suffix("bc".to_owned()), false), "c", false),
            (string(StringMatchKind::Contains("bc".to_owned()), true), "aBCd", true),
            (string(StringMatchKind::Contains("bc".to_owned()), false), "b-c", false),
            (string(StringMatchKind::SafeRegex(FullRegex::new("a|b+").expect("regex")), false), "bb", true),
            (string(StringMatchKind::SafeRegex(FullRegex::new("a|b+").expect("regex")), false), "bba", false),
            (HeaderValueMatch::Range { start: -1, end: 10 }, "-1", true),
            (HeaderValueMatch::Range { start: -1, end: 10 }, "10", false),
            (HeaderValueMatch::Range { start: 0, end: 10 }, "+7", true),
            (HeaderValueMatch::Range { start: 0, end: 10 }, "7.0", false),
            (HeaderValueMatch::Range { start: 0, end: 10 }, "", false),
        ];
        for (value, text, expected) in cases {
            let mut header = header(value);
            assert_eq!(header.matches(Some(text.as_bytes())), expected, "{header:?} {text}");
            header.invert = true;
            assert_eq!(header.matches(Some(text.as_bytes())), !expected, "{header:?} {text}");
            assert!(!header.matches(None), "{header:?}: an absent header does not match even inverted");
        }
    }

    #[test]
    fn an_absent_header_matches_when_it_is_treated_as_empty_or_must_be_absent() {
        let mut empty = header(string(StringMatchKind::Exact(String::new()), false));
        assert!(!empty.matches(None));
        empty.treat_missing_header_as_empty = true;
        assert!(empty.matches(None));
        for (present, invert) in [(true, true), (false, false)] {
            let absent = HeaderMatch { invert, ..header(HeaderValueMatch::Present(present)) };
            assert!(absent.matches(None) && !absent.matches(Some(b"")));
        }
    }

    #[test]
    fn only_the_first_occurrence_of_a_parameter_counts() {
        let cases = [
            ("a=1&b=2&a=3", "a", Some("1")),
            ("a=1&b=2", "b", Some("2")),
            ("a", "a", Some("")),
            ("a=%20=x", "a", Some("%20=x")),
            ("aa=1", "a", None),
            ("", "a", None),
        ];
        for (query, name, expected) in cases {
            assert_eq!(query_parameter(query, name), expected, "{query}");
        }
    }
}
