//! What good configurations become: defaults, short forms, names.

use std::time::Duration;

use super::check;
use crate::cluster::{CircuitBreakers, ClusterSpecifier, Discovery, HealthCheckKind, LbPolicy, UpstreamProtocol};
use crate::http::route::{
    Action, AppendAction, HeaderValueMatch, HostRewrite, PathMatch, PathRewrite, QueryValueMatch, RetryOn, Route,
    StringMatchKind,
};
use crate::kernel::policy::Compiled;
use crate::kernel::{OnAgentLoss, Policy};
use crate::listener::{Binding, HandOff, NetworkFilter, OnFiltersTimeout, ReusePort, TrafficDirection};
use crate::snapshot::{FromNode, Intercept, Snapshot};
use crate::workload::Workload;

fn snapshot(text: &str) -> Snapshot {
    check(text).unwrap_or_else(|errors| panic!("{errors}")).snapshot
}

/// The row `text` of the only virtual host, after what else a file needs.
fn row(text: &str) -> Route {
    let mut snapshot = snapshot(&format!(
        "clusters: [{{name: c, endpoints: [127.0.0.1:1]}}]\nroute_configs:\n  - name: t\n    virtual_hosts: [{{name: h, domains: [\"*\"], routes: [{text}]}}]\n"
    ));
    let config = snapshot.route_configs.remove("t").expect("the table");
    let mut config = std::sync::Arc::into_inner(config).expect("the only one");
    config.virtual_hosts.remove(0).routes.remove(0)
}

fn forwarded(fields: &str) -> crate::http::route::RouteAction {
    match row(&format!("{{match: {{prefix: /}}, route: {{cluster: c, {fields}}}}}")).action {
        Action::Route(action) => *action,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_given_gets_its_default() {
    let snapshot = snapshot(
        "listeners: [{name: v, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {tcp_proxy: {cluster: c}}}]\nclusters: [{name: c, endpoints: [127.0.0.1:1]}]\n",
    );
    let intercept = snapshot.intercept.as_ref().expect("implied by the listener");
    assert_eq!(intercept.cgroup.to_str(), Some("/"));
    assert_eq!((intercept.on_agent_loss, intercept.handover_entries), (OnAgentLoss::Allow, 65_536));
    assert!(intercept.outbound.include.is_empty() && intercept.outbound.exclude.is_empty());
    assert_eq!(snapshot.admin.prometheus, "127.0.0.1:15090".parse().ok());
    assert_eq!(snapshot.admin.readiness, "127.0.0.1:15021".parse().ok());
    assert_eq!(snapshot.access_log.len(), 1);
    assert_eq!(snapshot.drain_timeout, Duration::from_secs(30));
    let listener = snapshot.listeners.named("v").expect("the listener");
    assert_eq!(listener.binding, Binding::Socket { reuse_port: ReusePort::PerWorker, backlog: 4096 });
    assert_eq!(listener.hand_off, HandOff::ByOriginalDst);
    assert_eq!(listener.listener_filters_timeout, Some(Duration::from_secs(5)));
    assert_eq!(listener.on_filters_timeout, OnFiltersTimeout::Continue);
    let cluster = &snapshot.clusters["c"];
    assert_eq!((cluster.discovery.clone(), cluster.lb_policy), (Discovery::Static, LbPolicy::RoundRobin));
    assert_eq!(
        (cluster.connect_timeout, cluster.idle_timeout),
        (Duration::from_secs(5), Some(Duration::from_secs(3600)))
    );
    assert_eq!((cluster.protocol, cluster.circuit_breakers), (UpstreamProtocol::Http1, CircuitBreakers::default()));
    assert_eq!(cluster.endpoints.load().all()[0].weight, 1);
    match &listener.chains.default_chain().expect("the default chain").filter {
        NetworkFilter::Tcp(tcp) => {
            assert_eq!((tcp.idle_timeout, tcp.max_connect_attempts), (Some(Duration::from_secs(3600)), 1))
        }
        other => panic!("{other:?}"),
    }
}

/// What becomes of this `intercept`, with a listener for each direction.
fn intercepted(intercept: &str) -> Intercept {
    let listener = |name: &str, fields: &str| {
        format!("{{name: {name}, {fields}, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}")
    };
    let out = listener("out", "address: 127.0.0.1:15001, use_original_dst: true");
    let inbound = listener("in", "address: 127.0.0.1:15006, traffic_direction: INBOUND");
    let text =
        format!("intercept: {intercept}\nlisteners: [{out}, {inbound}]\nclusters: [{{name: c, type: original_dst}}]\n");
    let snapshot = snapshot(&text);
    assert_eq!(snapshot.listeners.named("in").expect("a listener").direction, TrafficDirection::Inbound);
    assert_eq!(snapshot.listeners.named("out").expect("a listener").direction, TrafficDirection::Outbound);
    snapshot.intercept.expect("intercepted")
}

#[test]
fn the_host_takes_part_unless_pods_do() {
    for (text, expected) in [
        ("{}", true),
        ("{host: true}", true),
        ("{pods: {}}", false),
        ("{host: false, pods: {}}", false),
        ("{host: true, pods: {}}", true),
    ] {
        assert_eq!(intercepted(text).host, expected, "{text}");
    }
}

#[test]
fn what_arrives_resolves() {
    assert_eq!(intercepted("{pods: {}}").inbound, None);
    assert_eq!(intercepted("{pods: {}, inbound:}").inbound, None, "an empty field is an absent one");
    let everything = intercepted("{pods: {}, inbound: {}}").inbound.expect("inbound");
    assert_eq!((everything.policy, everything.from_node), (Policy::default(), FromNode::Pass));
    let text = "{inbound: {include: [{cidr: 10.0.0.0/8, ports: [80, 8000-8999]}], exclude: [{ports: [8022]}], from_node: intercept}}";
    let some = intercepted(text).inbound.expect("inbound");
    assert_eq!(some.from_node, FromNode::Intercept);
    assert_eq!(some.policy.include[0].ports, [80..=80, 8000..=8999]);
    assert_eq!(some.policy.exclude[0].ports, [8022..=8022]);
}

#[test]
fn pods_resolve() {
    let usual = intercepted("{pods: {}}").pods.expect("pods");
    assert_eq!((usual.runtimes.len(), usual.poll_interval), (0, Duration::from_secs(5)));
    let pod = |labels: &[(&str, &str)], annotations: &[(&str, &str)]| {
        let map = |of: &[(&str, &str)]| of.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Workload { namespace: "shop".into(), labels: map(labels), annotations: map(annotations), ..Workload::default() }
    };
    let inject = [("waylay.io/inject", "true")];
    let selected = |pod: &Workload| usual.select.iter().any(|row| row.selects(pod));
    assert!(selected(&pod(&inject, &[])) && selected(&pod(&[], &inject)) && !selected(&pod(&[], &[])));
    assert!(!selected(&pod(&[("waylay.io/inject", "false")], &[])));
    let text = "{pods: {runtimes: [\"cri:///run/c.sock\"], poll_interval: 1m, select: [{namespaces: [shop], labels: {app: 1.10}}], policies: [{source_pod: {namespace: shop, name: \"web-*\", labels: {a: b}}, outbound: {include: [{ports: [5432]}]}}]}}";
    let some = intercepted(text).pods.expect("pods");
    assert_eq!(
        (some.runtimes[0].to_string().as_str(), some.poll_interval),
        ("cri:///run/c.sock", Duration::from_secs(60))
    );
    assert!(some.select[0].selects(&pod(&[("app", "1.10")], &[])));
    let row = &some.policies[0];
    assert_eq!(row.source_pod.to_string(), "pod shop/web-* with a=b");
    assert_eq!((row.outbound.as_ref().map(|policy| policy.include.len()), row.inbound.is_some()), (Some(1), false));
}

#[test]
fn processes_resolve() {
    let rules = intercepted("{processes: [{user: root, comm: curl}, {user: 4711}, {pid: 7}, {unit: nginx}, {unit: a.slice}, {cgroup: /user.slice}]}").processes;
    assert_eq!((rules[0].uid, rules[0].comm.as_deref()), (Some(0), Some("curl")));
    assert_eq!((rules[1].uid, rules[2].pid), (Some(4711), Some(7)));
    let units: Vec<_> = rules.iter().filter_map(|rule| rule.unit.as_deref()).collect();
    assert_eq!(units, ["nginx.service", "a.slice"]);
    assert_eq!(rules[5].cgroup.as_deref(), Some(std::path::Path::new("/user.slice")));
}

#[test]
fn nothing_that_goes_out_is_taken_without_a_listener_for_it() {
    let text = "intercept: {inbound: {include: [{ports: [80]}]}}\nlisteners: [{name: in, address: 127.0.0.1:15006, traffic_direction: inbound, default_filter_chain: {tcp_proxy: {cluster: c}}}]\nclusters: [{name: c, type: original_dst}]\n";
    let intercept = snapshot(text).intercept.expect("intercepted");
    let compiled = Compiled::new(&intercept.outbound).expect("a policy");
    assert!(!compiled.intercepts_v4() && !compiled.intercepts_v6());
}

#[test]
fn a_condition_on_the_pod_resolves() {
    let route = row("{match: {prefix: /, source_pod: {name: \"web-*\"}}, route: {cluster: c}}");
    assert_eq!(route.matches.source_pod.expect("a condition").to_string(), "pod */web-*");
}

#[test]
fn nothing_is_intercepted_without_a_listener_that_takes_original_destinations() {
    let text = "listeners: [{name: v, address: 127.0.0.1:80, listener_filters_timeout: 0s, continue_on_listener_filters_timeout: false, reuse_port: false, default_filter_chain: {tcp_proxy: {cluster: c, idle_timeout: 0s}}}]\nclusters: [{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}]\nadmin: {prometheus: off, readiness: off}\naccess_log: []\n";
    let snapshot = snapshot(text);
    assert_eq!((snapshot.intercept, snapshot.admin.prometheus, snapshot.admin.readiness), (None, None, None));
    assert!(snapshot.access_log.is_empty());
    let listener = snapshot.listeners.named("v").expect("the listener");
    assert_eq!((listener.listener_filters_timeout, listener.on_filters_timeout), (None, OnFiltersTimeout::Close));
    assert_eq!(listener.binding, Binding::Socket { reuse_port: ReusePort::Shared, backlog: 4096 });
}

#[test]
fn header_and_query_conditions_resolve() {
    let route = row(
        "{match: {prefix: /, headers: [{name: X-A, exact: B, ignore_case: true}, {name: b}, {name: c, present: false}, {name: d, range: {start: -1, end: 7}, invert: true}, {name: \":method\", safe_regex: 'G.T'}, {name: v, exact: 1.10}], query_parameters: [{name: Q}, {name: r, contains: x}], methods: [GET], grpc: {}, runtime_fraction: {numerator: 25, denominator: TEN_THOUSAND}}, route: {cluster: c}}",
    );
    let headers = &route.matches.headers;
    assert_eq!(headers[0].name, "x-a");
    let texts: Vec<_> = headers
        .iter()
        .map(|header| match &header.value {
            HeaderValueMatch::String(text) => format!("{:?}", text.kind),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(texts[0], format!("{:?}", StringMatchKind::Exact("b".into())));
    assert_eq!(texts[1..4], ["Present(true)", "Present(false)", "Range { start: -1, end: 7 }"]);
    assert_eq!(texts[5], "Exact(\"1.10\")", "a text needs no quotes, whatever it looks like");
    assert!(headers[3].invert && !headers[0].invert);
    assert_eq!(route.matches.query_parameters[0].value, QueryValueMatch::Present(true));
    assert_eq!(route.matches.runtime_fraction_per_million, Some(2_500));
    assert!(route.matches.grpc && route.matches.case_sensitive);
}

#[test]
fn path_conditions_resolve() {
    for (text, expected) in [
        ("prefix: /a", "Prefix(\"/a\")"),
        ("path: /a", "Exact(\"/a\")"),
        ("path_separated_prefix: /a", "PathSeparatedPrefix(\"/a\")"),
        ("connect_matcher: {}", "Connect"),
        ("connect_matcher: true", "Connect"),
    ] {
        let route = row(&format!("{{match: {{{text}}}, route: {{cluster: c}}}}"));
        assert_eq!(format!("{:?}", route.matches.path), expected);
    }
    let route = row("{match: {path_template: '/a/{b}'}, route: {cluster: c, path_template_rewrite: '/x/{b}'}}");
    assert!(matches!(route.matches.path, PathMatch::Template(_)));
}

#[test]
fn route_actions_resolve() {
    let action = forwarded("timeout: 0s, idle_timeout: 0s, host_rewrite: shop.internal:80");
    assert_eq!((action.timeout, action.idle_timeout), (None, Some(None)));
    assert_eq!(action.host_rewrite, Some(HostRewrite::Literal("shop.internal:80".parse().expect("value"))));
    let action = forwarded("regex_rewrite: {pattern: '/(a)/', substitution: '\\0$1\\1\\\\'}");
    assert_eq!((action.timeout, action.idle_timeout), (Some(Duration::from_secs(15)), None));
    match action.path_rewrite {
        Some(PathRewrite::Regex { substitution, pattern }) => {
            assert_eq!(substitution, r"${0}$$1${1}\");
            assert_eq!(pattern.replace_all("x/a/y", substitution.as_str()), r"x/a/$1a\y");
        }
        other => panic!("{other:?}"),
    }
    let action = forwarded("retry_policy: {retry_on: \"5xx, reset\", retry_back_off: {base_interval: 50ms}}");
    let retry = action.retry_policy.expect("a retry policy");
    assert_eq!((retry.retry_on.clone(), retry.num_retries), (vec![RetryOn::FiveXx, RetryOn::Reset], 1));
    assert_eq!(retry.max_interval, Duration::from_millis(500));
}

#[test]
fn answers_and_header_changes_resolve() {
    let route = row(
        "{match: {prefix: /}, redirect: {https_redirect: true, response_code: PERMANENT_REDIRECT}, request_headers_to_add: [{key: X-A, value: 100%}, {header: {key: b, value: c}, append_action: OVERWRITE_IF_EXISTS}], response_headers_to_remove: [Server]}",
    );
    match route.action {
        Action::Redirect(redirect) => {
            assert_eq!(redirect.scheme_redirect.as_deref(), Some("https"));
            assert_eq!(redirect.response_code.as_u16(), 308);
        }
        other => panic!("{other:?}"),
    }
    let add = &route.headers.request.add;
    assert_eq!((add[0].name.as_str(), add[0].value.as_bytes()), ("x-a", b"100%".as_slice()));
    assert_eq!(add[0].append_action, AppendAction::AppendIfExistsOrAdd);
    assert_eq!(add[1].append_action, AppendAction::OverwriteIfExists);
    assert_eq!(route.headers.response.remove[0].as_str(), "server");
}

#[test]
fn clusters_resolve() {
    let snapshot = snapshot(
        "clusters:\n  - {name: a, endpoints: [{address: 127.0.0.1:1, weight: 3}, \"[::ffff:127.0.0.2]:2\"], health_checks: [{tcp: {send: 50494e47, receive: [\"00\"]}}], lb_policy: LEAST_REQUEST}\n  - {name: b, type: strict_dns, endpoints: [shop.internal:80, \"[::1]:81\"], health_checks: [{http: {path: /}}]}\n",
    );
    let endpoints = snapshot.clusters["a"].endpoints.load();
    let endpoints: Vec<_> =
        endpoints.all().iter().map(|member| (member.endpoint.address.to_string(), member.weight)).collect();
    assert_eq!(endpoints, [("127.0.0.1:1".to_owned(), 3), ("127.0.0.2:2".to_owned(), 1)]);
    let kind = &snapshot.clusters["a"].health_checks[0].kind;
    assert_eq!(*kind, HealthCheckKind::Tcp { send: Some(b"PING".to_vec()), receive: vec![vec![0]] });
    match &snapshot.clusters["b"].discovery {
        Discovery::StrictDns { names, .. } => {
            let names: Vec<_> = names.iter().map(|name| (name.host.as_str(), name.port)).collect();
            assert_eq!(names, [("shop.internal", 80), ("::1", 81)]);
        }
        other => panic!("{other:?}"),
    }
    match &snapshot.clusters["b"].health_checks[0].kind {
        HealthCheckKind::Http { expected_statuses, .. } => assert_eq!(*expected_statuses, [(200, 201)]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_table_within_a_listener_is_named_after_it_and_known() {
    let text = "listeners:
  - name: web
    address: 127.0.0.1:80
    filter_chains:
      - {name: first, match: {destination_port: 1}, http: {route_config: {virtual_hosts: [{name: h, domains: [\"*\"]}]}}}
    default_filter_chain: {http: {route_config: {virtual_hosts: [{name: h, domains: [\"*\"]}]}, upgrades: [Foo]}}
";
    let loaded = check(text).unwrap_or_else(|errors| panic!("{errors}"));
    let configs = &loaded.snapshot.route_configs;
    assert_eq!(configs.keys().map(|name| &**name).collect::<Vec<_>>(), ["web", "web/default"]);
    let path = &configs["web/default"].field_path;
    assert_eq!(path, "listeners[0].default_filter_chain.http.route_config");
    let position = loaded.positions.of(&format!("{path}.virtual_hosts[0]")).expect("its place");
    assert_eq!((position.line, position.column), (6, 66));
}

#[test]
fn a_reload_keeps_statistics_and_endpoints() {
    let runtime = crate::snapshot::Runtime::default();
    let source = crate::config::Source::Inline {
        name: "f".into(),
        text: "clusters: [{name: c, endpoints: [127.0.0.1:1]}]".into(),
    };
    let load = |version| crate::config::load(&source, &runtime, version).expect("loads").snapshot;
    let (first, second) = (load(1), load(2));
    assert_eq!(second.origin.version, 2);
    assert!(std::sync::Arc::ptr_eq(&first.clusters["c"].stats, &second.clusters["c"].stats));
    let endpoint = |snapshot: &Snapshot| snapshot.clusters["c"].endpoints.load().all()[0].endpoint.clone();
    assert!(std::sync::Arc::ptr_eq(&endpoint(&first), &endpoint(&second)));
}

#[test]
fn weights_resolve() {
    let route = row("{match: {prefix: /}, route: {weighted_clusters: [{name: c, weight: 9}, {name: c, weight: 1}]}}");
    let Action::Route(action) = route.action else { panic!("a route") };
    let ClusterSpecifier::Weighted(weighted) = action.cluster else { panic!("weights") };
    assert_eq!(weighted.entries().iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), [9, 1]);
}

#[test]
fn hash_policies_resolve_in_their_short_and_their_long_forms() {
    use crate::cluster::ConsistentHash;
    use crate::http::route::hash_policy::{HashCookie, HashOn};
    let action = forwarded(
        "hash_policy: [{header: X-User}, {header: {header_name: ':path'}}, {cookie: {name: Id, ttl: 90s, path: /}, terminal: true}, \
         {cookie: id}, {query_parameter: q}, {query_parameter: {name: Q}}, {connection_properties: {source_ip: true}}]",
    );
    let cookie =
        |name: &str, ttl, path: &str| HashOn::Cookie(HashCookie { name: name.to_owned(), ttl, path: path.to_owned() });
    let expected = [
        (HashOn::Header("x-user".to_owned()), false),
        (HashOn::Header(":path".to_owned()), false),
        (cookie("Id", Some(Duration::from_secs(90)), "/"), true),
        (cookie("id", None, ""), false),
        (HashOn::QueryParameter("q".to_owned()), false),
        (HashOn::QueryParameter("Q".to_owned()), false),
        (HashOn::SourceIp, false),
    ];
    let found: Vec<_> = action.hash_policy.0.into_iter().map(|rule| (rule.on, rule.terminal)).collect();
    assert_eq!(found, expected);

    let snapshot = snapshot(
        "clusters:\n  - {name: a, lb_policy: ring_hash, endpoints: [127.0.0.1:1]}\n  - {name: b, lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 5, maximum_ring_size: 9}, endpoints: [127.0.0.1:1]}\n  - {name: c, lb_policy: maglev, endpoints: [127.0.0.1:1]}\n  - {name: d, lb_policy: MAGLEV, maglev_lb_config: {table_size: 7}, endpoints: [127.0.0.1:1]}\n",
    );
    for (name, policy) in [
        ("a", ConsistentHash::Ring { minimum: 1024, maximum: 8_388_608 }),
        ("b", ConsistentHash::Ring { minimum: 5, maximum: 9 }),
        ("c", ConsistentHash::Maglev { table_size: 65_537 }),
        ("d", ConsistentHash::Maglev { table_size: 7 }),
    ] {
        assert_eq!(snapshot.clusters[name].lb_policy, LbPolicy::Consistent(policy), "{name}");
        assert!(snapshot.clusters[name].endpoints.load().table().is_some());
    }
}
