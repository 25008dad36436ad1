//! What the agent would do with a connection and a request, and why: the data path's own code, observed, nothing sent.
//!
//! Before: a [`Question`] from the command line. After: the JSON or the text of `waylay explain`. The way is that of a
//! connection: `connection` as far as the filter chain, `request` through the route table, `endpoint` in the
//! cluster.

mod connection;
mod endpoint;
mod pod;
mod question;
mod request;
mod taken;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cluster::balance::Chance;
use crate::cluster::{Cluster, ClusterSpecifier};
use crate::dispatch::{qualify, sticky};
use crate::listener::{Dispatch, NetworkFilter, TcpProxy};
use crate::snapshot::Snapshot;
use crate::telemetry::flags::ResponseFlags;

pub use pod::PodAnswer;
pub use question::{Question, QuestionError, Url};

use connection::Arrived;
use endpoint::Choice;
use text::Section;

/// The answer. What does not apply is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// The listener that serves the connection.
    pub listener: Option<String>,
    /// Its filter chain: name or index or `default`.
    pub filter_chain: Option<String>,
    /// The virtual host that serves the request.
    pub virtual_host: Option<String>,
    /// All of its rows, in order.
    pub routes: Vec<Row>,
    /// The index of the row that matched.
    pub route: Option<usize>,
    /// What becomes of the request.
    pub action: Action,
    /// Where it goes.
    pub cluster: Option<String>,
    /// The hash by the hash policy, in hexadecimal digits; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// The endpoint that would be the first choice.
    pub endpoint: Option<String>,
    /// The status, where the agent answers by itself.
    pub status: Option<u16>,
    /// Where a redirect leads to.
    pub location: Option<String>,
    /// The request as it would be sent on.
    pub upstream: Option<Upstream>,
    /// The flags that the access record would have; null when there are none.
    pub response_flags: Option<String>,
    /// `kernel` when the connection never meets the agent; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatch: Option<&'static str>,
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// The pod that it comes from, `namespace/name`.
    pub source_pod: Option<String>,
    /// Whose connection it is, when that was asked: whether it is enrolled, and the connection taken.
    pub pod: Option<PodAnswer>,
    /// The way, for people.
    #[serde(skip)]
    sections: Vec<Section>,
}

/// One row of the virtual host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its place.
    pub index: usize,
    /// Its configured name.
    pub name: Option<String>,
    /// Whether it is the one.
    pub matched: bool,
    /// Why, or why not.
    pub reason: String,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It goes to a cluster.
    Route,
    /// It is answered with another location.
    Redirect,
    /// The route table answers it.
    DirectResponse,
    /// There is no route for it, or the connection carries no requests that the agent sees.
    #[default]
    None,
}

/// A request as it would be sent to the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upstream {
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Host.
    pub host: String,
    /// The other headers.
    pub headers: BTreeMap<String, Vec<String>>,
}

/// Answers `question` with the code of the data path.
pub fn explain(snapshot: &Snapshot, question: &Question) -> Explanation {
    let mut answer = Explanation {
        direction: question.direction.name(),
        source_pod: question.source_pod.as_ref().map(ToString::to_string),
        ..Explanation::default()
    };
    let Some(arrived) = connection::arrive(snapshot, question, &mut answer) else { return answer };
    match &arrived.chain.filter {
        NetworkFilter::Tcp(proxy) => answer.tcp(snapshot, question, &arrived, proxy),
        NetworkFilter::Http(manager) => request::explain(snapshot, question, &arrived, manager, &mut answer),
    }
    answer
}

impl Explanation {
    /// For people: the way of the connection, with the reason for every turn.
    pub fn text(&self) -> String {
        text::render(&self.sections)
    }

    fn section(&mut self, title: &'static str, line: impl Into<String>) -> &mut Section {
        self.sections.push(Section { title, line: line.into(), details: Vec::new() });
        let last = self.sections.len() - 1;
        &mut self.sections[last]
    }

    fn flag(&mut self, flags: ResponseFlags) {
        self.response_flags = (!flags.is_empty()).then(|| flags.to_string());
    }

    /// Bytes, both ways.
    fn tcp(&mut self, snapshot: &Snapshot, question: &Question, arrived: &Arrived<'_>, proxy: &TcpProxy) {
        let cluster = match &proxy.cluster {
            ClusterSpecifier::Cluster(cluster) => Some(cluster),
            ClusterSpecifier::Weighted(weighted) => Some(weighted.pick(question.random)),
            ClusterSpecifier::Header(_) => None,
        };
        let what = if question.is_tls() { "bytes, encrypted" } else { "bytes" };
        let section = self.section("tcp proxy", format!("{what}, both ways: no requests are seen"));
        if let ClusterSpecifier::Weighted(weighted) = &proxy.cluster {
            section.details.extend(endpoint::weights(weighted, question.random));
        }
        match cluster {
            Some(cluster) => {
                let hash = proxy.hash(arrived.client.ip(), question.source_pod.as_ref());
                let by_kernel = arrived.listener.dispatch == Dispatch::Kernel && sticky::cluster(proxy).is_some();
                let choice = if by_kernel {
                    self.stuck(cluster, question)
                } else {
                    if proxy.hash_policy.is_some() {
                        self.hashed(hash, "the client's address");
                    }
                    self.choose(snapshot, cluster, question, arrived, hash)
                };
                self.dispatched(arrived, choice.as_ref());
            }
            None => self.flag(ResponseFlags::NO_CLUSTER),
        }
    }

    /// Who sends the connection on, where that is a question: at listeners that the kernel dispatches, or could.
    fn dispatched(&mut self, arrived: &Arrived<'_>, choice: Option<&Choice>) {
        if arrived.listener.dispatch == Dispatch::Agent {
            if qualify::obstacles(arrived.listener).is_empty() {
                let line =
                    "by the agent. The kernel could: with `dispatch: kernel` the connection would not meet the agent";
                self.section("dispatch", line);
            }
            return;
        }
        let Some(choice) = choice else {
            self.section("dispatch", "by the agent: the kernel has no endpoint to choose from");
            return;
        };
        let dialled = arrived.destination.map(|destination| destination.ip().is_ipv4());
        let endpoint = choice.address.map(|address| address.ip().is_ipv4());
        if dialled.zip(endpoint).is_some_and(|(dialled, endpoint)| dialled != endpoint) {
            let line = "by the agent: the endpoint is of another address family than what the client dials";
            self.section("dispatch", line);
            return;
        }
        self.dispatch = Some(Dispatch::Kernel.name());
        let to = choice.address.map_or_else(|| "it".to_owned(), |address| address.to_string());
        let line = format!("dispatched in the kernel to {to}: the connection does not meet the agent");
        self.section("dispatch", line);
    }

    /// What the hash policy made of the connection or request.
    fn hashed(&mut self, hash: Option<u64>, of: &str) -> &mut Section {
        self.hash = hash.map(|hash| format!("{hash:016x}"));
        let line = match &self.hash {
            Some(hash) => format!("{hash}, of {of}"),
            None => format!("none: there is no {of}"),
        };
        self.section("hash", line)
    }

    /// The endpoint of `cluster` that the kernel's table has for the client; `None` when none takes traffic.
    fn stuck(&mut self, cluster: &Cluster, question: &Question) -> Option<Choice> {
        self.cluster = Some(cluster.name.to_string());
        self.section("cluster", endpoint::described(cluster));
        let choice = endpoint::stuck(cluster, question.src);
        match &choice {
            Some(choice) => {
                self.endpoint = choice.address.map(|address| address.to_string());
                self.section("endpoint", choice.text.clone());
            }
            None => {
                self.flag(ResponseFlags::NO_HEALTHY_UPSTREAM);
                self.section("endpoint", "none takes traffic (flag UH)");
            }
        }
        choice
    }

    /// Goes on to an endpoint of `cluster`; `None` when there is none to be had.
    fn choose(
        &mut self,
        snapshot: &Snapshot,
        cluster: &Cluster,
        question: &Question,
        arrived: &Arrived<'_>,
        hash: Option<u64>,
    ) -> Option<Choice> {
        self.cluster = Some(cluster.name.to_string());
        self.section("cluster", endpoint::described(cluster));
        match endpoint::choose(snapshot, cluster, arrived.destination, Chance { hash, random: [question.random; 2] }) {
            Ok(choice) => {
                self.endpoint = choice.address.map(|address| address.to_string());
                self.section("endpoint", choice.text.clone());
                Some(choice)
            }
            Err(reason) => {
                self.flag(ResponseFlags::NO_HEALTHY_UPSTREAM);
                self.section("endpoint", format!("none: {reason} (flag UH)"));
                None
            }
        }
    }
}
