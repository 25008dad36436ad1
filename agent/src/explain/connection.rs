//! From the connection to its filter chain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::text::Section;
use super::{Explanation, Question, pod, taken};
use crate::addr::{ClientAddr, OrigDstAddr};
use crate::listener::TrafficDirection;
use crate::listener::chain::trace::{Branch, Trace};
use crate::listener::chain::{ConnectionFacts, FilterChain, TransportProtocol};
use crate::listener::dispatch::FoundBy;
use crate::listener::{Binding, HandOff, Listener, ListenerFilter, NetworkFilter};
use crate::snapshot::{Redirect, Snapshot};
use crate::telemetry::flags::ResponseFlags;

/// A connection that has found its filter chain.
pub(super) struct Arrived<'a> {
    pub(super) listener: &'a Listener,
    pub(super) chain: &'a Arc<FilterChain>,
    pub(super) client: ClientAddr,
    /// `None` when the URL names a host and nothing says what its address is.
    pub(super) destination: Option<OrigDstAddr>,
}

/// Takes the connection of `question` to its filter chain; `None` when there is none.
pub(super) fn arrive<'a>(snapshot: &'a Snapshot, question: &Question, answer: &mut Explanation) -> Option<Arrived<'a>> {
    let destination = question.destination().map(OrigDstAddr::new);
    let address = match destination {
        Ok(destination) => destination,
        Err(port) => OrigDstAddr::new(guess(snapshot, question.direction, port)),
    };
    let client = ClientAddr::new(question.client(address.ip()));
    describe(snapshot, question, address, client, answer);
    let (listener, found_by) = dispatch(snapshot, question.direction, address, answer)?;
    answer.listener = Some(listener.name.to_string());
    let how = match found_by {
        _ if destination.is_err() => "found by its port alone: --dst IP:PORT says which address is meant",
        FoundBy::Exact => "found by exactly this address",
        FoundBy::Wildcard => "found by the wildcard address with this port",
        FoundBy::Accepted if listener.hand_off == HandOff::Stay => "accepted the connection, and serves it itself",
        FoundBy::Accepted => "accepted the connection; no listener has its original destination",
    };
    let section = answer.section("listener", format!("{} ({}), {how}", listener.name, listener.address));
    let facts = inspect(listener, question, address, client, section);
    let chain = choose_chain(listener, &facts, answer)?;
    Some(Arrived { listener, chain, client, destination: destination.ok() })
}

/// An address for a connection of which only the port is known: that of a listener with this port, the wildcard ones
/// first.
fn guess(snapshot: &Snapshot, direction: TrafficDirection, port: u16) -> SocketAddr {
    let wildcards: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let wildcard = wildcards.map(|ip| SocketAddr::new(ip, port)).into_iter();
    let found =
        wildcard.clone().find(|address| snapshot.listeners.find(direction, OrigDstAddr::new(*address)).is_some());
    let of_direction = || snapshot.listeners.iter().filter(|listener| listener.direction == direction);
    let exact = || of_direction().map(|listener| listener.address).find(|address| address.port() == port);
    found.or_else(exact).unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
}

fn describe(
    snapshot: &Snapshot,
    question: &Question,
    destination: OrigDstAddr,
    client: ClientAddr,
    answer: &mut Explanation,
) {
    let kind = match (question.is_tls(), question.is_h2c()) {
        (true, _) => "TLS",
        (false, true) => "plain, HTTP/2 by prior knowledge",
        (false, false) => "plain",
    };
    let to = match question.destination() {
        Ok(_) => destination.to_string(),
        Err(port) => format!("{}, port {port}", question.url.host()),
    };
    let way = match question.direction {
        TrafficDirection::Outbound => "to",
        TrafficDirection::Inbound => "inbound, to",
    };
    let section = answer.section("connection", format!("{way} {to} from {}, {kind}", client.ip()));
    if let Some(name) = question.server_name() {
        section.details.push(format!("server name {name}"));
    }
    if question.is_tls() && !question.alpn.is_empty() {
        section.details.push(format!("ALPN {}", question.alpn.join(", ")));
    }
    if let Some(pod) = &question.source_pod {
        let labels: Vec<_> = pod.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let with = if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") };
        section.details.push(format!("it comes from pod {pod} with {with}"));
    }
    if let Some(pod) = &question.pod {
        let known = question.destination().is_ok().then_some(destination);
        pod::explain(snapshot, question, pod, (known, client), answer);
    } else if let (Ok(_), Some(intercept)) = (question.destination(), &snapshot.intercept) {
        section.details.extend(taken::remarks(intercept, question, destination, client));
    }
}

/// The listener that serves the connection.
fn dispatch<'a>(
    snapshot: &'a Snapshot,
    direction: TrafficDirection,
    destination: OrigDstAddr,
    answer: &mut Explanation,
) -> Option<(&'a Arc<Listener>, FoundBy)> {
    let listeners = &snapshot.listeners;
    let accepts = |listener: &&Arc<Listener>| listener.direction == direction && listener.receives();
    if let Some(accepted) = listeners.iter().find(accepts) {
        return Some(listeners.dispatch(accepted, destination));
    }
    if direction == TrafficDirection::Inbound {
        let text =
            "none: no bound listener has traffic_direction inbound, so nothing that arrives is handed to the agent";
        answer.section("listener", text);
        return None;
    }
    let found = listeners.find(direction, destination).filter(|(found, _)| found.binding != Binding::Virtual);
    if found.is_none() {
        let redirect = snapshot.intercept.as_ref().map(|intercept| intercept.redirect);
        let text = match redirect {
            Some(Redirect::Proxy { .. }) => "none: intercept.redirect_to sends connections to another proxy",
            _ => "none: no bound listener has use_original_dst, so nothing is redirected to the agent",
        };
        answer.section("listener", text);
    }
    found
}

/// What the listener filters would find out.
fn inspect(
    listener: &Listener,
    question: &Question,
    destination: OrigDstAddr,
    client: ClientAddr,
    section: &mut Section,
) -> ConnectionFacts {
    let mut facts = ConnectionFacts::raw(destination, client);
    for filter in &listener.listener_filters {
        match filter {
            ListenerFilter::TlsInspector if question.is_tls() => {
                facts.transport_protocol = TransportProtocol::Tls;
                facts.server_name = question.server_name();
                facts.application_protocols.clone_from(&question.alpn);
            }
            ListenerFilter::HttpInspector if !question.is_tls() => {
                let protocol = if question.is_h2c() { "h2c" } else { "http/1.1" };
                facts.application_protocols = vec![protocol.to_owned()];
            }
            ListenerFilter::TlsInspector | ListenerFilter::HttpInspector => {}
        }
    }
    let names: Vec<_> = listener.listener_filters.iter().map(|filter| filter.name()).collect();
    let filters = if names.is_empty() { "no listener filters".to_owned() } else { names.join(", ") };
    let mut found = vec![facts.transport_protocol.name().to_owned()];
    found.extend(facts.server_name.iter().map(|name| format!("server name {name}")));
    found.extend(facts.application_protocols.iter().cloned());
    section.details.push(format!("{filters}: {}", found.join(", ")));
    if question.is_tls() && facts.transport_protocol != TransportProtocol::Tls {
        section.details.push("without tls_inspector nobody notices that it is TLS".to_owned());
    }
    facts
}

fn choose_chain<'a>(
    listener: &'a Listener,
    facts: &ConnectionFacts,
    answer: &mut Explanation,
) -> Option<&'a Arc<FilterChain>> {
    let trace = listener.chains.trace(facts);
    answer.filter_chain = trace.chosen.map(|chain| chain.label());
    if trace.chosen.is_none() {
        answer.flag(ResponseFlags::NO_ROUTE);
    }
    let line = match trace.chosen {
        None => "none matches, and there is no default one: the connection is closed (flag NR)".to_owned(),
        Some(chain) => {
            let by_default = if chain.index.is_none() { ", no other matches" } else { "" };
            format!("{} ({}){by_default}", chain.label(), filter_name(chain))
        }
    };
    let details = criteria(listener, facts, &trace);
    answer.section("filter chain", line).details = details;
    trace.chosen
}

/// The turns that mattered, then the chains that were lost.
fn criteria(listener: &Listener, facts: &ConnectionFacts, trace: &Trace<'_>) -> Vec<String> {
    let asked = |chain: &Arc<FilterChain>, criterion| chain.matches.wanted(criterion).is_some();
    let mut details = Vec::new();
    for step in &trace.steps {
        if !listener.chains.all().iter().any(|chain| asked(chain, step.criterion)) {
            continue;
        }
        let name = step.criterion.name();
        details.push(match &step.branch {
            Branch::Nowhere => format!("{name}: no chain that is left takes {}", facts.at(step.criterion)),
            branch if branch.is_any() => match facts.at(step.criterion).as_str() {
                "none" => format!("{name}: none, on with the chains that do not ask"),
                own => format!("{name}: no chain names {own}, on with those that do not ask"),
            },
            branch => format!("{name}: {branch}"),
        });
    }
    details.extend(trace.lost.iter().map(|lost| {
        let chain = lost.chain;
        format!("not {} ({}): {}", chain.label(), filter_name(chain), lost.reason)
    }));
    details
}

fn filter_name(chain: &FilterChain) -> &'static str {
    match chain.filter {
        NetworkFilter::Tcp(_) => "tcp_proxy",
        NetworkFilter::Http(_) => "http",
    }
}
