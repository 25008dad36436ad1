//! Why a row did not match: typed, with a sentence for people. Made only when somebody looks ([`super::decide`]).

use std::fmt;

use http::Method;

use super::{HeaderMatch, HeaderValueMatch, PathMatch, QueryMatch, QueryValueMatch, StringMatch, StringMatchKind};
use crate::workload::WorkloadMatch;

/// The first condition of a row that did not hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// The path is another one.
    Path {
        /// The request's, without query.
        path: String,
        /// What was wanted of it.
        condition: PathCondition,
    },
    /// A CONNECT request names no path, and the row wants one.
    NoPath,
    /// The row is for CONNECT requests only.
    NotConnect {
        /// The request's.
        method: Method,
    },
    /// The method is none of the row's.
    Method {
        /// The request's.
        method: Method,
        /// The row's.
        wanted: Vec<Method>,
    },
    /// A header is not what the row wants.
    Header {
        /// What was found, several values joined with a comma.
        found: Option<String>,
        /// What was wanted.
        wanted: HeaderMatch,
    },
    /// A query parameter is not what the row wants.
    Query {
        /// What was found at its first occurrence.
        found: Option<String>,
        /// What was wanted.
        wanted: QueryMatch,
    },
    /// The content-type is not gRPC's.
    NotGrpc {
        /// The request's.
        content_type: Option<String>,
    },
    /// The request's random number was not drawn.
    RuntimeFraction {
        /// Of a million.
        drawn: u32,
        /// Requests of a million that the row takes.
        wanted: u32,
    },
    /// The request comes from another pod, or from none that is known.
    SourcePod {
        /// Which, and what it lacks.
        found: Option<(String, String)>,
        /// What was wanted.
        wanted: WorkloadMatch,
    },
}

/// A path condition in its configured words.
#[derive(Clone, Debug, PartialEq)]
pub enum PathCondition {
    /// See [`PathMatch::Prefix`].
    Prefix(String),
    /// See [`PathMatch::Exact`].
    Exact(String),
    /// See [`PathMatch::SafeRegex`].
    SafeRegex(String),
    /// See [`PathMatch::PathSeparatedPrefix`].
    PathSeparatedPrefix(String),
    /// See [`PathMatch::Template`].
    Template(String),
}

impl PathCondition {
    /// `None` for CONNECT, which asks nothing of the path.
    pub(super) fn of(path: &PathMatch) -> Option<Self> {
        match path {
            PathMatch::Prefix(prefix) => Some(Self::Prefix(prefix.clone())),
            PathMatch::Exact(exact) => Some(Self::Exact(exact.clone())),
            PathMatch::SafeRegex(regex) => Some(Self::SafeRegex(regex.source().to_owned())),
            PathMatch::PathSeparatedPrefix(prefix) => Some(Self::PathSeparatedPrefix(prefix.clone())),
            PathMatch::Template(template) => Some(Self::Template(template.source().to_owned())),
            PathMatch::Connect => None,
        }
    }

    /// "path P begins with Q", or that it does not.
    pub(super) fn sentence(&self, path: &str, holds: bool) -> String {
        let does = |verb: &str| if holds { format!("{verb}s") } else { format!("does not {verb}") };
        match self {
            Self::Prefix(prefix) => match holds {
                true => format!("path {path} begins with {prefix}"),
                false => format!("path {path} does not begin with {prefix}"),
            },
            Self::Exact(exact) => match holds {
                true => format!("path is {exact}"),
                false => format!("path {path} is not {exact}"),
            },
            Self::SafeRegex(regex) => {
                format!("path {path} {} the regex {regex}", if holds { "matches" } else { "does not match" })
            }
            Self::PathSeparatedPrefix(prefix) => match holds {
                true => format!("path {path} is {prefix} or lies below it"),
                false => format!("path {path} is neither {prefix} nor below it"),
            },
            Self::Template(template) => format!("path {path} {} the template {template}", does("fit")),
        }
    }
}

impl fmt::Display for PathCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
            Self::Exact(exact) => write!(f, "path {exact}"),
            Self::SafeRegex(regex) => write!(f, "safe_regex {regex}"),
            Self::PathSeparatedPrefix(prefix) => write!(f, "path_separated_prefix {prefix}"),
            Self::Template(template) => write!(f, "path_template {template}"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, condition } => f.write_str(&condition.sentence(path, false)),
            Self::NoPath => f.write_str("a CONNECT request has no path; only a connect_matcher row matches it"),
            Self::NotConnect { method } => write!(f, "method {method} is not CONNECT"),
            Self::Method { method, wanted } => match wanted.as_slice() {
                [only] => write!(f, "method {method} is not {only}"),
                _ => write!(f, "method {method} is not one of {}", list(wanted)),
            },
            Self::Header { found, wanted } => {
                let name = &wanted.name;
                match found {
                    Some(found) => write!(f, "header {name} is {found:?}, wants {}", wanted.want()),
                    None => write!(f, "header {name} is absent, wants {}", wanted.want()),
                }
            }
            Self::Query { found, wanted } => {
                let name = &wanted.name;
                match found {
                    Some(found) => write!(f, "query parameter {name} is {found:?}, wants {}", wanted.want()),
                    None => write!(f, "query parameter {name} is absent, wants {}", wanted.want()),
                }
            }
            Self::NotGrpc { content_type: Some(found) } => write!(f, "content-type {found:?} is not gRPC's"),
            Self::NotGrpc { content_type: None } => f.write_str("content-type is absent, so the request is not gRPC"),
            Self::RuntimeFraction { drawn, wanted } => {
                write!(f, "random {drawn} of 1000000 is not below runtime_fraction {wanted}")
            }
            Self::SourcePod { found: Some((pod, lacks)), .. } => write!(f, "source pod {pod}: {lacks}"),
            Self::SourcePod { found: None, wanted } => write!(f, "the source pod is not known, wants {wanted}"),
        }
    }
}

/// `GET, POST`
pub(super) fn list(methods: &[Method]) -> String {
    methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
}

impl HeaderMatch {
    /// What the header must be, for people.
    pub fn want(&self) -> String {
        match &self.value {
            HeaderValueMatch::Present(present) => presence(*present != self.invert),
            HeaderValueMatch::Range { start, end } => {
                format!("{}a number from {start} to below {end}", but(self.invert))
            }
            HeaderValueMatch::String(string) => format!("{}{}", but(self.invert), string.want()),
        }
    }
}

impl QueryMatch {
    /// What the parameter must be, for people.
    pub fn want(&self) -> String {
        match &self.value {
            QueryValueMatch::Present(present) => presence(*present),
            QueryValueMatch::String(string) => string.want(),
        }
    }
}

fn presence(present: bool) -> String {
    if present { "it present" } else { "it absent" }.to_owned()
}

fn but(invert: bool) -> &'static str {
    if invert { "anything but " } else { "" }
}

impl StringMatch {
    fn want(&self) -> String {
        let case = if self.ignore_case { " in any case" } else { "" };
        match &self.kind {
            StringMatchKind::Exact(text) => format!("{text:?}{case}"),
            StringMatchKind::Prefix(text) => format!("a value that begins with {text:?}{case}"),
            StringMatchKind::Suffix(text) => format!("a value that ends with {text:?}{case}"),
            StringMatchKind::Contains(text) => format!("a value that contains {text:?}{case}"),
            StringMatchKind::SafeRegex(regex) => format!("a value that matches the regex {}", regex.source()),
        }
    }
}
