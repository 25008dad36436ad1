//! What a row matches.

use http::{HeaderName, Method};

use super::{Resolver, pods};
use crate::config::diagnostic::Path;
use crate::config::raw::OrText;
use crate::config::raw::route as raw;
use crate::http::route::template::PathTemplate;
use crate::http::route::{
    FullRegex, HeaderMatch, HeaderValueMatch, PathMatch, QueryMatch, QueryValueMatch, RouteMatch, StringMatch,
    StringMatchKind,
};

const PSEUDO_HEADERS: [&str; 4] = [":method", ":authority", ":path", ":scheme"];

/// Resolves a row's conditions.
pub fn route_match(resolver: &mut Resolver<'_>, raw: &raw::RouteMatch, path: &Path<'_>) -> Option<RouteMatch> {
    let path_match = path_match(resolver, raw, path);
    let methods = resolver.each(&raw.methods, &path.field("methods"), method);
    let headers = resolver.each(&raw.headers, &path.field("headers"), header_match);
    let query_parameters = resolver.each(&raw.query_parameters, &path.field("query_parameters"), query_match);
    let fraction = resolver.maybe(raw.runtime_fraction.as_ref(), &path.field("runtime_fraction"), per_million);
    let source_pod = resolver.maybe(raw.source_pod.as_ref(), &path.field("source_pod"), pods::source_pod);
    Some(RouteMatch {
        path: path_match?,
        case_sensitive: raw.case_sensitive,
        methods: methods?,
        headers: headers?,
        query_parameters: query_parameters?,
        grpc: raw.grpc.0,
        runtime_fraction_per_million: fraction?,
        source_pod: source_pod?,
    })
}

/// The row's path template, where a rewrite may use its variables.
pub fn template(matches: &RouteMatch) -> Option<&PathTemplate> {
    match &matches.path {
        PathMatch::Template(template) => Some(template),
        _ => None,
    }
}

fn path_match(resolver: &mut Resolver<'_>, raw: &raw::RouteMatch, path: &Path<'_>) -> Option<PathMatch> {
    let connect = raw.connect_matcher.is_some_and(|flag| flag.0);
    let choices = [
        ("prefix", raw.prefix.is_some()),
        ("path", raw.path.is_some()),
        ("safe_regex", raw.safe_regex.is_some()),
        ("path_separated_prefix", raw.path_separated_prefix.is_some()),
        ("path_template", raw.path_template.is_some()),
        ("connect_matcher", connect),
    ];
    if choices.iter().all(|(_, given)| !given) {
        resolver.error(path, "a condition on the path is missing: `prefix: /` takes every path (or path, safe_regex, path_separated_prefix, path_template, connect_matcher)");
        return None;
    }
    resolver.at_most_one(path, &choices)?;
    for (field, text) in [("prefix", &raw.prefix), ("path", &raw.path)] {
        if let Some(text) = text {
            warn_of_dead_path(resolver, text, &path.field(field));
        }
    }
    if let Some(prefix) = &raw.prefix {
        return Some(PathMatch::Prefix(prefix.clone()));
    }
    if let Some(exact) = &raw.path {
        return Some(PathMatch::Exact(exact.clone()));
    }
    if let Some(OrText(regex)) = &raw.safe_regex {
        return full_regex(resolver, regex, &path.field("safe_regex")).map(PathMatch::SafeRegex);
    }
    if let Some(prefix) = &raw.path_separated_prefix {
        return separated_prefix(resolver, prefix, &path.field("path_separated_prefix"));
    }
    if let Some(template) = &raw.path_template {
        return resolver.check(&path.field("path_template"), PathTemplate::new(template)).map(PathMatch::Template);
    }
    Some(PathMatch::Connect)
}

fn warn_of_dead_path(resolver: &mut Resolver<'_>, text: &str, path: &Path<'_>) {
    if text.contains(['?', '#']) {
        resolver.warn(path, format!("`{text}` never matches: paths are compared without query and fragment"));
    } else if !text.is_empty() && !text.starts_with(['/', '*']) {
        resolver.warn(path, format!("`{text}` never matches: every path begins with `/`"));
    }
}

/// Envoy: `^[^?#]+[^?#/]$`.
fn separated_prefix(resolver: &mut Resolver<'_>, text: &str, path: &Path<'_>) -> Option<PathMatch> {
    let message = if text.contains(['?', '#']) {
        format!("must not contain `?` or `#`, found `{text}`")
    } else if text.ends_with('/') {
        format!(
            "must not end with `/`, found `{text}`: `/` is expected behind it anyway; for every path write `prefix: /`"
        )
    } else if text.chars().count() < 2 {
        format!("must have at least two characters, such as /a, found `{text}`")
    } else {
        warn_of_dead_path(resolver, text, path);
        return Some(PathMatch::PathSeparatedPrefix(text.to_owned()));
    };
    resolver.error(path, message);
    None
}

/// A regular expression for a match of the whole text.
fn full_regex(resolver: &mut Resolver<'_>, raw: &raw::Regex, path: &Path<'_>) -> Option<FullRegex> {
    resolver.check(path, FullRegex::new(&raw.regex).map_err(|error| regex_message(&raw.regex, &error)))
}

/// The parser's message, on one line.
pub fn regex_message(source: &str, error: &regex::Error) -> String {
    let reason = error.to_string();
    let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("`{source}` is no regular expression: {reason}")
}

fn method(resolver: &mut Resolver<'_>, raw: &String, path: &Path<'_>) -> Option<Method> {
    let method = Method::from_bytes(raw.as_bytes());
    let method = resolver.check(path, method.map_err(|_| format!("`{raw}` is no HTTP method")))?;
    if raw.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let upper = raw.to_ascii_uppercase();
        resolver.warn(path, format!("methods are case-sensitive: did you mean `{upper}`?"));
    }
    Some(method)
}

fn per_million(resolver: &mut Resolver<'_>, raw: &raw::Fraction, path: &Path<'_>) -> Option<u32> {
    let (whole, parts) = match raw.denominator {
        raw::Denominator::Hundred => (100, 10_000),
        raw::Denominator::TenThousand => (10_000, 100),
        raw::Denominator::Million => (1_000_000, 1),
    };
    resolver.within(&path.field("numerator"), raw.numerator, 0..=whole).map(|numerator| numerator * parts)
}

fn header_match(resolver: &mut Resolver<'_>, raw: &raw::HeaderMatch, path: &Path<'_>) -> Option<HeaderMatch> {
    let name = raw.name.to_ascii_lowercase();
    let named = match PSEUDO_HEADERS.contains(&name.as_str()) || HeaderName::from_bytes(name.as_bytes()).is_ok() {
        true => Some(()),
        false => {
            let pseudo = PSEUDO_HEADERS.join(", ");
            resolver.error(&path.field("name"), format!("`{}` is no header name, and none of {pseudo}", raw.name));
            None
        }
    };
    let texts = Texts {
        exact: &raw.exact,
        prefix: &raw.prefix,
        suffix: &raw.suffix,
        contains: &raw.contains,
        safe_regex: &raw.safe_regex,
        ignore_case: raw.ignore_case,
    };
    let others = [("range", raw.range.is_some()), ("present", raw.present.is_some())];
    let text = texts.resolve(resolver, &others, path);
    let range = resolver.maybe(raw.range.as_ref(), &path.field("range"), |resolver, range, path| {
        if range.start >= range.end {
            let message = format!("the range from {} to below {} is empty", range.start, range.end);
            resolver.error(path, message);
            return None;
        }
        Some(HeaderValueMatch::Range { start: range.start, end: range.end })
    });
    named?;
    Some(HeaderMatch {
        name,
        value: text?
            .map(HeaderValueMatch::String)
            .or(range?)
            .unwrap_or(HeaderValueMatch::Present(raw.present.unwrap_or(true))),
        invert: raw.invert,
        treat_missing_header_as_empty: raw.treat_missing_header_as_empty,
    })
}

fn query_match(resolver: &mut Resolver<'_>, raw: &raw::QueryMatch, path: &Path<'_>) -> Option<QueryMatch> {
    if raw.name.is_empty() {
        resolver.error(&path.field("name"), "a query parameter needs a name");
    }
    let texts = Texts {
        exact: &raw.exact,
        prefix: &raw.prefix,
        suffix: &raw.suffix,
        contains: &raw.contains,
        safe_regex: &raw.safe_regex,
        ignore_case: raw.ignore_case,
    };
    let text = texts.resolve(resolver, &[("present", raw.present.is_some())], path)?;
    let present = QueryValueMatch::Present(raw.present.unwrap_or(true));
    Some(QueryMatch { name: raw.name.clone(), value: text.map_or(present, QueryValueMatch::String) })
}

/// The conditions on text that header and query matches share.
struct Texts<'a> {
    exact: &'a Option<String>,
    prefix: &'a Option<String>,
    suffix: &'a Option<String>,
    contains: &'a Option<String>,
    safe_regex: &'a Option<OrText<raw::Regex>>,
    ignore_case: bool,
}

impl Texts<'_> {
    /// `Some(None)` when there is no condition on text; `others` are the conditions that exclude one.
    fn resolve(
        &self,
        resolver: &mut Resolver<'_>,
        others: &[(&str, bool)],
        path: &Path<'_>,
    ) -> Option<Option<StringMatch>> {
        let mut choices = vec![
            ("exact", self.exact.is_some()),
            ("prefix", self.prefix.is_some()),
            ("suffix", self.suffix.is_some()),
            ("contains", self.contains.is_some()),
            ("safe_regex", self.safe_regex.is_some()),
        ];
        choices.extend_from_slice(others);
        resolver.at_most_one(path, &choices)?;
        if self.ignore_case && self.safe_regex.is_some() {
            resolver.warn(&path.field("ignore_case"), "has no effect on a regular expression: begin it with (?i)");
        }
        let text = |text: &String| if self.ignore_case { text.to_ascii_lowercase() } else { text.clone() };
        let kind = if let Some(exact) = self.exact {
            StringMatchKind::Exact(text(exact))
        } else if let Some(prefix) = self.prefix {
            StringMatchKind::Prefix(text(not_empty(resolver, prefix, &path.field("prefix"))?))
        } else if let Some(suffix) = self.suffix {
            StringMatchKind::Suffix(text(not_empty(resolver, suffix, &path.field("suffix"))?))
        } else if let Some(contains) = self.contains {
            StringMatchKind::Contains(text(not_empty(resolver, contains, &path.field("contains"))?))
        } else if let Some(OrText(regex)) = self.safe_regex {
            StringMatchKind::SafeRegex(full_regex(resolver, regex, &path.field("safe_regex"))?)
        } else {
            return Some(None);
        };
        Some(Some(StringMatch { kind, ignore_case: self.ignore_case }))
    }
}

fn not_empty<'t>(resolver: &mut Resolver<'_>, text: &'t String, path: &Path<'_>) -> Option<&'t String> {
    if text.is_empty() {
        resolver.error(
            path,
            "must not be empty: every value would match; to ask whether it is there write `present: true`",
        );
        return None;
    }
    Some(text)
}
