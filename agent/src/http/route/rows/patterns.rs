//! Rows whose path is a regular expression or a template: what their paths begin with, and many of them at once.

use regex::{RegexSet, RegexSetBuilder};
use regex_syntax::hir::{Hir, HirKind};

use super::super::PathMatch;
use super::{NONE, Row};

/// So many patterns at one place are tried one by one; more go through sets. A set finds all that match and not only
/// the first, and has to write them down: it pays from about here on.
const MANY: usize = 8;
/// Patterns of one set. Each of its states names the patterns that are still possible, so that sets without a bound
/// would cost the square of the rows.
const SET_PATTERNS: usize = 256;
/// Compiled size of one set in bytes, a third more than `SET_PATTERNS` of usual ones need. Rows of a set that is larger
/// are tried one by one.
const SET_BYTES: usize = 8 << 20;

/// What every path that the regular expression or template `path` matches begins with.
pub(super) fn literal_prefix(path: &PathMatch) -> Vec<u8> {
    let mut prefix = Vec::new();
    match path {
        PathMatch::SafeRegex(regex) => {
            if let Ok(hir) = regex_syntax::parse(regex.source()) {
                literal(&hir, &mut prefix);
            }
        }
        PathMatch::Template(template) => prefix.extend_from_slice(template.literal_prefix().as_bytes()),
        PathMatch::Prefix(_) | PathMatch::Exact(_) | PathMatch::PathSeparatedPrefix(_) | PathMatch::Connect => {}
    }
    prefix
}

/// Appends what every match of `hir` begins with, and says whether that is all of it.
fn literal(hir: &Hir, prefix: &mut Vec<u8>) -> bool {
    match hir.kind() {
        // A look-around takes no byte: it only makes fewer paths match.
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(literal) => {
            prefix.extend_from_slice(&literal.0);
            true
        }
        HirKind::Capture(capture) => literal(&capture.sub, prefix),
        HirKind::Concat(parts) => parts.iter().all(|part| literal(part, prefix)),
        HirKind::Repetition(repetition) => {
            if repetition.min > 0 {
                literal(&repetition.sub, prefix);
            }
            false
        }
        HirKind::Class(_) | HirKind::Alternation(_) => false,
    }
}

/// The rows of patterns that begin alike, in order.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    /// Tried one by one.
    pub single: Vec<Row>,
    /// Tried at once.
    pub sets: Vec<Set>,
}

/// Many patterns, and the row of each.
#[derive(Debug)]
pub(super) struct Set {
    regexes: RegexSet,
    rows: Vec<Row>,
}

impl Patterns {
    /// Of `rows`, in order; `path` knows the path of each.
    pub(super) fn new<'r>(rows: &[Row], path: impl Fn(Row) -> &'r PathMatch) -> Self {
        if rows.len() <= MANY {
            return Self { single: rows.to_vec(), sets: Vec::new() };
        }
        let mut patterns = Self::default();
        for rows in rows.chunks(SET_PATTERNS) {
            let sources = rows.iter().filter_map(|row| match path(*row) {
                PathMatch::SafeRegex(regex) => Some(regex.anchored.as_str()),
                PathMatch::Template(template) => Some(template.regex_source()),
                _ => None,
            });
            match RegexSetBuilder::new(sources).size_limit(SET_BYTES).build() {
                Ok(regexes) if regexes.len() == rows.len() => {
                    patterns.sets.push(Set { regexes, rows: rows.to_vec() });
                }
                _ => patterns.single.extend_from_slice(rows),
            }
        }
        patterns
    }

    /// The smallest row.
    pub(super) fn smallest(&self) -> Row {
        let sets = self.sets.iter().map(|set| set.rows[0]);
        self.single.first().copied().into_iter().chain(sets).min().unwrap_or(NONE)
    }
}

impl Set {
    /// Adds the rows before `bound` whose path is `path` to `rows`.
    pub(super) fn matching(&self, path: &str, bound: Row, rows: &mut Vec<Row>) {
        if self.rows[0] < bound {
            let matched = self.regexes.matches(path);
            rows.extend(matched.iter().map(|place| self.rows[place]).take_while(|row| *row < bound));
        }
    }
}
