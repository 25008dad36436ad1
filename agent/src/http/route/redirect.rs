//! Where a redirect leads to.
//!
//! The port rules are Envoy's (`Http::Utility::newUri`, `processRequestHost`): the request's port is kept, but replaced
//! by `port_redirect`, and dropped when the scheme changes and it was the old scheme's default.

use std::borrow::Cow;

use super::decide::RequestFacts;
use super::matching::split_path;
use super::vhost::without_port;
use super::{Redirect, RedirectPath, RouteMatch};

impl Redirect {
    /// The `location` for a request that `matches` matched.
    pub fn location(&self, matches: &RouteMatch, request: &RequestFacts<'_>) -> String {
        let old_scheme = forwarded_scheme(request);
        let scheme = self.scheme_redirect.as_deref().unwrap_or(old_scheme);
        let host = match &self.host_redirect {
            Some(host) => host,
            None => self.kept_host(request.authority, old_scheme, scheme),
        };
        let port = self.port_redirect.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}{}", self.path(matches, request.path_and_query))
    }

    fn kept_host<'r>(&self, authority: &'r str, old_scheme: &str, scheme: &str) -> &'r str {
        let host = without_port(authority);
        let default_port = match old_scheme {
            "https" => ":443",
            "http" => ":80",
            _ => "",
        };
        let drop_default = scheme != old_scheme && authority[host.len()..] == *default_port;
        if self.port_redirect.is_some() || drop_default { host } else { authority }
    }

    fn path<'r>(&'r self, matches: &RouteMatch, path_and_query: &'r str) -> Cow<'r, str> {
        let (_, rest) = split_path(path_and_query);
        let path = match &self.path {
            // Its own query takes the place of the request's, and is not stripped.
            Some(RedirectPath::Replace(path)) if path.contains('?') => return Cow::Borrowed(path),
            Some(RedirectPath::Replace(path)) => Cow::Owned(format!("{path}{rest}")),
            Some(RedirectPath::Rewrite(rewrite)) => Cow::Owned(rewrite.rewrite(matches, path_and_query)),
            None => Cow::Borrowed(path_and_query),
        };
        match path.find('?') {
            Some(query) if self.strip_query => Cow::Owned(path[..query].to_owned()),
            _ => path,
        }
    }
}

/// The scheme that the client used, as far as a proxy before this one has told it.
pub(super) fn forwarded_scheme<'r>(request: &RequestFacts<'r>) -> &'r str {
    match request.headers.get("x-forwarded-proto").map(|value| value.as_bytes()) {
        Some(scheme) if scheme.eq_ignore_ascii_case(b"http") => "http",
        Some(scheme) if scheme.eq_ignore_ascii_case(b"https") => "https",
        _ => request.scheme,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, StatusCode};

    use super::*;
    use crate::http::route::{PathMatch, PathRewrite, fixture};

    fn redirect() -> Redirect {
        Redirect {
            scheme_redirect: None,
            host_redirect: None,
            port_redirect: None,
            path: None,
            response_code: StatusCode::MOVED_PERMANENTLY,
            strip_query: false,
        }
    }

    fn location(redirect: &Redirect, scheme: &str, authority: &str, path_and_query: &str) -> String {
        let matches = fixture::on(PathMatch::Prefix("/old".into()));
        let headers = HeaderMap::new();
        let request = RequestFacts {
            method: &Method::GET,
            scheme,
            authority,
            path_and_query,
            headers: &headers,
            random: 0,
            source_pod: None,
        };
        redirect.location(&matches, &request)
    }

    #[test]
    fn the_port_follows_envoys_rules() {
        let https = || Redirect { scheme_redirect: Some("https".into()), ..redirect() };
        let cases = [
            (redirect(), "http", "a.com:8080", "http://a.com:8080/old"),
            (redirect(), "http", "a.com:80", "http://a.com:80/old"),
            (https(), "http", "a.com:80", "https://a.com/old"),
            (https(), "http", "a.com:8080", "https://a.com:8080/old"),
            (https(), "https", "a.com:443", "https://a.com:443/old"),
            (https(), "http", "[::1]:80", "https://[::1]/old"),
            (https(), "http", "[::1]", "https://[::1]/old"),
            (Redirect { port_redirect: Some(9), ..redirect() }, "http", "a.com:8080", "http://a.com:9/old"),
            (Redirect { port_redirect: Some(9), ..redirect() }, "http", "a.com", "http://a.com:9/old"),
            (Redirect { host_redirect: Some("b.com".into()), ..redirect() }, "http", "a.com:8080", "http://b.com/old"),
        ];
        for (redirect, scheme, authority, expected) in cases {
            assert_eq!(location(&redirect, scheme, authority, "/old"), expected, "{redirect:?}");
        }
    }

    #[test]
    fn the_query_is_kept_unless_it_is_stripped_or_replaced() {
        let with = |path: RedirectPath, strip_query| Redirect { path: Some(path), strip_query, ..redirect() };
        let cases = [
            (with(RedirectPath::Replace("/new".into()), false), "http://a.com/new?q=1"),
            (with(RedirectPath::Replace("/new".into()), true), "http://a.com/new"),
            (with(RedirectPath::Replace("/new?own".into()), true), "http://a.com/new?own"),
            (with(RedirectPath::Rewrite(PathRewrite::Prefix("/new".into())), false), "http://a.com/new/x?q=1"),
            (with(RedirectPath::Rewrite(PathRewrite::Prefix("/new".into())), true), "http://a.com/new/x"),
            (Redirect { strip_query: true, ..redirect() }, "http://a.com/old/x"),
        ];
        for (redirect, expected) in cases {
            assert_eq!(location(&redirect, "http", "a.com", "/old/x?q=1"), expected, "{redirect:?}");
        }
    }
}
