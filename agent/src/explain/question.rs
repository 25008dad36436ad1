//! What is asked: a connection and a request, described in the words of `curl`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Method, Uri};

use crate::listener::TrafficDirection;
use crate::workload::Workload;

/// A connection and a request.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where the request goes.
    pub url: Url,
    /// The original destination, when it is not the URL's.
    pub dst: Option<SocketAddr>,
    /// The client; loopback by default, as for a connection that the kernel redirects to a loopback listener.
    pub src: Option<SocketAddr>,
    /// Whether the connection is TLS; an `https` URL or a server name say so as well.
    pub tls: bool,
    /// The server name; an `https` URL names one as well.
    pub sni: Option<String>,
    /// The ALPN offer. Without TLS, `h2c` means HTTP/2 by prior knowledge.
    pub alpn: Vec<String>,
    /// The method.
    pub method: Method,
    /// The headers; `host` replaces the URL's.
    pub headers: HeaderMap,
    /// For runtime fractions, weights and balancing.
    pub random: u64,
    /// Whether the connection goes out or arrives.
    pub direction: TrafficDirection,
    /// The pod that the connection comes from, when it is one and known.
    pub source_pod: Option<Workload>,
    /// The pod whose connection it is, when it is asked whether that is taken: the one that connects, or the one that it
    /// arrives at.
    pub pod: Option<Workload>,
    /// This node's own addresses, which its probes come from.
    pub node: Vec<IpAddr>,
}

impl Question {
    /// A GET request for `url`, everything else by default.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            dst: None,
            src: None,
            tls: false,
            sni: None,
            alpn: Vec::new(),
            method: Method::GET,
            headers: HeaderMap::new(),
            random: 0,
            direction: TrafficDirection::Outbound,
            source_pod: None,
            pod: None,
            node: Vec::new(),
        }
    }

    /// Whether the connection is TLS.
    pub fn is_tls(&self) -> bool {
        self.tls || self.sni.is_some() || self.url.https
    }

    /// The server name of a TLS connection; an address is none (RFC 6066 section 3).
    pub fn server_name(&self) -> Option<String> {
        let named = self.sni.as_deref().or_else(|| {
            let host = self.url.authority.as_ref()?.host();
            (self.url.https && self.url.address().is_none()).then_some(host)
        });
        named.filter(|_| self.is_tls()).map(str::to_ascii_lowercase)
    }

    /// The original destination; `Err` with the port when only that is known.
    ///
    /// # Errors
    /// The URL's host is a name.
    pub fn destination(&self) -> Result<SocketAddr, u16> {
        let of_url = || self.url.address().map(|ip| SocketAddr::new(ip, self.url.port()));
        self.dst.or_else(of_url).ok_or(self.url.port())
    }

    /// The client of a connection to `destination`.
    pub fn client(&self, destination: IpAddr) -> SocketAddr {
        let loopback: IpAddr = match destination.to_canonical() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        self.src.unwrap_or(SocketAddr::new(loopback, 0))
    }

    /// Host, or `:authority`.
    pub fn authority(&self) -> String {
        if let Some(host) = self.headers.get(HOST).and_then(|host| host.to_str().ok()) {
            return host.to_owned();
        }
        match (&self.url.authority, self.dst) {
            (Some(authority), _) => authority.to_string(),
            (None, Some(dst)) => dst.to_string(),
            (None, None) => String::new(),
        }
    }

    /// Whether the request comes as HTTP/2 by prior knowledge.
    pub fn is_h2c(&self) -> bool {
        !self.is_tls() && self.alpn.iter().any(|protocol| protocol == "h2c")
    }
}

/// The URL of a request, as `curl` takes it: without a scheme it is `http`. A path alone is one as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    https: bool,
    authority: Option<Authority>,
    path_and_query: String,
}

/// Why a text is no URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// It cannot be parsed.
    #[error("no URL: {0} (like http://shop.example:8080/checkout?id=1)")]
    Url(String),
    /// It is neither `http` nor `https`.
    #[error("{0}: only http and https can be explained")]
    Scheme(String),
}

impl FromStr for Url {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole =
            if text.starts_with('/') || text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = whole.parse().map_err(|error: http::uri::InvalidUri| QuestionError::Url(error.to_string()))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") | None => false,
            Some(other) => return Err(QuestionError::Scheme(other.to_owned())),
        };
        let authority = uri.authority().map(|authority| match authority.as_str().rsplit_once('@') {
            // Whom the request comes from is not part of where it goes.
            Some((_, host)) => host.parse().map_err(|_| QuestionError::Url("no host".to_owned())),
            None => Ok(authority.clone()),
        });
        let path_and_query = uri.path_and_query().map_or("/", |path| path.as_str());
        let slash = if path_and_query.starts_with('/') { "" } else { "/" };
        Ok(Self { https, authority: authority.transpose()?, path_and_query: format!("{slash}{path_and_query}") })
    }
}

impl Url {
    /// Whether it names a host.
    pub fn has_host(&self) -> bool {
        self.authority.is_some()
    }

    /// The host, without port.
    pub fn host(&self) -> &str {
        self.authority.as_ref().map_or("", |authority| authority.host())
    }

    /// Path with query.
    pub fn path_and_query(&self) -> &str {
        &self.path_and_query
    }

    fn address(&self) -> Option<IpAddr> {
        let host = self.host();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        bare.parse().ok()
    }

    fn port(&self) -> u16 {
        let default = if self.https { 443 } else { 80 };
        self.authority.as_ref().and_then(Authority::port_u16).unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_curl_reads_them() {
        let cases = [
            ("http://10.0.0.1/x?y=z", false, Ok("10.0.0.1:80"), "10.0.0.1", "/x?y=z"),
            ("https://[::1]:8443", true, Ok("[::1]:8443"), "[::1]:8443", "/"),
            ("10.0.0.1:8080/a", false, Ok("10.0.0.1:8080"), "10.0.0.1:8080", "/a"),
            ("http://user@shop.example?q", false, Err(80), "shop.example", "/?q"),
            ("https://shop.example/#f", true, Err(443), "shop.example", "/"),
        ];
        for (text, tls, destination, authority, path) in cases {
            let question = Question::new(text.parse().expect(text));
            assert_eq!(question.is_tls(), tls, "{text}");
            assert_eq!(question.destination(), destination.map(|address| address.parse().expect("address")), "{text}");
            assert_eq!((question.authority().as_str(), question.url.path_and_query()), (authority, path), "{text}");
        }
        for text in ["ftp://x/", "http://", "http://a b/"] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_server_name_is_the_urls_host_unless_that_is_an_address() {
        for (url, name) in
            [("https://API.example/", Some("api.example")), ("https://10.0.0.1/", None), ("http://a.example/", None)]
        {
            assert_eq!(Question::new(url.parse().expect(url)).server_name().as_deref(), name);
        }
    }
}
