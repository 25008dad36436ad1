//! What of a request is hashed, so that requests that are alike in it go to the same endpoint of a cluster that balances
//! by hash.
//!
//! Before: the row's action. After: `http::router`, which chooses an endpoint by the hash, and the response, which
//! carries the cookies that were made. The same rules as Envoy's, to the same number. Pure.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::strings::query_parameter;
use crate::addr::ClientAddr;
use crate::cluster::balance::hash::{source_ip, xx_hash, xx_hash_seeded};
use crate::workload::Workload;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Envoy's `hash_policy`: rules whose results are combined, in order; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashPolicy(pub Vec<HashRule>);

/// One thing to hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashRule {
    /// What.
    pub on: HashOn,
    /// The rules behind it are left out once there is a hash.
    pub terminal: bool,
}

/// What is hashed. What is absent is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// All values of a request header, in any order; the name is lower-cased, pseudo-headers too.
    Header(String),
    /// The value of a cookie.
    Cookie(HashCookie),
    /// The client's address, without its port.
    SourceIp,
    /// The first value of a query parameter, not percent-decoded.
    QueryParameter(String),
}

/// A cookie that is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name: a token.
    pub name: String,
    /// How long one that the agent makes lasts, zero for as long as the client likes; `None`: it makes none.
    pub ttl: Option<Duration>,
    /// Where one that the agent makes belongs to; empty: where the request went.
    pub path: String,
}

/// What of a request is looked at: as it is sent on, after the changes that its row makes.
#[derive(Clone, Copy, Debug)]
pub struct Hashed<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path with query.
    pub path: &'a str,
    /// Its headers; `host` is the authority.
    pub headers: &'a HeaderMap,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The client's address: not always that of the connection.
    pub ip: IpAddr,
    /// The two ends of the connection, from which cookies are made: requests on one connection get the same.
    pub ends: (SocketAddr, SocketAddr),
}

impl Source {
    /// Of a request with these `headers` on a connection from `client`, which is `pod` if it is one and known, to `local`:
    /// where it wanted to go, or the listener's address.
    pub fn new(
        headers: &HeaderMap,
        use_remote_address: bool,
        client: ClientAddr,
        pod: Option<&Workload>,
        local: SocketAddr,
    ) -> Self {
        let connected = Workload::address_of(client.ip(), pod);
        Self { ip: client_ip(headers, connected, use_remote_address), ends: (client.socket(), local) }
    }
}

/// What ties a request to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sticky {
    /// `None`: nothing that is hashed was there.
    pub hash: Option<u64>,
    /// For the response: `set-cookie`.
    pub cookies: Vec<HeaderValue>,
}

impl HashPolicy {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What ties a request to an endpoint, as it is sent on: after the changes that its row makes.
    pub fn apply(&self, request: &Hashed<'_>, source: Source) -> Sticky {
        let mut sticky = Sticky::default();
        for rule in &self.0 {
            if let Some(found) = rule.on.hash(request, source, &mut sticky.cookies) {
                // Turned, so that hashing the same twice is not the same as not hashing it.
                sticky.hash = Some(sticky.hash.map_or(0, |before| before.rotate_left(1)) ^ found);
            }
            if rule.terminal && sticky.hash.is_some() {
                break;
            }
        }
        sticky
    }
}

impl fmt::Display for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(cookie) => write!(f, "cookie {}", cookie.name),
            Self::SourceIp => f.write_str("the client's address"),
            Self::QueryParameter(name) => write!(f, "query parameter {name}"),
        }
    }
}

impl HashOn {
    fn hash(&self, request: &Hashed<'_>, source: Source, cookies: &mut Vec<HeaderValue>) -> Option<u64> {
        match self {
            Self::Header(name) => header_hash(request, name),
            Self::Cookie(cookie) => match cookie_value(request.headers, &cookie.name) {
                Some(value) => Some(xx_hash(value)),
                None => {
                    let (value, set_cookie) = cookie.make(source)?;
                    cookies.push(set_cookie);
                    Some(xx_hash(value.as_bytes()))
                }
            },
            Self::SourceIp => Some(source_ip(source.ip)),
            Self::QueryParameter(name) => {
                let (_, query) = request.path.split_once('?')?;
                let query = query.split_once('#').map_or(query, |(query, _)| query);
                query_parameter(query, name).map(|value| xx_hash(value.as_bytes()))
            }
        }
    }
}

fn header_hash(request: &Hashed<'_>, name: &str) -> Option<u64> {
    let name = match name {
        ":method" => return Some(xx_hash(request.method.as_str().as_bytes())),
        ":path" if request.path.is_empty() => return None,
        ":path" => return Some(xx_hash(request.path.as_bytes())),
        // What can be read here came without TLS.
        ":scheme" => return Some(xx_hash(b"http")),
        ":authority" => "host",
        name => name,
    };
    let mut values = request.headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(xx_hash(first)) };
    let mut all: Vec<_> = [first, second].into_iter().chain(values).collect();
    all.sort_unstable();
    Some(all.into_iter().fold(0, xx_hash_seeded))
}

/// The value of the first cookie of this name, without the quotes that it may have; `None` as well when it is empty.
fn cookie_value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let fields = headers.get_all(header::COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    let mut cookies = fields.filter_map(|cookie| {
        let cookie = cookie.trim_ascii_start();
        let equals = cookie.iter().position(|byte| *byte == b'=')?;
        (cookie[..equals] == *name.as_bytes()).then_some(&cookie[equals + 1..])
    });
    let value = cookies.next()?;
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (!bare.is_empty()).then_some(bare)
}

impl HashCookie {
    /// Its value and the whole `set-cookie`, if there is to be one.
    fn make(&self, source: Source) -> Option<(String, HeaderValue)> {
        let ttl = self.ttl?;
        let value = format!("{:016x}", xx_hash(format!("{}{}", source.ends.0, source.ends.1).as_bytes()));
        let mut text = format!("{}=\"{value}\"", self.name);
        // Writing to a String cannot fail.
        if ttl.as_secs() > 0 {
            let _ = write!(text, "; Max-Age={}", ttl.as_secs());
        }
        if !self.path.is_empty() {
            let _ = write!(text, "; Path={}", self.path);
        }
        text.push_str("; HttpOnly");
        Some((value, HeaderValue::try_from(text).ok()?))
    }
}

/// Whose request it is, by its address: the last one in x-forwarded-for, unless that is not trusted because
/// `use_remote_address` says that `connected`, whose connection it came on, is the client.
fn client_ip(headers: &HeaderMap, connected: IpAddr, use_remote_address: bool) -> IpAddr {
    if use_remote_address {
        return connected;
    }
    let last = headers.get_all(X_FORWARDED_FOR).iter().next_back();
    let last = last.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    last.map_or(connected, |ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn on_header(name: &str) -> HashOn {
        HashOn::Header(name.to_owned())
    }

    fn cookie(name: &str, ttl: Option<u64>, path: &str) -> HashOn {
        HashOn::Cookie(HashCookie { name: name.to_owned(), ttl: ttl.map(Duration::from_secs), path: path.to_owned() })
    }

    fn policy(rules: Vec<(HashOn, bool)>) -> HashPolicy {
        HashPolicy(rules.into_iter().map(|(on, terminal)| HashRule { on, terminal }).collect())
    }

    /// What `rules` make of a request with these headers.
    fn sticky(rules: Vec<(HashOn, bool)>, headers: &[(&str, &str)]) -> Sticky {
        let mut request = Request::get("/p?q=1&q=2&empty").body(()).expect("request");
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("name");
            request.headers_mut().append(name, value.parse().expect("value"));
        }
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("shop"));
        let hashed = Hashed { method: &Method::GET, path: "/p?q=1&q=2&empty#q=3", headers: request.headers() };
        let end = |text: &str| text.parse().expect("address");
        let source = Source { ip: "10.0.0.1".parse().expect("ip"), ends: (end("10.0.0.1:1"), end("[::1]:2")) };
        policy(rules).apply(&hashed, source)
    }

    fn hash(on: HashOn, headers: &[(&str, &str)]) -> Option<u64> {
        sticky(vec![(on, false)], headers).hash
    }

    #[test]
    fn each_kind_hashes_its_text_or_nothing() {
        let of = |text: &str| Some(xx_hash(text.as_bytes()));
        for (on, headers, expected) in [
            (on_header("x-user"), &[("x-user", "ann")][..], of("ann")),
            (on_header("x-user"), &[], None),
            (on_header("x-user"), &[("x-user", "b"), ("x-user", "a")], Some(xx_hash_seeded(xx_hash(b"a"), b"b"))),
            (on_header(":authority"), &[], of("shop")),
            (on_header(":path"), &[], of("/p?q=1&q=2&empty#q=3")),
            (cookie("id", None, ""), &[("cookie", "a=b; id=x; id=y")], of("x")),
            (cookie("id", None, ""), &[("cookie", "id2=z"), ("cookie", "id=\"quoted\"")], of("quoted")),
            (cookie("id", None, ""), &[("cookie", "id=; x=y")], None),
            (cookie("id", None, ""), &[("cookie", "id")], None),
            (HashOn::SourceIp, &[], of("10.0.0.1")),
            (HashOn::QueryParameter("q".to_owned()), &[], of("1")),
            (HashOn::QueryParameter("empty".to_owned()), &[], of("")),
            (HashOn::QueryParameter("r".to_owned()), &[], None),
        ] {
            assert_eq!(hash(on.clone(), headers), expected, "{on:?} {headers:?}");
        }
    }

    #[test]
    fn rules_are_combined_and_a_terminal_one_ends_them_if_there_is_a_hash() {
        let headers = [("a", "1"), ("b", "2")];
        let (a, b) = (xx_hash(b"1"), xx_hash(b"2"));
        let combined = a.rotate_left(1) ^ b;
        for (rules, expected) in [
            (vec![("a", false), ("b", false)], Some(combined)),
            (vec![("a", true), ("b", false)], Some(a)),
            (vec![("absent", true), ("b", false)], Some(b)),
            (vec![("a", false), ("absent", true), ("b", false)], Some(a)),
            (vec![("a", false), ("a", false)], Some(a.rotate_left(1) ^ a)),
            (vec![("absent", false)], None),
        ] {
            let rules = rules.into_iter().map(|(name, terminal)| (on_header(name), terminal)).collect();
            assert_eq!(sticky(rules, &headers).hash, expected);
        }
    }

    #[test]
    fn a_cookie_is_made_where_it_is_absent_and_may_be() {
        let made = sticky(vec![(cookie("id", Some(60), "/shop"), false)], &[]);
        let value = format!("{:016x}", xx_hash(b"10.0.0.1:1[::1]:2"));
        assert_eq!(made.cookies, [format!("id=\"{value}\"; Max-Age=60; Path=/shop; HttpOnly")]);
        assert_eq!(made.hash, Some(xx_hash(value.as_bytes())));
        let back = format!("id={value}");
        let known = sticky(vec![(cookie("id", Some(60), "/shop"), false)], &[("cookie", &back)]);
        assert_eq!((known.hash, known.cookies), (made.hash, vec![]), "the client that has it stays");
        let session = sticky(vec![(cookie("id", Some(0), ""), false)], &[]);
        assert_eq!(session.cookies, [format!("id=\"{value}\"; HttpOnly")]);
        assert_eq!(sticky(vec![(cookie("id", None, "/"), false)], &[]), Sticky::default());
    }

    #[test]
    fn the_client_is_the_last_that_x_forwarded_for_names_unless_the_connection_says_who_it_is() {
        let connected: IpAddr = "10.0.0.9".parse().expect("ip");
        for (values, use_remote_address, expected) in [
            (&[][..], false, "10.0.0.9"),
            (&["1.1.1.1, 2.2.2.2"], false, "2.2.2.2"),
            (&["1.1.1.1", "::1"], false, "::1"),
            (&["1.1.1.1, unknown"], false, "10.0.0.9"),
            (&["1.1.1.1"], true, "10.0.0.9"),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_static(value));
            }
            let found = client_ip(&headers, connected, use_remote_address);
            assert_eq!(found.to_string(), expected, "{values:?} {use_remote_address}");
        }
    }
}
