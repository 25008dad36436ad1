//! Rewriting of paths: for requests that are sent on and for redirects.

use regex::Regex;

use super::matching::split_path;
use super::{PathMatch, PathRewrite, RouteMatch};

/// Why a path rewrite is refused.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The pattern is no regular expression.
    #[error("{0}")]
    Pattern(#[from] regex::Error),
    /// In this substitution, `\` is followed by neither a digit nor another `\`.
    #[error("a `\\` stands before a digit or another `\\`, found `{0}`")]
    Escape(String),
    /// The pattern has fewer groups.
    #[error("`\\{group}` names a group, and the pattern has {groups} of them")]
    Group {
        /// Which was asked for.
        group: usize,
        /// How many there are.
        groups: usize,
    },
}

impl PathRewrite {
    /// `regex_rewrite`: `substitution` in RE2's syntax, with `\1` for the first group and `\0` for the whole match.
    ///
    /// # Errors
    /// The pattern is no regular expression, or the substitution does not go with it.
    pub fn regex(pattern: &str, substitution: &str) -> Result<Self, RewriteError> {
        let pattern = Regex::new(pattern)?;
        let groups = pattern.captures_len() - 1;
        let escape = || RewriteError::Escape(substitution.to_owned());
        let mut translated = String::with_capacity(substitution.len());
        let mut characters = substitution.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some('\\') => translated.push('\\'),
                    Some(digit) => {
                        let group = digit.to_digit(10).ok_or_else(escape)? as usize;
                        if group > groups {
                            return Err(RewriteError::Group { group, groups });
                        }
                        translated.push_str(&format!("${{{group}}}"));
                    }
                    None => return Err(escape()),
                },
                '$' => translated.push_str("$$"),
                plain => translated.push(plain),
            }
        }
        Ok(Self::Regex { pattern, substitution: translated })
    }

    /// The path of a request that `matches` matched, rewritten; the query is kept.
    pub fn rewrite(&self, matches: &RouteMatch, path_and_query: &str) -> String {
        let (path, rest) = split_path(path_and_query);
        let mut rewritten = match self {
            Self::Prefix(replacement) => format!("{replacement}{}", &path[matched_bytes(&matches.path, path)..]),
            Self::Regex { pattern, substitution } => pattern.replace_all(path, substitution.as_str()).into_owned(),
            Self::Template(rewrite) => match &matches.path {
                PathMatch::Template(template) => rewrite.rewrite(template, path).unwrap_or_else(|| path.to_owned()),
                // Refused at load: without a template there are no variables.
                _ => path.to_owned(),
            },
        };
        // A request target always begins with `/`; Envoy would send a broken request line here.
        if !rewritten.starts_with('/') {
            rewritten.insert(0, '/');
        }
        rewritten.push_str(rest);
        rewritten
    }
}

/// How much of `path` is "the matched string" of a `prefix_rewrite`.
fn matched_bytes(condition: &PathMatch, path: &str) -> usize {
    match condition {
        PathMatch::Prefix(prefix) | PathMatch::PathSeparatedPrefix(prefix) if path.is_char_boundary(prefix.len()) => {
            prefix.len()
        }
        _ => path.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::route::template::{PathTemplate, RewriteTemplate};
    use crate::http::route::{FullRegex, fixture};

    #[test]
    fn a_prefix_rewrite_replaces_exactly_what_was_matched() {
        let cases = [
            (PathMatch::Prefix("/foo".into()), "/bar", "/foo/x?q=/foo", "/bar/x?q=/foo"),
            (PathMatch::Prefix("/foo".into()), "/", "/foo/x", "//x"),
            (PathMatch::Prefix("/foo/".into()), "/", "/foo/x", "/x"),
            (PathMatch::Prefix("/foo".into()), "/bar", "/foobar", "/barbar"),
            (PathMatch::Exact("/foo".into()), "/bar", "/foo?a#b", "/bar?a#b"),
            (PathMatch::PathSeparatedPrefix("/foo".into()), "/bar", "/foo/x", "/bar/x"),
            (PathMatch::SafeRegex(FullRegex::new("/f.*").expect("regex")), "/bar", "/foo/x", "/bar"),
            (PathMatch::Prefix("/foo/".into()), "", "/foo/x", "/x"),
        ];
        for (path, replacement, request, expected) in cases {
            let matches = fixture::on(path);
            assert_eq!(PathRewrite::Prefix(replacement.to_owned()).rewrite(&matches, request), expected, "{matches:?}");
        }
    }

    #[test]
    fn a_regex_rewrite_replaces_every_match_in_the_path_alone() {
        let matches = fixture::on(PathMatch::Prefix("/".into()));
        let cases = [
            (r"^/(\w+)/(\w+)", r"/\2/\1", "/a/b/c?x=/a/b", "/b/a/c?x=/a/b"),
            ("a", r"\0\0", "/aXa", "/aaXaa"),
            ("a", r"$1\\", "/a", r"/$1\"),
            ("/x", "", "/x", "/"),
        ];
        for (pattern, substitution, request, expected) in cases {
            let rewrite = PathRewrite::regex(pattern, substitution).expect("rewrite");
            assert_eq!(rewrite.rewrite(&matches, request), expected, "{pattern}");
        }
        for (pattern, substitution) in [("a", r"\1"), ("a", r"\x"), ("a", "\\"), ("(", "")] {
            assert!(PathRewrite::regex(pattern, substitution).is_err(), "{pattern} {substitution}");
        }
    }

    #[test]
    fn a_template_rewrite_fills_in_the_variables() {
        let template = PathTemplate::new("/{a}/{b=**}").expect("template");
        let rewrite = PathRewrite::Template(RewriteTemplate::new("/{b}/{a}", &template).expect("rewrite"));
        let matches = fixture::on(PathMatch::Template(template));
        assert_eq!(rewrite.rewrite(&matches, "/1/2/3?q"), "/2/3/1?q");
    }
}
