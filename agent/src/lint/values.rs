//! Whether one condition on a text implies another: the sets of values that matchers accept, compared by proof.
//!
//! Everything here may say "no" to what is true (a proof was not found), never "yes" to what is false.

use std::borrow::Cow;

use crate::http::route::{HeaderMatch, HeaderValueMatch, QueryMatch, QueryValueMatch, StringMatch, StringMatchKind};

/// Whether every request that satisfies `later` satisfies `earlier`.
pub(super) fn header_implies(later: &HeaderMatch, earlier: &HeaderMatch) -> bool {
    header_name(later) == header_name(earlier)
        && (!later.matches(None) || earlier.matches(None))
        && Values::of_header(later).within(&Values::of_header(earlier))
}

/// Whether every request that satisfies `later` satisfies `earlier`.
pub(super) fn query_implies(later: &QueryMatch, earlier: &QueryMatch) -> bool {
    later.name == earlier.name
        && (!later.matches(None) || earlier.matches(None))
        && Values::of_query(later).within(&Values::of_query(earlier))
}

/// `host` and `:authority` are one.
fn header_name(header: &HeaderMatch) -> &str {
    if header.name == "host" { ":authority" } else { &header.name }
}

/// The values of a header or parameter, given that it is there.
enum Values<'a> {
    All,
    Nothing,
    In(Kind<'a>),
    NotIn(Kind<'a>),
}

/// A set of values by its condition.
#[derive(PartialEq)]
enum Kind<'a> {
    Range(i64, i64),
    String(&'a StringMatch),
}

impl<'a> Values<'a> {
    fn of_header(header: &'a HeaderMatch) -> Self {
        let kind = match &header.value {
            HeaderValueMatch::Present(present) if *present != header.invert => return Self::All,
            HeaderValueMatch::Present(_) => return Self::Nothing,
            HeaderValueMatch::Range { start, end } => Kind::Range(*start, *end),
            HeaderValueMatch::String(string) => Kind::String(string),
        };
        if header.invert { Self::NotIn(kind) } else { Self::In(kind) }
    }

    fn of_query(query: &'a QueryMatch) -> Self {
        match &query.value {
            QueryValueMatch::Present(true) => Self::All,
            QueryValueMatch::Present(false) => Self::Nothing,
            QueryValueMatch::String(string) => Self::In(Kind::String(string)),
        }
    }

    fn within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::All) => true,
            (Self::In(own), Self::In(other)) => own.within(other),
            // The complements the other way round.
            (Self::NotIn(own), Self::NotIn(other)) => other.within(own),
            (Self::In(own), Self::NotIn(other)) => own.only().is_some_and(|value| !other.matches(value)),
            _ => false,
        }
    }
}

impl<'a> Kind<'a> {
    /// The value, if it is the only one.
    fn only(&self) -> Option<&'a str> {
        match self {
            Self::String(StringMatch { kind: StringMatchKind::Exact(text), ignore_case })
                if !(*ignore_case && has_letters(text)) =>
            {
                Some(text)
            }
            _ => None,
        }
    }

    fn matches(&self, value: &str) -> bool {
        match *self {
            Self::Range(start, end) => HeaderValueMatch::Range { start, end }.matches(value.as_bytes()),
            Self::String(string) => string.matches(value.as_bytes()),
        }
    }

    fn within(&self, other: &Kind<'_>) -> bool {
        if self == other {
            return true;
        }
        if let Some(value) = self.only() {
            return other.matches(value);
        }
        match (self, other) {
            (Self::Range(start, end), Kind::Range(from, to)) => start >= end || (from <= start && end <= to),
            (Self::String(own), Kind::String(other)) => string_within(own, other),
            _ => false,
        }
    }
}

fn string_within(own: &StringMatch, other: &StringMatch) -> bool {
    use StringMatchKind::{Contains, Exact, Prefix, SafeRegex, Suffix};
    let (own_text, other_text) = match (&own.kind, &other.kind) {
        // What a regular expression matches is UTF-8 without line ends, and so is what `.*` matches.
        (SafeRegex(own), SafeRegex(other)) => return own == other || other.source() == ".*",
        (SafeRegex(_), _) | (_, SafeRegex(_)) => return false,
        (
            Exact(own_text) | Prefix(own_text) | Suffix(own_text) | Contains(own_text),
            Exact(other_text) | Prefix(other_text) | Suffix(other_text) | Contains(other_text),
        ) => (own_text, other_text),
    };
    let Some((own_text, other_text)) = comparable((own_text, own.ignore_case), (other_text, other.ignore_case)) else {
        return false;
    };
    match (&own.kind, &other.kind) {
        (Exact(_), Exact(_)) => own_text == other_text,
        (Exact(_) | Prefix(_), Prefix(_)) => own_text.starts_with(&*other_text),
        (Exact(_) | Suffix(_), Suffix(_)) => own_text.ends_with(&*other_text),
        (_, Contains(_)) => own_text.contains(&*other_text),
        _ => false,
    }
}

/// Brings two patterns into a form in which comparing them letter by letter proves what holds for their matches: lower
/// case where `other` ignores case, as they are where case makes no difference, else `None`.
pub(super) fn comparable<'t>(own: (&'t str, bool), other: (&'t str, bool)) -> Option<(Cow<'t, str>, Cow<'t, str>)> {
    let ((own, own_ignores), (other, other_ignores)) = (own, other);
    let case_counts = has_letters(other);
    if case_counts && other_ignores {
        return Some((own.to_ascii_lowercase().into(), other.to_ascii_lowercase().into()));
    }
    (!case_counts || !own_ignores || !has_letters(own)).then_some((own.into(), other.into()))
}

/// Whether case makes a difference.
pub(super) fn has_letters(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_alphabetic())
}
