//! Findings about whole configurations, as people write them.

use super::*;
use crate::config::{Source, load};
use crate::snapshot::Runtime;

const CLUSTERS: &str = "clusters: [{name: c, type: original_dst}]";

fn findings(text: &str) -> Vec<Finding> {
    let source = Source::Inline { name: "test.yaml".to_owned(), text: text.to_owned() };
    let loaded = load(&source, &Runtime::default(), 1).unwrap_or_else(|errors| panic!("{errors}"));
    let findings = lint(&loaded.snapshot);
    for finding in &findings {
        assert!(loaded.positions.of(&finding.path).is_some(), "{} has a place in the file", finding.path);
    }
    findings
}

/// The findings about a virtual listener on port 8080 with these filters and chains.
fn of_chains(filters: &str, chains: &str) -> Vec<Finding> {
    findings(&format!(
        "{CLUSTERS}
listeners:
  - {{name: out, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}
  - name: l
    address: 0.0.0.0:8080
    bind_to_port: false
    listener_filters: [{filters}]
    filter_chains:
{chains}"
    ))
}

fn chain(matches: &str) -> String {
    format!("      - {{match: {{{matches}}}, tcp_proxy: {{cluster: c}}}}\n")
}

#[track_caller]
fn check(filters: &str, chains: &[&str], expected: &[(&str, Kind, &str)]) {
    let chains: String = chains.iter().map(|matches| chain(matches)).collect();
    let found = of_chains(filters, &chains);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (finding, (path, kind, message)) in found.iter().zip(expected) {
        assert_eq!((finding.path.as_str(), finding.kind), (*path, *kind), "{finding:#?}");
        assert!(finding.message.contains(message), "{message:?} in {}", finding.message);
    }
}

const FIRST: &str = "listeners[1].filter_chains[0]";
const SECOND: &str = "listeners[1].filter_chains[1]";

#[test]
fn a_connection_that_a_more_specific_chain_takes_away_is_a_trap() {
    check(
        "tls_inspector",
        &["destination_port: 8080, transport_protocol: tls", ""],
        // Every connection of this listener goes to port 8080.
        &[(SECOND, Kind::UnreachableFilterChain, "the more specific 8080 was entered")],
    );
    check(
        "tls_inspector",
        &["prefix_ranges: [10.0.0.0/8], transport_protocol: tls", ""],
        &[(
            SECOND,
            Kind::FilterChainTrap,
            "a plaintext connection to 10.0.0.1, but such a connection gets no filter chain",
        )],
    );
    check(
        "tls_inspector",
        &["server_names: [a.example], source_ports: [7]", "transport_protocol: tls"],
        &[(SECOND, Kind::FilterChainTrap, "with server name a.example")],
    );
}

#[test]
fn a_trap_at_the_listener_that_accepts_names_the_port() {
    let found = findings(&format!(
        "{CLUSTERS}
listeners:
  - name: out
    address: 127.0.0.1:15001
    use_original_dst: true
    listener_filters: [tls_inspector]
    filter_chains:
      - {{match: {{destination_port: 80, transport_protocol: tls}}, tcp_proxy: {{cluster: c}}}}
      - {{tcp_proxy: {{cluster: c}}}}
"
    ));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].other.as_deref(), Some("listeners[0].filter_chains[0]"));
    assert_eq!(
        found[0].message,
        "filter chain '1' of listener 'out' accepts a plaintext connection to port 80, but such a connection gets no \
         filter chain, because filter chain '0' asks for something more specific (destination_port: the more specific \
         80 was entered, and there is no way back)"
    );
}

#[test]
fn a_chain_that_asks_for_what_no_listener_filter_finds_out_is_unreachable() {
    let never = Kind::UnreachableFilterChain;
    check("", &["server_names: [a.example]"], &[(FIRST, never, "server_names needs tls_inspector")]);
    check("http_inspector", &["transport_protocol: tls"], &[(FIRST, never, "needs tls_inspector")]);
    check("", &["application_protocols: [http/1.1]"], &[(FIRST, never, "application_protocols needs http_inspector")]);
    check("http_inspector", &["application_protocols: [h2]"], &[(FIRST, never, "h2 is never found out")]);
    check("tls_inspector", &["destination_port: 9090"], &[(FIRST, never, "go to 8080")]);
    check(
        "tls_inspector",
        &["server_names: [a.example], transport_protocol: raw_buffer"],
        &[(FIRST, never, "has no server name")],
    );
    check(
        "tls_inspector",
        &["source_type: external, source_prefix_ranges: [127.0.0.0/8]"],
        &[(FIRST, never, "meets all of its criteria at once")],
    );
    check(
        "",
        &["source_type: same_ip_or_loopback", "source_type: external", ""],
        &[("listeners[1].filter_chains[2]", never, "source_type: the more specific")],
    );
}

#[test]
fn ordinary_chains_raise_no_finding() {
    check("tls_inspector, http_inspector", &["transport_protocol: tls", "application_protocols: [http/1.1, h2c]"], &[]);
    check(
        "tls_inspector",
        &["server_names: [a.example]", "server_names: ['*.example']", "transport_protocol: tls"],
        &[],
    );
    check("", &["prefix_ranges: [10.0.0.0/24]", "prefix_ranges: [10.0.0.0/8]", ""], &[]);
    check("tls_inspector", &["application_protocols: [h2]", "application_protocols: [http/1.1]", ""], &[]);
    check(
        "",
        &["source_type: external, source_prefix_ranges: [10.0.0.1/32], prefix_ranges: [10.0.0.1/32, 10.0.0.2/32]"],
        &[],
    );
}

#[test]
fn rows_and_virtual_hosts_that_nothing_reaches_are_found_where_they_are_written() {
    let found = findings(&format!(
        "{CLUSTERS}
listeners:
  - name: l
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain:
      http:
        route_config:
          ignore_port_in_host_matching: true
          virtual_hosts:
            - {{name: port, domains: ['shop.example:8080'], routes: [{{match: {{prefix: /}}, route: {{cluster: c}}}}]}}
            - name: shop
              domains: ['*']
              routes:
                - {{match: {{prefix: /}}, route: {{cluster: c}}}}
                - {{name: late, match: {{path: /checkout, methods: [GET]}}, route: {{cluster: c}}}}
"
    ));
    let hosts = "listeners[0].default_filter_chain.http.route_config.virtual_hosts";
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!((found[0].path.clone(), found[0].kind), (format!("{hosts}[0]"), Kind::UnreachableVirtualHost));
    assert_eq!((found[1].path.clone(), found[1].kind), (format!("{hosts}[1].routes[1]"), Kind::ShadowedRoute));
    assert_eq!(found[1].message, "row 1 'late' (path /checkout, methods GET) is shadowed by row 0 (prefix /)");
}

#[test]
fn what_nothing_leads_to_is_found() {
    let found = findings(
        "listeners:
  - {name: v, address: 10.0.0.1:80, bind_to_port: false, default_filter_chain: {tcp_proxy: {cluster: used}}}
route_configs:
  - {name: r, virtual_hosts: [{name: h, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: used}}]}]}
clusters: [{name: used, type: original_dst}, {name: spare, type: original_dst}]
",
    );
    let kinds: Vec<_> = found.iter().map(|finding| (finding.path.as_str(), finding.kind)).collect();
    let expected = [
        ("listeners[0]", Kind::UnreachableListener),
        ("route_configs[0]", Kind::UnusedRouteConfig),
        ("clusters[\"spare\"]", Kind::UnusedCluster),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(found[0].kind.severity(), Severity::Warning);
    assert_eq!(found[2].kind.severity(), Severity::Info);
}

#[test]
fn what_was_not_looked_for_among_many_chains_is_said() {
    let inspected = |criteria: fn(usize) -> String, count: usize| {
        let chains: String = (0..count).map(|number| chain(&criteria(number))).collect();
        of_chains("tls_inspector", &chains)
    };
    // Each may take connections away from each other.
    let found = inspected(|n| format!("source_prefix_ranges: [10.{}.{}.0/24]", n >> 8, n & 255), 1_200);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].path.as_str(), found[0].kind), ("listeners[1]", Kind::FilterChainsUndecided));
    assert!(found[0].message.contains("has 1200 filter chains"), "{}", found[0].message);
    // These keep apart.
    assert_eq!(inspected(|n| format!("server_names: [host{n}.example, \"*.zone{n}.example\"]"), 1_200), []);
}

#[test]
fn the_examples_raise_no_warning_but_the_one_that_shows_a_shadow() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
    for entry in std::fs::read_dir(folder).expect("examples") {
        let path = entry.expect("entry").path();
        let found = findings(&std::fs::read_to_string(&path).expect("example"));
        let warnings = found.iter().filter(|finding| finding.kind.severity() == Severity::Warning).count();
        let shows_a_shadow = path.ends_with("ordering-wildcard.yaml") || path.ends_with("ordering-prefix.yaml");
        assert!(warnings == 0 || shows_a_shadow, "{}: {found:#?}", path.display());
    }
}

/// The findings about a configuration for pods with these listeners besides the one for what goes out.
fn of_pods(intercept: &str, listeners: &str, checks: &str) -> Vec<Finding> {
    findings(&format!(
        "intercept: {intercept}
listeners:
  - {{name: out, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}
{listeners}
clusters: [{{name: c, type: original_dst}}, {{name: app, endpoints: [127.0.0.1:8080]{checks}}}]"
    ))
}

const TO_THE_APP: &str = "{tcp_proxy: {cluster: app}}";
const BOTH: &str = "{pods: {}, inbound: {}}";

#[test]
fn virtual_listeners_are_reached_by_those_of_their_direction_alone() {
    let inbound = |use_original_dst| {
        format!(
            "  - {{name: in, address: 127.0.0.1:15006, traffic_direction: inbound, use_original_dst: {use_original_dst}, default_filter_chain: {TO_THE_APP}}}
  - {{name: in-80, address: 0.0.0.0:80, bind_to_port: false, traffic_direction: inbound, default_filter_chain: {TO_THE_APP}}}
  - {{name: out-80, address: 0.0.0.0:80, bind_to_port: false, default_filter_chain: {TO_THE_APP}}}"
        )
    };
    let found = of_pods(BOTH, &inbound(false), "");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].path.as_str(), found[0].kind), ("listeners[2]", Kind::UnreachableListener));
    assert!(found[0].message.contains("no bound listener with traffic_direction inbound has"), "{}", found[0].message);
    assert_eq!(of_pods(BOTH, &inbound(true), ""), []);
}

#[test]
fn chains_of_the_inbound_listener_see_every_destination() {
    let listener = |use_original_dst, port: u16| {
        format!(
            "  - name: in
    address: 127.0.0.1:15006
    traffic_direction: inbound
    use_original_dst: {use_original_dst}
    filter_chains: [{{match: {{destination_port: {port}}}, tcp_proxy: {{cluster: app}}}}]
    default_filter_chain: {TO_THE_APP}
  - {{name: in-80, address: 0.0.0.0:80, bind_to_port: false, traffic_direction: {}, default_filter_chain: {TO_THE_APP}}}",
            if use_original_dst { "inbound" } else { "outbound" }
        )
    };
    assert_eq!(
        of_pods(BOTH, &listener(false, 80), ""),
        [],
        "what another listener has of the other direction is no matter"
    );
    assert_eq!(of_pods(BOTH, &listener(true, 8080), ""), []);
}

#[test]
fn health_checks_of_loopback_are_not_those_of_pods() {
    let inbound = format!(
        "  - {{name: in, address: 127.0.0.1:15006, traffic_direction: inbound, default_filter_chain: {TO_THE_APP}}}"
    );
    let checks = ", health_checks: [{tcp: {}}]";
    let found = of_pods(BOTH, &inbound, checks);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].path.as_str(), found[0].kind), ("clusters[\"app\"]", Kind::HealthCheckElsewhere));
    assert_eq!(of_pods(BOTH, &inbound, ""), []);
    assert_eq!(of_pods("{host: true, pods: {}, inbound: {include: [{ports: [80]}]}}", &inbound, checks), []);
    let direct = format!("{inbound}\n  - {{name: direct, address: 127.0.0.1:80, default_filter_chain: {TO_THE_APP}}}");
    assert_eq!(of_pods(BOTH, &direct, checks), [], "the agent's own namespace is right for this listener");
}

#[test]
fn hashes_that_nothing_goes_by_and_clusters_without_a_hash_are_told() {
    let file = |of_rows: [&str; 2], of_tcp: &str| {
        format!(
            "clusters: [{{name: ring, lb_policy: ring_hash, endpoints: [127.0.0.1:1]}}, {{name: plain, endpoints: [127.0.0.1:2]}}]
listeners:
  - {{name: h, address: 127.0.0.1:1, default_filter_chain: {{http: {{route_config: r}}}}}}
  - {{name: t, address: 127.0.0.1:2, filter_chains: [{{tcp_proxy: {{cluster: plain{of_tcp}}}}}]}}
route_configs:
  - name: r
    virtual_hosts:
      - name: h
        domains: ['*']
        routes:
          - {{match: {{path: /1}}, route: {{cluster: ring{}}}}}
          - {{match: {{path: /2}}, route: {{weighted_clusters: [{{name: ring, weight: 1}}, {{name: plain, weight: 1}}]{}}}}}
",
            of_rows[0], of_rows[1]
        )
    };
    let (none, hashed) = ("", ", hash_policy: [{header: x}]");
    let missing = ("clusters[\"ring\"]", Kind::HashPolicyMissing);
    for (of_rows, of_tcp, expected) in [
        ([none, none], "", vec![missing]),
        ([hashed, none], "", vec![]),
        ([none, hashed], "", vec![]),
        (
            [none, none],
            ", hash_policy: [{source_ip: true}]",
            vec![("listeners[1].filter_chains[0].tcp_proxy.hash_policy", Kind::HashPolicyIgnored), missing],
        ),
    ] {
        let found = findings(&file(of_rows, of_tcp));
        let found: Vec<_> = found.iter().map(|finding| (finding.path.as_str(), finding.kind)).collect();
        assert_eq!(found, expected, "{of_rows:?} {of_tcp}");
    }
    let ignored = file([hashed, none], "").replace("route: {cluster: ring", "route: {cluster: plain");
    let found = findings(&ignored);
    assert_eq!(found[0].path, "route_configs[0].virtual_hosts[0].routes[0].route.hash_policy");
    assert!(found[0].message.contains("'plain' is neither"), "{}", found[0].message);
    assert_eq!(found[0].kind.severity(), Severity::Warning);
}
