//! Which virtual host serves a host name.
//!
//! Before: the request's authority. After: the rows of the virtual host found; there is no way from one virtual host to
//! another. The order (Envoy, `RouteMatcher::findVirtualHost`): exact, the longest `*.suffix`, the longest `prefix.*`,
//! `*`. The order of declaration plays no part, and a lookup costs one hash per *length* of wildcard in use, however
//! many domains there are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::VirtualHost;
use super::rows::RowIndex;

/// Finds the virtual host of a host name (exact, longest `*.suffix`, longest `prefix.*`, `*`), and keeps what finds the
/// row in it.
#[derive(Debug, Default)]
pub struct HostIndex {
    exact: HashMap<String, usize>,
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<usize>,
    /// By virtual host.
    rows: Vec<RowIndex>,
}

/// Wildcard domains of one kind, without their stars, by length: the longest first.
#[derive(Debug, Default)]
struct Wildcards(Vec<(usize, HashMap<String, usize>)>);

impl Wildcards {
    fn entry(&mut self, text: &str, virtual_host: usize) -> usize {
        let place = match self.0.binary_search_by(|(length, _)| text.len().cmp(length)) {
            Ok(place) => place,
            Err(place) => {
                self.0.insert(place, (text.len(), HashMap::new()));
                place
            }
        };
        *self.0[place].1.entry(text.to_owned()).or_insert(virtual_host)
    }

    /// The longest one for which `part(length)` is a wildcard; the star stands for at least one character.
    fn longest<'h>(&self, host: &'h str, part: impl Fn(usize) -> Option<&'h str>) -> Option<(usize, &'h str)> {
        let candidates = self.0.iter().filter(|(length, _)| *length < host.len());
        candidates
            .filter_map(|(length, domains)| part(*length).map(|text| (text, domains)))
            .find_map(|(text, domains)| domains.get(text).map(|virtual_host| (*virtual_host, text)))
    }
}

/// A domain that two virtual hosts claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainConflict {
    /// Envoy's words.
    #[error(
        "Only unique values for domains are permitted. Duplicate entry of domain {domain} \
         (virtual hosts '{earlier}' and '{later}')"
    )]
    Duplicate {
        /// Of both, lower-cased.
        domain: String,
        /// The virtual host that named it first.
        earlier: Arc<str>,
        /// The other, or the same one again.
        later: Arc<str>,
    },
    /// Envoy's words.
    #[error("Only a single wildcard domain is permitted (virtual hosts '{earlier}' and '{later}')")]
    SecondWildcard {
        /// The virtual host that named `*` first.
        earlier: Arc<str>,
        /// The other, or the same one again.
        later: Arc<str>,
    },
}

impl DomainConflict {
    /// The domain, lower-cased.
    pub fn domain(&self) -> &str {
        match self {
            Self::Duplicate { domain, .. } => domain,
            Self::SecondWildcard { .. } => "*",
        }
    }

    /// The virtual host that has to change.
    pub fn later(&self) -> &str {
        match self {
            Self::Duplicate { later, .. } | Self::SecondWildcard { later, .. } => later,
        }
    }
}

/// The domain by which a virtual host was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// The host name itself.
    Exact,
    /// `*` and this suffix.
    Suffix(String),
    /// This prefix and `*`.
    Prefix(String),
    /// `*`.
    Any,
}

impl std::fmt::Display for FoundBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact => f.write_str("exactly this domain"),
            Self::Suffix(suffix) => write!(f, "domain *{suffix}"),
            Self::Prefix(prefix) => write!(f, "domain {prefix}*"),
            Self::Any => f.write_str("domain *"),
        }
    }
}

impl HostIndex {
    /// Indexes the domains of `virtual_hosts`, and the rows of each.
    ///
    /// # Errors
    /// All domains that occur twice, in one virtual host or in two.
    pub fn new(virtual_hosts: &[VirtualHost]) -> Result<Self, Vec<DomainConflict>> {
        let rows = virtual_hosts.iter().map(|virtual_host| RowIndex::new(&virtual_host.routes)).collect();
        let mut index = Self { rows, ..Self::default() };
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut conflicts = Vec::new();
        for (place, virtual_host) in virtual_hosts.iter().enumerate() {
            for domain in &virtual_host.domains {
                let domain = domain.to_ascii_lowercase();
                if let Some(first) = seen.insert(domain.clone(), place) {
                    let (earlier, later) = (virtual_hosts[first].name.clone(), virtual_host.name.clone());
                    conflicts.push(match domain.as_str() {
                        "*" => DomainConflict::SecondWildcard { earlier, later },
                        _ => DomainConflict::Duplicate { domain, earlier, later },
                    });
                } else {
                    index.insert(&domain, place);
                }
            }
        }
        if conflicts.is_empty() { Ok(index) } else { Err(conflicts) }
    }

    fn insert(&mut self, domain: &str, virtual_host: usize) {
        if domain == "*" {
            self.any = Some(virtual_host);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            self.suffixes.entry(suffix, virtual_host);
        } else if let Some(prefix) = domain.strip_suffix('*') {
            self.prefixes.entry(prefix, virtual_host);
        } else {
            self.exact.insert(domain.to_owned(), virtual_host);
        }
    }

    /// The virtual host of `host` (any case; with port unless the caller cut it off).
    pub fn find(&self, host: &str) -> Option<usize> {
        let host = lower_cased(host);
        self.exact
            .get(host.as_ref())
            .copied()
            .or_else(|| self.suffix(&host).map(|(place, _)| place))
            .or_else(|| self.prefix(&host).map(|(place, _)| place))
            .or(self.any)
    }

    /// Finds rows of the virtual host at this place.
    pub fn rows(&self, virtual_host: usize) -> Option<&RowIndex> {
        self.rows.get(virtual_host)
    }

    /// By which domain [`Self::find`] finds the virtual host of `host`.
    pub fn found_by(&self, host: &str) -> Option<FoundBy> {
        let host = lower_cased(host);
        if self.exact.contains_key(host.as_ref()) {
            return Some(FoundBy::Exact);
        }
        let suffix = self.suffix(&host).map(|(_, suffix)| FoundBy::Suffix(suffix.to_owned()));
        suffix
            .or_else(|| self.prefix(&host).map(|(_, prefix)| FoundBy::Prefix(prefix.to_owned())))
            .or_else(|| self.any.map(|_| FoundBy::Any))
    }

    fn suffix<'h>(&self, host: &'h str) -> Option<(usize, &'h str)> {
        self.suffixes.longest(host, |length| host.get(host.len() - length..))
    }

    fn prefix<'h>(&self, host: &'h str) -> Option<(usize, &'h str)> {
        self.prefixes.longest(host, |length| host.get(..length))
    }
}

fn lower_cased(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// `authority` without its port; the colons of an IPv6 address in brackets are none.
pub fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if authority.rfind(']').is_none_or(|bracket| bracket < colon) => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::http::route::{HeaderMutations, RequireTls};

    fn virtual_hosts(domains: &[&[&str]]) -> Vec<VirtualHost> {
        let of = |(index, domains): (usize, &&[&str])| VirtualHost {
            name: format!("vh{index}").into(),
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            routes: Vec::new(),
            require_tls: RequireTls::None,
            headers: HeaderMutations::default(),
            retry_policy: None,
        };
        domains.iter().enumerate().map(of).collect()
    }

    #[test]
    fn exact_beats_the_longest_suffix_beats_the_longest_prefix_beats_the_star() {
        let domains: [&[&str]; 7] = [
            &["*"],
            &["foo.*"],
            &["foo.bar.*"],
            &["*.foo.com"],
            &["*-bar.foo.com"],
            &["www.foo.com", "Mixed.Case"],
            &["www.foo.com:8080"],
        ];
        let index = HostIndex::new(&virtual_hosts(&domains)).expect("no conflict");
        let cases = [
            ("www.foo.com", 5),
            ("WWW.FOO.com", 5),
            ("mixed.case", 5),
            ("www.foo.com:8080", 6),
            ("www.foo.com:9090", 0),
            ("baz.foo.com", 3),
            ("baz-bar.foo.com", 4),
            ("-bar.foo.com", 3),
            (".foo.com", 0),
            ("foo.com", 1),
            ("foo.bar.com", 2),
            ("foo.bar.", 1),
            ("foo.", 0),
            ("", 0),
        ];
        for (host, expected) in cases {
            assert_eq!(index.find(host), Some(expected), "{host}");
        }
    }

    #[test]
    fn a_domain_that_occurs_twice_is_refused_with_envoys_words() {
        let conflicts = HostIndex::new(&virtual_hosts(&[&["a.com", "*"], &["A.com", "*"]])).expect_err("conflict");
        assert_eq!(
            conflicts[0].to_string(),
            "Only unique values for domains are permitted. Duplicate entry of domain a.com \
             (virtual hosts 'vh0' and 'vh1')"
        );
        assert_eq!(
            conflicts[1].to_string(),
            "Only a single wildcard domain is permitted (virtual hosts 'vh0' and 'vh1')"
        );
    }

    #[test]
    fn the_port_is_what_follows_the_last_colon_outside_of_brackets() {
        for (authority, host) in
            [("a.com:80", "a.com"), ("a.com", "a.com"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a.com:", "a.com")]
        {
            assert_eq!(without_port(authority), host);
        }
    }

    /// The rule read literally: of all domains that match, the best kind, and of that the longest.
    fn naive(domains: &[String], host: &str) -> Option<usize> {
        let rank = |domain: &str| match domain {
            "*" => Some((0, 0)),
            _ if domain == host => Some((3, 0)),
            _ if domain.starts_with('*') => {
                let suffix = &domain[1..];
                (host.ends_with(suffix) && host.len() > suffix.len()).then_some((2, suffix.len()))
            }
            _ if domain.ends_with('*') => {
                let prefix = &domain[..domain.len() - 1];
                (host.starts_with(prefix) && host.len() > prefix.len()).then_some((1, prefix.len()))
            }
            _ => None,
        };
        let ranked = domains.iter().enumerate().filter_map(|(index, domain)| rank(domain).map(|rank| (rank, index)));
        ranked.max().map(|(_, index)| index)
    }

    fn label() -> impl Strategy<Value = String> {
        proptest::collection::vec(select(vec!["a", "b", "é", ".", "-"]), 0..5).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn the_index_finds_what_the_rule_read_literally_finds(
            domains in proptest::collection::btree_set(
                (label(), 0..3).prop_map(|(label, kind)| match kind {
                    0 => label,
                    1 => format!("*{label}"),
                    _ => format!("{label}*"),
                }),
                0..12,
            ),
            hosts in proptest::collection::vec(label(), 1..24),
        ) {
            let domains: Vec<String> = domains.into_iter().filter(|domain| !domain.is_empty()).collect();
            let lists: Vec<[&str; 1]> = domains.iter().map(|domain| [domain.as_str()]).collect();
            let lists: Vec<&[&str]> = lists.iter().map(|list| list.as_slice()).collect();
            let index = HostIndex::new(&virtual_hosts(&lists)).expect("a set has no duplicates");
            for host in hosts {
                prop_assert_eq!(index.find(&host), naive(&domains, &host), "{}", host);
                prop_assert_eq!(index.found_by(&host).is_some(), index.find(&host).is_some());
            }
        }
    }
}
