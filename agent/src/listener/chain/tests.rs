//! The nested maps against a straight transcription of the rules, and the rules that surprise people.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::trace::{Branch, Criterion};
use super::*;
use crate::cluster::ClusterSpecifier;
use crate::listener::TcpProxy;

fn chain(index: usize, matches: ChainMatch) -> Arc<FilterChain> {
    let filter = NetworkFilter::Tcp(TcpProxy {
        cluster: ClusterSpecifier::Header(http::HeaderName::from_static("unused")),
        idle_timeout: None,
        max_connect_attempts: 1,
        max_downstream_connection_duration: None,
        hash_policy: None,
    });
    Arc::new(FilterChain { name: None, index: Some(index), matches, filter })
}

pub(crate) fn chains(matches: Vec<ChainMatch>) -> Result<FilterChains, Vec<ChainConflict>> {
    FilterChains::new(matches.into_iter().enumerate().map(|(index, matches)| chain(index, matches)).collect(), None)
}

fn facts(destination: &str, client: &str) -> ConnectionFacts {
    ConnectionFacts::raw(
        OrigDstAddr::new(destination.parse().expect("address")),
        ClientAddr::new(client.parse().expect("address")),
    )
}

fn tls(name: Option<&str>, alpn: &[&str]) -> ConnectionFacts {
    ConnectionFacts {
        transport_protocol: TransportProtocol::Tls,
        server_name: name.map(str::to_owned),
        application_protocols: alpn.iter().map(|offer| (*offer).to_owned()).collect(),
        ..facts("10.0.0.1:443", "10.0.0.9:1000")
    }
}

#[track_caller]
fn check(chains: &FilterChains, facts: &ConnectionFacts, expected: Option<usize>) {
    assert_eq!(chains.find(facts).and_then(|chain| chain.index), expected, "{:?}", chains.trace(facts).steps);
}

fn names(names: &[&str]) -> ChainMatch {
    ChainMatch { server_names: names.iter().map(|name| (*name).to_owned()).collect(), ..ChainMatch::default() }
}

fn protocols(names: &[&str]) -> ChainMatch {
    ChainMatch { application_protocols: names.iter().map(|name| (*name).to_owned()).collect(), ..ChainMatch::default() }
}

#[test]
fn a_plaintext_connection_gets_no_chain_when_its_port_belongs_to_a_tls_chain() {
    let tls_on_80 = ChainMatch {
        destination_port: Some(80),
        transport_protocol: Some(TransportProtocol::Tls),
        ..ChainMatch::default()
    };
    let chains = chains(vec![tls_on_80, ChainMatch::default()]).expect("no conflict");
    check(&chains, &facts("10.0.0.1:80", "10.0.0.9:1"), None);
    check(&chains, &facts("10.0.0.1:81", "10.0.0.9:1"), Some(1));
    let plain = facts("10.0.0.1:80", "10.0.0.9:1");
    let trace = chains.trace(&plain);
    assert_eq!(trace.steps.last().map(|step| &step.branch), Some(&Branch::Nowhere));
    assert_eq!(trace.lost[0].reason, "transport_protocol: wants tls, the connection has raw_buffer");
    assert_eq!(trace.lost[1].reason, "destination_port: the more specific 80 was entered, and there is no way back");
}

#[test]
fn server_names_go_from_exact_over_longer_wildcards_to_none() {
    let chains =
        chains(vec![names(&["a.b.example.com"]), names(&["*.b.example.com"]), names(&["*.example.com"]), names(&[])])
            .expect("no conflict");
    let cases = [
        ("a.b.example.com", 0),
        ("x.b.example.com", 1),
        ("y.x.b.example.com", 1),
        ("b.example.com", 2),
        ("example.com", 3),
        ("other.org", 3),
    ];
    for (name, expected) in cases {
        check(&chains, &tls(Some(name), &[]), Some(expected));
    }
    check(&chains, &tls(None, &[]), Some(3));
}

#[test]
fn the_clients_order_of_protocols_decides() {
    let chains = chains(vec![protocols(&["http/1.1"]), protocols(&["h2"])]).expect("no conflict");
    check(&chains, &tls(None, &["h2", "http/1.1"]), Some(1));
    check(&chains, &tls(None, &["spdy", "http/1.1", "h2"]), Some(0));
    check(&chains, &tls(None, &["spdy"]), None);
}

#[test]
fn the_longest_prefix_alone_counts() {
    let wide = ChainMatch { prefix_ranges: vec!["10.0.0.0/8".parse().expect("net")], ..ChainMatch::default() };
    let narrow = ChainMatch {
        prefix_ranges: vec!["10.0.0.0/24".parse().expect("net")],
        source_ports: vec![7],
        ..ChainMatch::default()
    };
    let chains = chains(vec![wide, narrow]).expect("no conflict");
    check(&chains, &facts("10.0.0.1:80", "10.0.0.9:7"), Some(1));
    check(&chains, &facts("10.0.0.1:80", "10.0.0.9:8"), None);
    check(&chains, &facts("10.0.1.1:80", "10.0.0.9:8"), Some(0));
}

#[test]
fn a_local_client_falls_to_any_only_when_no_chain_asks_for_local_ones() {
    let of = |source_type| ChainMatch { source_type, ..ChainMatch::default() };
    let both = chains(vec![of(SourceType::SameIpOrLoopback), of(SourceType::Any)]).expect("no conflict");
    check(&both, &facts("10.0.0.1:80", "127.0.0.1:7"), Some(0));
    check(&both, &facts("10.0.0.1:80", "10.0.0.1:7"), Some(0));
    check(&both, &facts("10.0.0.1:80", "10.0.0.2:7"), Some(1));
}

#[test]
fn chains_that_cannot_be_told_apart_are_refused_with_envoys_words() {
    let same = chains(vec![names(&["a"]), names(&["a"])]).expect_err("duplicate");
    assert_eq!(same[0].to_string(), "filter chain '1' has the same matching rules defined as '0'");
    let overlap = chains(vec![names(&["a", "b"]), names(&["b", "c"])]).expect_err("overlap");
    assert!(
        overlap[0].to_string().starts_with("multiple filter chains with overlapping matching rules are defined"),
        "{}",
        overlap[0]
    );
    let net = ChainMatch { prefix_ranges: vec!["0.0.0.0/0".parse().expect("net")], ..ChainMatch::default() };
    assert_eq!(chains(vec![net, ChainMatch::default()]).expect_err("no prefix is /0").len(), 1);
}

/// The table of the rules, read literally: of the candidates, each criterion keeps those of the one branch.
fn naive(all: &[ChainMatch], facts: &ConnectionFacts) -> Option<usize> {
    let mut left: Vec<usize> = (0..all.len()).collect();
    let exact = |left: &mut Vec<usize>, named: &dyn Fn(&ChainMatch) -> bool, unnamed: &dyn Fn(&ChainMatch) -> bool| {
        let any_named = left.iter().any(|index| named(&all[*index]));
        left.retain(|index| if any_named { named(&all[*index]) } else { unnamed(&all[*index]) });
    };
    let longest = |left: &mut Vec<usize>, of: &dyn Fn(&ChainMatch) -> &Vec<IpNet>, address: IpAddr| {
        let lengths = |matches: &ChainMatch| -> Vec<u8> {
            if of(matches).is_empty() {
                return vec![0];
            }
            of(matches).iter().filter(|net| net.contains(&address)).map(IpNet::prefix_len).collect()
        };
        let best = left.iter().flat_map(|index| lengths(&all[*index])).max();
        left.retain(|index| best.is_some_and(|best| lengths(&all[*index]).contains(&best)));
    };
    let port = facts.destination.port();
    exact(&mut left, &|m| m.destination_port == Some(port), &|m| m.destination_port.is_none());
    longest(&mut left, &|m| &m.prefix_ranges, facts.destination.ip());
    let name = facts.server_name.clone().unwrap_or_default();
    let mut wanted = vec![name.clone()];
    wanted.extend(name.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| format!("*{}", &name[at..])));
    let wanted = wanted.into_iter().find(|name| left.iter().any(|index| all[*index].server_names.contains(name)));
    left.retain(|index| match &wanted {
        Some(name) => all[*index].server_names.contains(name),
        None => all[*index].server_names.is_empty(),
    });
    let transport = facts.transport_protocol;
    exact(&mut left, &|m| m.transport_protocol == Some(transport), &|m| m.transport_protocol.is_none());
    let wanted = facts
        .application_protocols
        .iter()
        .find(|offer| left.iter().any(|index| all[*index].application_protocols.contains(offer)));
    left.retain(|index| match wanted {
        Some(offer) => all[*index].application_protocols.contains(offer),
        None => all[*index].application_protocols.is_empty(),
    });
    longest(&mut left, &|m| &m.direct_source_prefix_ranges, facts.client.ip());
    let source = SourceType::of(facts.client.ip(), facts.destination.ip());
    exact(&mut left, &|m| m.source_type == source, &|m| m.source_type == SourceType::Any);
    longest(&mut left, &|m| &m.source_prefix_ranges, facts.client.ip());
    let port = facts.client.port();
    exact(&mut left, &|m| m.source_ports.contains(&port), &|m| m.source_ports.is_empty());
    assert!(left.len() <= 1, "conflicts are refused");
    left.first().copied()
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    let pool = ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "127.0.0.0/8", "0.0.0.0/0", "::1/128", "fd00::/8"];
    prop_oneof![
        3 => Just(Vec::new()),
        2 => subsequence(pool.to_vec(), 1..3).prop_map(|nets| nets.iter().map(|net| net.parse().expect("net")).collect()),
    ]
}

fn some_of(pool: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        2 => Just(Vec::new()),
        2 => subsequence(pool.to_vec(), 1..3).prop_map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
    ]
}

fn transport() -> impl Strategy<Value = TransportProtocol> {
    select(vec![TransportProtocol::Tls, TransportProtocol::RawBuffer])
}

pub(crate) fn any_match() -> impl Strategy<Value = ChainMatch> {
    (
        proptest::option::of(select(vec![80_u16, 443])),
        nets(),
        some_of(&["a.example.com", "*.example.com", "*.com", "example.com"]),
        proptest::option::of(transport()),
        some_of(&["h2", "http/1.1", "h2c"]),
        nets(),
        select(vec![SourceType::Any, SourceType::SameIpOrLoopback, SourceType::External]),
        nets(),
        prop_oneof![2 => Just(vec![]), 1 => Just(vec![7_u16]), 1 => Just(vec![7_u16, 8])],
    )
        .prop_map(|(port, nets, names, transport, protocols, direct, source_type, source, ports)| ChainMatch {
            destination_port: port,
            prefix_ranges: nets,
            server_names: names,
            transport_protocol: transport,
            application_protocols: protocols,
            direct_source_prefix_ranges: direct,
            source_type,
            source_prefix_ranges: source,
            source_ports: ports,
        })
}

pub(crate) fn any_facts() -> impl Strategy<Value = ConnectionFacts> {
    let addresses = vec!["10.0.0.1", "10.0.0.2", "10.9.0.1", "127.0.0.1", "192.168.0.1", "::1", "fd00::1"];
    (
        select(addresses.clone()),
        select(vec![80_u16, 443, 9]),
        select(addresses),
        select(vec![7_u16, 8, 9]),
        transport(),
        proptest::option::of(select(vec!["a.example.com", "b.example.com", "example.com", "x.y.example.com", "z.com"])),
        subsequence(vec!["h2", "http/1.1", "h2c", "x"], 0..4).prop_shuffle(),
    )
        .prop_map(|(dst, dst_port, src, src_port, transport_protocol, name, offers)| ConnectionFacts {
            destination: OrigDstAddr::new((dst.parse::<IpAddr>().expect("ip"), dst_port).into()),
            client: ClientAddr::new((src.parse::<IpAddr>().expect("ip"), src_port).into()),
            transport_protocol,
            server_name: name.map(str::to_owned),
            application_protocols: offers.iter().map(|offer| (*offer).to_owned()).collect(),
        })
}

/// Random chains less those that conflict with an earlier one.
pub(crate) fn compatible(candidates: Vec<ChainMatch>) -> Vec<ChainMatch> {
    let mut kept = Vec::new();
    for candidate in candidates {
        kept.push(candidate);
        if chains(kept.clone()).is_err() {
            kept.pop();
        }
    }
    kept
}

proptest! {
    #[test]
    fn the_nested_maps_choose_as_the_table_read_literally(
        candidates in proptest::collection::vec(any_match(), 0..8),
        connections in proptest::collection::vec(any_facts(), 1..24),
    ) {
        let all = compatible(candidates);
        let chains = chains(all.clone()).expect("compatible");
        for facts in &connections {
            let found = chains.find(facts).and_then(|chain| chain.index);
            prop_assert_eq!(found, naive(&all, facts), "{:?}", facts);
            let trace = chains.trace(facts);
            prop_assert_eq!(trace.chosen.and_then(|chain| chain.index), found);
            prop_assert_eq!(trace.lost.len() + usize::from(found.is_some()), all.len());
            if let Some(index) = found {
                prop_assert!(all[index].accepts_all(facts), "the chosen chain accepts the connection");
                prop_assert_eq!(trace.steps.len(), Criterion::ALL.len());
            }
        }
    }
}
