//! Listener filters: look at the first bytes of a connection without consuming them.
//!
//! Before: the listener that the original destination led to. After: the filter chain match, which reads the
//! [`Findings`]. The inspectors are pure functions over the bytes so far; only [`peek`] touches a socket. Nothing here
//! knows filter chains or clusters.

pub mod http_inspector;
pub mod peek;
pub mod tls_inspector;

use super::ListenerFilter;
use super::chain::{ConnectionFacts, TransportProtocol};

/// What the first bytes turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    Tls,
    Http10,
    Http11,
    H2c,
}

impl Detected {
    /// As access records and `application_protocols` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http10 => "http/1.0",
            Self::Http11 => "http/1.1",
            Self::H2c => "h2c",
        }
    }
}

/// What an inspector says of a connection's first bytes. More bytes never change an answer other than `NeedMore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// It is the inspector's protocol.
    Done(T),
    /// Not decidable yet.
    NeedMore,
    /// It is something else.
    NotMine,
    /// Not decidable within the inspector's limit: the connection has to be closed.
    TooLarge,
}

/// What the listener filters found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// `None`: nothing that any of them knows.
    pub detected: Option<Detected>,
    /// SNI, lower-cased.
    pub server_name: Option<String>,
    /// The ALPN offer, or the HTTP version.
    pub application_protocols: Vec<String>,
}

impl Findings {
    /// Adds the findings to what is known of the connection.
    pub fn apply(&self, facts: &mut ConnectionFacts) {
        if self.detected == Some(Detected::Tls) {
            facts.transport_protocol = TransportProtocol::Tls;
        }
        facts.server_name.clone_from(&self.server_name);
        facts.application_protocols.clone_from(&self.application_protocols);
    }
}

/// Where an inspection is after it has seen some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All filters are through.
    Decided,
    /// The current filter waits for more bytes.
    NeedMore,
    /// This filter ran into its limit.
    TooLarge(ListenerFilter),
}

/// The listener filters of one connection, run in order over a growing prefix of its bytes.
#[derive(Debug)]
pub struct Inspection<'a> {
    remaining: &'a [ListenerFilter],
    findings: Findings,
}

impl<'a> Inspection<'a> {
    /// Nothing seen yet.
    pub fn new(filters: &'a [ListenerFilter]) -> Self {
        Self { remaining: filters, findings: Findings::default() }
    }

    /// Whether no filter has to look at anything.
    pub fn is_decided(&self) -> bool {
        self.remaining.is_empty()
    }

    /// Runs the filters over all bytes that the client has sent so far.
    pub fn look(&mut self, bytes: &[u8]) -> Step {
        while let Some((filter, rest)) = self.remaining.split_first() {
            match self.run(*filter, bytes) {
                Verdict::Done(()) | Verdict::NotMine => self.remaining = rest,
                Verdict::NeedMore => return Step::NeedMore,
                Verdict::TooLarge => return Step::TooLarge(*filter),
            }
        }
        Step::Decided
    }

    /// What was found out so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    fn run(&mut self, filter: ListenerFilter, bytes: &[u8]) -> Verdict<()> {
        match filter {
            ListenerFilter::TlsInspector => match tls_inspector::inspect(bytes) {
                Verdict::Done(hello) => {
                    self.findings.detected = Some(Detected::Tls);
                    self.findings.server_name = hello.server_name;
                    self.findings.application_protocols = hello.application_protocols;
                    Verdict::Done(())
                }
                Verdict::NeedMore => Verdict::NeedMore,
                Verdict::NotMine => Verdict::NotMine,
                Verdict::TooLarge => Verdict::TooLarge,
            },
            // Envoy skips it when the transport protocol is known to be something else than raw bytes.
            ListenerFilter::HttpInspector if self.findings.detected == Some(Detected::Tls) => Verdict::NotMine,
            ListenerFilter::HttpInspector => match http_inspector::inspect(bytes) {
                Verdict::Done(protocol) => {
                    self.findings.detected = Some(protocol);
                    self.findings.application_protocols = vec![protocol.name().to_owned()];
                    Verdict::Done(())
                }
                Verdict::NeedMore => Verdict::NeedMore,
                Verdict::NotMine => Verdict::NotMine,
                Verdict::TooLarge => Verdict::TooLarge,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[ListenerFilter] = &[ListenerFilter::TlsInspector, ListenerFilter::HttpInspector];

    #[test]
    fn filters_run_in_order_and_the_second_waits_for_the_first() {
        let mut inspection = Inspection::new(BOTH);
        assert_eq!(inspection.look(b""), Step::NeedMore);
        assert_eq!(inspection.look(b"GET / HT"), Step::NeedMore);
        assert_eq!(inspection.look(b"GET / HTTP/1.1\r\n"), Step::Decided);
        assert_eq!(inspection.findings().detected, Some(Detected::Http11));
        assert_eq!(inspection.findings().application_protocols, ["http/1.1"]);
    }

    #[test]
    fn what_no_filter_knows_is_decided_as_nothing() {
        let mut inspection = Inspection::new(BOTH);
        assert_eq!(inspection.look(b"*1\r\n$4\r\nPING\r\n"), Step::Decided);
        assert_eq!(inspection.findings(), &Findings::default());
    }
}
