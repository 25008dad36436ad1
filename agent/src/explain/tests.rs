//! Answers, from configurations as people write them.

use serde_json::{Value, json};

use super::*;
use crate::config::{Source, load};
use crate::listener::TrafficDirection;
use crate::snapshot::Runtime;
use crate::workload::Workload;

const SHOP: &str = r#"
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
  - name: 0.0.0.0_8080
    address: 0.0.0.0:8080
    bind_to_port: false
    listener_filters: [tls_inspector, http_inspector]
    filter_chains:
      - match: {transport_protocol: tls, server_names: [api.example.com]}
        tcp_proxy: {cluster: passthrough}
      - match: {application_protocols: [http/1.1, h2c]}
        http: {route_config: "8080"}
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
  - name: closed
    address: 10.0.0.9:9000
    bind_to_port: false
    filter_chains:
      - match: {prefix_ranges: [10.9.9.9/32]}
        tcp_proxy: {cluster: passthrough}
  - name: web
    address: 10.0.0.9:80
    bind_to_port: false
    listener_filters: [tls_inspector]
    default_filter_chain: {http: {route_config: web}}
route_configs:
  - name: "8080"
    virtual_hosts:
      - name: shop
        domains: ["*"]
        routes:
          - {name: canary, match: {prefix: /, headers: [{name: x-canary, exact: "true"}]}, route: {cluster: checkout-v2}}
          - {match: {prefix: /checkout, methods: [GET, POST]}, route: {cluster: checkout-v1}}
          - {match: {prefix: /}, route: {cluster: default-svc}}
  - name: web
    virtual_hosts:
      - name: web
        domains: [web.example, "10.0.0.9"]
        request_headers_to_add: [{name: x-added, value: "1"}]
        routes:
          - {match: {prefix: /old/}, redirect: {host_redirect: new.example, response_code: 302}}
          - {match: {path: /hello}, direct_response: {status: 200, body: hi}}
          - {match: {prefix: /rewrite/}, route: {cluster: checkout-v1, prefix_rewrite: /, host_rewrite_literal: h}}
          - {match: {prefix: /split}, route: {weighted_clusters: [{name: checkout-v1, weight: 9}, {name: checkout-v2, weight: 1}]}}
          - {match: {prefix: /by-header}, route: {cluster_header: x-cluster}}
          - {match: {prefix: /empty}, route: {cluster: empty}}
clusters:
  - {name: passthrough, type: original_dst}
  - {name: checkout-v1, type: static, endpoints: [127.0.0.1:9001, 127.0.0.1:9002]}
  - {name: checkout-v2, type: static, endpoints: [127.0.0.1:9003]}
  - {name: default-svc, type: static, endpoints: [127.0.0.1:9004]}
  - {name: empty, type: static, endpoints: []}
"#;

fn snapshot() -> Snapshot {
    let source = Source::Inline { name: "shop.yaml".to_owned(), text: SHOP.to_owned() };
    load(&source, &Runtime::default(), 1).unwrap_or_else(|errors| panic!("{errors}")).snapshot
}

fn ask(url: &str) -> Question {
    Question::new(url.parse().expect(url))
}

fn to(url: &str, dst: &str) -> Question {
    Question { dst: Some(dst.parse().expect(dst)), ..ask(url) }
}

fn with(mut question: Question, name: &'static str, value: &'static str) -> Question {
    question.headers.append(name, http::HeaderValue::from_static(value));
    question
}

/// The answer's JSON has the `expected` fields.
#[track_caller]
fn check(question: &Question, expected: Value) {
    let answer = explain(&snapshot(), question);
    let json = serde_json::to_value(&answer).expect("json");
    for (field, value) in expected.as_object().expect("object") {
        assert_eq!(&json[field], value, "{field} of {}", answer.text());
    }
}

#[test]
fn the_json_has_every_field_and_null_for_what_does_not_apply() {
    let question = Question { method: http::Method::PUT, ..ask("http://10.0.0.1:8080/checkout/cart") };
    let json = serde_json::to_value(explain(&snapshot(), &question)).expect("json");
    let expected = json!({
        "listener": "0.0.0.0_8080", "filter_chain": "1", "virtual_host": "shop",
        "routes": [
            {"index": 0, "name": "canary", "matched": false, "reason": "header x-canary is absent, wants \"true\""},
            {"index": 1, "name": null, "matched": false, "reason": "method PUT is not one of GET, POST"},
            {"index": 2, "name": null, "matched": true, "reason": "path /checkout/cart begins with /"},
        ],
        "route": 2, "action": "route", "cluster": "default-svc", "endpoint": "127.0.0.1:9004",
        "status": null, "location": null,
        "upstream": {"method": "PUT", "path": "/checkout/cart", "host": "10.0.0.1:8080", "headers": json["upstream"]["headers"]},
        "response_flags": null, "direction": "outbound", "source_pod": null, "pod": null,
    });
    assert_eq!(json, expected);
    let fields: Vec<_> = json.as_object().expect("object").keys().cloned().collect();
    assert_eq!(fields[..5], ["listener", "filter_chain", "virtual_host", "routes", "route"]);
}

#[test]
fn rows_below_the_match_are_not_reached() {
    let question = with(ask("http://10.0.0.1:8080/checkout"), "x-canary", "true");
    let answer = explain(&snapshot(), &question);
    assert_eq!((answer.route, answer.endpoint.as_deref()), (Some(0), Some("127.0.0.1:9003")));
    assert!(answer.routes[1..].iter().all(|row| !row.matched && row.reason == "not reached"));
}

#[test]
fn a_connection_goes_by_what_the_listener_filters_can_see() {
    let sni = |name: &str| Question { sni: Some(name.to_owned()), ..ask("https://10.0.0.1:8080/") };
    let offers = |question: Question, offer: &str| Question { alpn: vec![offer.to_owned()], ..question };
    let tcp = |chain: &str| {
        json!({"filter_chain": chain, "action": "none", "cluster": "passthrough", "routes": [],
        "endpoint": "10.0.0.1:8080", "status": null, "response_flags": null})
    };
    check(&sni("API.example.com"), tcp("0"));
    check(&sni("other.example.com"), tcp("default"));
    check(&offers(ask("http://10.0.0.1:8080/checkout"), "h2c"), json!({"filter_chain": "1", "route": 1}));
    // ALPN says http/1.1, the bytes are TLS: the agent sees no request.
    check(
        &offers(sni("other.example.com"), "http/1.1"),
        json!({"filter_chain": "1", "action": "none", "routes": [], "response_flags": "DPE"}),
    );
}

#[test]
fn the_destination_finds_the_listener() {
    let passthrough = json!({"listener": "virtualOutbound", "filter_chain": "default", "endpoint": "10.1.1.1:81"});
    check(&ask("http://10.1.1.1:81/"), passthrough);
    check(&ask("http://10.0.0.9:8080/"), json!({"listener": "0.0.0.0_8080"}));
    check(&ask("http://shop.example:8080/"), json!({"listener": "0.0.0.0_8080", "route": 2}));
    check(&ask("http://web.example/hello"), json!({"listener": "web", "virtual_host": "web"}));
    check(
        &ask("http://unknown.example:4444/"),
        json!({"listener": "virtualOutbound", "endpoint": null, "cluster": "passthrough"}),
    );
    check(&to("http://shop.example/", "10.7.7.7:8080"), json!({"listener": "0.0.0.0_8080"}));
    check(&to("/checkout", "10.7.7.7:8080"), json!({"route": 1, "virtual_host": "shop"}));
    check(
        &ask("http://10.0.0.9:9000/"),
        json!({"listener": "closed", "filter_chain": null, "response_flags": "NR", "action": "none", "cluster": null}),
    );
    check(&ask("http://127.0.0.1:15001/"), json!({"cluster": "passthrough", "endpoint": null, "response_flags": "UH"}));
}

#[test]
fn answers_of_the_agents_own_have_a_status() {
    let at = |path: &str| with(to(path, "10.0.0.9:80"), "host", "web.example");
    check(
        &at("/old/x?y"),
        json!({"action": "redirect", "status": 302, "location": "http://new.example/old/x?y", "cluster": null}),
    );
    check(&at("/hello"), json!({"action": "direct_response", "status": 200, "route": 1, "upstream": null}));
    check(&at("/none"), json!({"action": "none", "status": 404, "response_flags": "NR", "route": null}));
    check(
        &with(to("/hello", "10.0.0.9:80"), "host", "other.example"),
        json!({"virtual_host": null, "routes": [], "status": 404, "response_flags": "NR"}),
    );
    check(&at("/by-header"), json!({"action": "route", "cluster": null, "status": 503, "response_flags": "NC"}));
    check(&with(at("/by-header"), "x-cluster", "checkout-v2"), json!({"cluster": "checkout-v2", "status": null}));
    check(&at("/empty"), json!({"cluster": "empty", "endpoint": null, "status": 503, "response_flags": "UH"}));
    check(&Question { tls: true, ..at("/hello") }, json!({"action": "none", "status": null, "response_flags": "DPE"}));
}

#[test]
fn the_request_is_shown_as_it_would_be_sent() {
    let question = with(with(to("/rewrite/x?q", "10.0.0.9:80"), "host", "web.example"), "connection", "keep-alive");
    let upstream = explain(&snapshot(), &question).upstream.expect("upstream");
    assert_eq!((upstream.path.as_str(), upstream.host.as_str()), ("/x?q", "h"));
    for (name, value) in [("x-added", "1"), ("x-envoy-original-path", "/rewrite/x?q"), ("x-forwarded-proto", "http")] {
        assert_eq!(upstream.headers[name], [value], "{name}");
    }
    assert!(!upstream.headers.contains_key("connection") && !upstream.headers.contains_key("host"));
}

#[test]
fn the_random_number_draws_among_weights() {
    for (random, cluster) in [(0, "checkout-v1"), (8, "checkout-v1"), (9, "checkout-v2"), (10, "checkout-v1")] {
        let question = with(to("/split", "10.0.0.9:80"), "host", "web.example");
        check(&Question { random, ..question }, json!({"cluster": cluster}));
    }
}

#[test]
fn the_text_tells_the_whole_way() {
    let text = explain(&snapshot(), &ask("http://10.0.0.1:8080/checkout/cart")).text();
    for line in [
        "connection    to 10.0.0.1:8080 from 127.0.0.1, plain",
        "listener      0.0.0.0_8080 (0.0.0.0:8080), found by the wildcard address with this port",
        "                tls_inspector, http_inspector: raw_buffer, http/1.1",
        "filter chain  1 (http)",
        "                not 0 (tcp_proxy): server_names: wants api.example.com, the connection has none",
        "virtual host  shop, by domain *",
        "rows             0  canary: header x-canary is absent, wants \"true\"",
        "              => 1  path /checkout/cart begins with /checkout, method is GET",
        "                 2  not reached",
        "action        route to cluster checkout-v1",
        "endpoint      127.0.0.1:9001, the first of 2 in turn",
        "sent on       GET /checkout/cart",
    ] {
        assert!(text.lines().any(|own| own == line), "{line:?} in\n{text}");
    }
    assert!(text.lines().all(|line| line.trim_end() == line));
}

const PODS: &str = r#"
intercept:
  pods:
    policies:
      - {source_pod: {name: "batch-*"}, outbound: {include: [{ports: [5432]}]}}
  inbound: {include: [{cidr: 10.0.0.0/8, ports: [8080]}]}
listeners:
  - {name: out, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {tcp_proxy: {cluster: passthrough}}}
  - name: in
    address: 127.0.0.1:15006
    traffic_direction: inbound
    filter_chains:
      - match: {destination_port: 8080}
        http:
          route_config:
            virtual_hosts:
              - name: app
                domains: ["*"]
                routes:
                  - {match: {prefix: /, source_pod: {namespace: shop, name: "web-*", labels: {app: web}}}, route: {cluster: passthrough}}
                  - {match: {prefix: /}, direct_response: {status: 403}}
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
  - {name: out-8080, address: 0.0.0.0:8080, bind_to_port: false, default_filter_chain: {tcp_proxy: {cluster: passthrough}}}
clusters: [{name: passthrough, type: original_dst}]
"#;

fn answer_of(file: &str, question: &Question) -> Explanation {
    let source = Source::Inline { name: "pods.yaml".to_owned(), text: file.to_owned() };
    let loaded = load(&source, &Runtime::default(), 1).unwrap_or_else(|errors| panic!("{errors}"));
    explain(&loaded.snapshot, question)
}

fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Option<Workload> {
    let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Some(Workload { namespace: namespace.into(), name: name.into(), labels, ..Workload::default() })
}

fn arriving(url: &str, source_pod: Option<Workload>) -> Question {
    let src = Some("10.42.0.5:40000".parse().expect("address"));
    Question { direction: TrafficDirection::Inbound, src, source_pod, ..ask(url) }
}

#[test]
fn what_arrives_is_served_by_the_inbound_listener_alone_and_rows_see_the_pod() {
    let web = [("app", "web")];
    for (source, row, reason) in [
        (
            pod("shop", "web-1", &web),
            0,
            "path / begins with /, it comes from shop/web-1, which is pod shop/web-* with app=web",
        ),
        (pod("bank", "web-1", &web), 1, "source pod bank/web-1: its namespace is bank, wants shop"),
        (pod("shop", "api-1", &web), 1, "source pod shop/api-1: its name is api-1, wants web-*"),
        (pod("shop", "web-1", &[("app", "db")]), 1, "source pod shop/web-1: its label app is \"db\", wants \"web\""),
        (pod("shop", "web-1", &[]), 1, "source pod shop/web-1: its label app is absent, wants \"web\""),
        (None, 1, "the source pod is not known, wants pod shop/web-* with app=web"),
    ] {
        let name = source.as_ref().map(ToString::to_string);
        let answer = answer_of(PODS, &arriving("http://10.42.0.9:8080/", source));
        assert_eq!((answer.listener.as_deref(), answer.route), (Some("in"), Some(row)), "{}", answer.text());
        assert_eq!((answer.routes[0].reason.as_str(), answer.source_pod), (reason, name));
        assert_eq!(answer.direction, "inbound");
    }
    let other = answer_of(PODS, &arriving("http://10.42.0.9:5432/", None));
    assert_eq!((other.listener.as_deref(), other.filter_chain.as_deref()), (Some("in"), Some("default")));
    assert_eq!(other.endpoint.as_deref(), Some("10.42.0.9:5432"), "the application itself");
}

#[test]
fn it_is_said_why_the_kernel_leaves_a_connection_alone() {
    let out = |url: &str, source_pod| Question { source_pod, ..ask(url) };
    for (question, expected) in [
        (out("http://10.0.0.1:80/", None), Some("intercept.host is false, and it comes from no pod")),
        (out("http://10.0.0.1:80/", pod("shop", "web-1", &[("waylay.io/inject", "true")])), None),
        (
            out("http://10.0.0.1:80/", pod("shop", "batch-1", &[])),
            Some("intercept.pods.policies[0] does not include it"),
        ),
        (out("http://10.0.0.1:5432/", pod("shop", "batch-1", &[])), None),
        (arriving("http://10.42.0.9:8080/", None), None),
        (arriving("http://10.42.0.9:9090/", None), Some("intercept.inbound does not include it")),
        (
            Question { src: Some("192.0.2.1:1".parse().expect("address")), ..arriving("http://10.42.0.9:8080/", None) },
            Some("intercept.inbound does not include it"),
        ),
    ] {
        let text = answer_of(PODS, &question).text();
        let found = text.lines().find_map(|line| line.split_once("the kernel leaves it alone: ")).map(|(_, why)| why);
        assert_eq!(found.is_some(), expected.is_some(), "{text}");
        assert!(found.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{text}");
    }
    let outside = answer_of(PODS, &out("http://10.0.0.1:80/", pod("shop", "web-1", &[]))).text();
    assert!(outside.contains("intercept.pods.select does not select the pod by these labels"), "{outside}");
    let nobody = answer_of(SHOP, &arriving("http://10.42.0.9:8080/", None)).text();
    assert!(nobody.contains("none: no bound listener has traffic_direction inbound"), "{nobody}");
}

fn enrolled_pod(annotations: &[(&str, &str)]) -> Workload {
    let labels = [("waylay.io/inject", "true")];
    let pairs = annotations.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let found = pod("shop", "web-1", &labels).expect("a pod");
    Workload { annotations: pairs.collect(), pid: Some(1), ..found }
}

#[track_caller]
fn check_pod(question: Question, pod: Workload, expected: Value) -> Explanation {
    let node = vec!["192.0.2.1".parse().expect("address"), "10.42.0.1".parse().expect("address")];
    let answer = answer_of(PODS, &Question { pod: Some(pod), node, ..question });
    let found = serde_json::to_value(&answer.pod).expect("JSON");
    for (field, value) in expected.as_object().expect("an object") {
        assert_eq!(&found[field], value, "{field} of {found:#}\n{}", answer.text());
    }
    answer
}

#[test]
fn a_pod_is_enrolled_by_the_rows_that_are_named_or_it_is_said_why_not() {
    let out = || ask("http://10.0.0.1:5432/");
    let answer = check_pod(
        out(),
        enrolled_pod(&[]),
        json!({"name": "shop/web-1", "enrolled": true, "reason": null, "select": 0, "policy": null, "taken": true}),
    );
    let text = answer.text();
    for line in ["pod           shop/web-1: enrolled", "kernel        takes it"] {
        assert!(text.lines().any(|found| found.split_whitespace().eq(line.split_whitespace())), "{line}\n{text}");
    }
    assert!(text.contains("not intercept.pods.policies[0]: its name is web-1, wants batch-*"), "{text}");
    let batch = Workload { name: "batch-1".into(), ..enrolled_pod(&[]) };
    check_pod(out(), batch.clone(), json!({"enrolled": true, "policy": 0, "taken": true}));
    let reason = "intercept.pods.policies[0].outbound, with the pod's annotations, does not include it";
    check_pod(ask("http://10.0.0.1:80/"), batch, json!({"taken": false, "taken_reason": reason}));
    let unlabelled = Workload { labels: std::collections::BTreeMap::new(), ..enrolled_pod(&[]) };
    let reason = "no row of intercept.pods.select matches it";
    check_pod(out(), unlabelled, json!({"enrolled": false, "reason": reason, "select": null, "taken": false}));
    let refused = enrolled_pod(&[("waylay.io/inject", "false")]);
    check_pod(out(), refused, json!({"enrolled": false, "reason": "its annotation waylay.io/inject is \"false\""}));
    let host_network = Workload { host_network: true, ..enrolled_pod(&[]) };
    check_pod(out(), host_network, json!({"enrolled": false}));
    let named = Question { dst: None, ..ask("http://db.example:5432/") };
    check_pod(named, enrolled_pod(&[]), json!({"enrolled": true, "taken": null}));
}

#[test]
fn what_the_kernel_takes_of_a_pod_follows_from_its_rules_and_the_agents_own() {
    let out = |dst: &str| ask(&format!("http://{dst}/"));
    let from = |src: &str, url: &str| Question { src: Some(src.parse().expect("address")), ..arriving(url, None) };
    let own = "port 15006 is one of the agent's own";
    let loopback = "what a pod says to itself by way of loopback is its own matter, unless a rule's cidr names it";
    let not_included = "intercept.inbound, with the pod's annotations, does not include it";
    let excluded = "intercept.outbound, or an annotation of the pod, excludes it";
    let node = "10.42.0.1 is an address of this machine, and intercept.inbound.from_node is pass";
    let off = "there is no intercept.inbound, or the pod's annotations say that nothing that arrives is taken";
    let any_port: &[_] = &[("waylay.io/include-inbound-ports", "1-65535")];
    for (question, annotations, reason) in [
        (out("10.0.0.1:5432"), &[][..], None),
        (out("10.0.0.1:5432"), &[("waylay.io/exclude-outbound-ports", "5000-6000")], Some(excluded)),
        (out("127.0.0.1:5432"), &[], Some(loopback)),
        (from("10.42.0.5:4000", "http://10.42.0.9:8080/"), &[], None),
        (from("10.42.0.5:4000", "http://10.42.0.9:9090/"), &[], Some(not_included)),
        (from("192.0.2.9:4000", "http://10.42.0.9:8080/"), &[], Some(not_included)),
        (from("10.42.0.1:4000", "http://10.42.0.9:8080/"), &[], Some(node)),
        (from("10.42.0.5:4000", "http://10.42.0.9:9090/"), any_port, None),
        (from("10.42.0.5:4000", "http://10.42.0.9:15006/"), any_port, Some(own)),
        (from("10.42.0.5:4000", "http://10.42.0.9:8080/"), &[("waylay.io/inbound", "off")], Some(off)),
    ] {
        let expected = json!({"enrolled": true, "taken": reason.is_none(), "taken_reason": reason});
        let answer = check_pod(question, enrolled_pod(annotations), expected);
        assert!(answer.listener.is_some(), "the way is told in any case");
    }
}

/// The README's example and what it says of it; whoever changes one is told of the other.
#[test]
fn the_readme_shows_what_is_printed() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(file).expect("README.md");
    let (_, text) = readme.split_once("```yaml\n").expect("the configuration");
    let (configuration, rest) = text.split_once("```\n").expect("its end");
    let source = Source::Inline { name: "shop.yaml".to_owned(), text: configuration.to_owned() };
    let loaded = load(&source, &Runtime::default(), 1).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.warnings.len(), 0, "{:?}", loaded.warnings);
    let printed = explain(&loaded.snapshot, &to("http://shop/checkout/cart", "10.0.0.7:8080")).text();
    assert!(rest.contains(&format!("http://shop/checkout/cart\n{printed}\n$ ")), "README.md should show:\n{printed}");
}

#[test]
fn the_hash_and_where_it_leads_are_told() {
    let file = "
listeners:
  - {name: h, address: 127.0.0.1:1, default_filter_chain: {http: {route_config: r}}}
  - {name: t, address: 127.0.0.1:2, default_filter_chain: {tcp_proxy: {cluster: ring, hash_policy: [{source_ip: {}}]}}}
route_configs:
  - name: r
    virtual_hosts:
      - name: h
        domains: ['*']
        routes:
          - match: {prefix: /}
            route: {cluster: ring, hash_policy: [{header: x-user, terminal: true}, {cookie: {name: id, ttl: 0s}}]}
clusters: [{name: ring, lb_policy: maglev, endpoints: [127.0.0.1:9001, 127.0.0.1:9002, 127.0.0.1:9003]}]
";
    let direct = |url: &str, dst: &str| Question { src: "127.0.0.9:4000".parse().ok(), ..to(url, dst) };
    let by_header = answer_of(file, &with(direct("http://x/", "127.0.0.1:1"), "x-user", "ann"));
    let hash = crate::cluster::balance::hash::xx_hash(b"ann");
    assert_eq!(by_header.hash, Some(format!("{hash:016x}")));
    assert!(
        by_header.text().contains(&format!("hash          {hash:016x}, of header x-user, cookie id\n")),
        "{}",
        by_header.text()
    );
    assert!(by_header.text().contains(", where the hash leads among 3\n"), "{}", by_header.text());
    assert!(!by_header.text().contains("set-cookie"));

    let by_cookie = answer_of(file, &direct("http://x/", "127.0.0.1:1"));
    assert!(by_cookie.text().contains("made for the response: set-cookie: id="), "{}", by_cookie.text());
    assert!(by_cookie.hash.is_some() && by_cookie.hash != by_header.hash);

    let of_connection = answer_of(file, &direct("http://x/", "127.0.0.1:2"));
    let expected = crate::cluster::balance::hash::xx_hash(b"127.0.0.9");
    assert_eq!(of_connection.hash, Some(format!("{expected:016x}")));
    let pod = Workload { ips: vec!["10.4.0.7".parse().expect("ip")], ..Workload::default() };
    let in_pod = Question { source_pod: Some(pod), ..direct("http://x/", "127.0.0.1:2") };
    let expected = crate::cluster::balance::hash::xx_hash(b"10.4.0.7");
    assert_eq!(answer_of(file, &in_pod).hash, Some(format!("{expected:016x}")), "the pod's own address");
}
