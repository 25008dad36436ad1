//! Which listeners the kernel dispatches, as the configuration's errors and `explain` say it, and what is put into its
//! tables.

use super::*;
use crate::config::{Loaded, Source, load};
use crate::explain::{Explanation, Question, explain};
use crate::snapshot::Runtime;

fn loaded(listener: &str, clusters: &str) -> Result<Loaded, String> {
    let text = format!(
        "listeners:
  - {{name: all, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}
  - {{name: l, address: 0.0.0.0:80, bind_to_port: false, {listener}}}
  - {{name: exact, address: 127.9.9.9:80, bind_to_port: false, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}
  - {{name: other, address: 127.9.9.9:81, bind_to_port: false, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}
route_configs: [{{name: r}}]
clusters:
  - {{name: c, endpoints: [127.0.0.1:1, 127.0.0.1:2]}}
{clusters}"
    );
    let source = Source::Inline { name: "f.yaml".to_owned(), text };
    load(&source, &Runtime::default(), 1).map_err(|errors| errors.to_string())
}

#[test]
fn a_listener_that_the_kernel_cannot_dispatch_is_refused_with_all_that_stands_in_the_way() {
    let chain = "default_filter_chain: {tcp_proxy: {cluster: c}}";
    for (listener, clusters, expected) in [
        (format!("listener_filters: [tls_inspector], {chain}"), "", "`listener_filters` look at the first bytes"),
        (
            "filter_chains: [{match: {destination_port: 80}, tcp_proxy: {cluster: c}}]".to_owned(),
            "",
            "which filter chain serves a connection depends on the connection: one chain without `match` is needed",
        ),
        (
            "default_filter_chain: {http: {route_config: r}}".to_owned(),
            "",
            "a filter chain serves requests (`http`): only bytes (`tcp_proxy`) can do without the agent",
        ),
        (
            "default_filter_chain: {tcp_proxy: {cluster: c, max_connect_attempts: 2}}".to_owned(),
            "",
            "`max_connect_attempts` is above 1: the kernel tries one endpoint",
        ),
        (
            "default_filter_chain: {tcp_proxy: {cluster: c, idle_timeout: 5s}}".to_owned(),
            "",
            "`idle_timeout` is given: the kernel closes no connection",
        ),
        (
            "default_filter_chain: {tcp_proxy: {cluster: d}}".to_owned(),
            "  - {name: d, lb_policy: least_request, endpoints: [127.0.0.1:3]}\n",
            "`lb_policy` of cluster 'd' is least_request: the kernel does not compare how busy endpoints are: use \
             another",
        ),
        (
            "default_filter_chain: {tcp_proxy: {weighted_clusters: [{name: c, weight: 1}, {name: d, weight: 1}], \
             hash_policy: [{source_ip: {}}]}}"
                .to_owned(),
            "  - {name: d, lb_policy: maglev, endpoints: [127.0.0.1:3]}\n",
            "`hash_policy` stands beside `weighted_clusters`: the kernel draws once, and here the cluster is drawn before the \
             endpoint",
        ),
        (
            "default_filter_chain: {tcp_proxy: {weighted_clusters: [{name: c, weight: 1}, {name: d, weight: 1}]}}"
                .to_owned(),
            "  - {name: d, circuit_breakers: {max_connections: 9}, endpoints: [127.0.0.1:3]}\n",
            "`circuit_breakers.max_connections` of cluster 'd' is given: the kernel refuses no connection",
        ),
        (
            "default_filter_chain: {tcp_proxy: {cluster: d}}".to_owned(),
            "  - {name: d, connect_timeout: 1s, endpoints: [127.0.0.1:3]}\n",
            "`connect_timeout` of cluster 'd' is given: how long to wait is the application's own choice there",
        ),
    ] {
        let asked = loaded(&format!("{listener}, dispatch: kernel"), clusters).expect_err(&listener);
        assert!(asked.starts_with("f.yaml:3:"), "{asked}");
        let message = format!("listeners[1].dispatch: the kernel cannot dispatch this listener: {expected}");
        assert!(asked.ends_with(&message), "{asked}");
        assert!(loaded(&listener, clusters).is_ok(), "the agent can: {listener}");
    }
    // A socket of its own, and what arrives.
    let text = "listeners: [{name: l, address: 127.0.0.1:80, dispatch: kernel, default_filter_chain: {tcp_proxy: \
                {cluster: c}}}]\nclusters: [{name: c, type: original_dst}]\n";
    let source = Source::Inline { name: "f.yaml".to_owned(), text: text.to_owned() };
    let error = load(&source, &Runtime::default(), 1).expect_err("a socket").to_string();
    assert!(error.contains("it has a socket"), "{error}");
}

const TO_C: &str = "default_filter_chain: {tcp_proxy: {cluster: c}}";

fn answer(listener: &str, clusters: &str, dst: &str) -> Explanation {
    let loaded = loaded(listener, clusters).expect("valid");
    let question = Question::new("http://x/".parse().expect("a URL"));
    explain(&loaded.snapshot, &Question { dst: dst.parse().ok(), ..question })
}

#[test]
fn it_is_said_who_sends_a_connection_on() {
    let kernel = format!("dispatch: kernel, {TO_C}");
    let unusable = "  - {name: d, endpoints: []}\n";
    let empty = "dispatch: kernel, default_filter_chain: {tcp_proxy: {cluster: d}}";
    for (listener, clusters, dst, dispatch, says) in [
        (&*kernel, "", "10.0.0.1:80", Some("kernel"), "dispatched in the kernel to 127.0.0.1:1"),
        (TO_C, "", "10.0.0.1:80", None, "The kernel could: with `dispatch: kernel`"),
        (empty, unusable, "10.0.0.1:80", None, "by the agent: the kernel has no endpoint to choose from"),
        (&*kernel, "", "127.9.9.9:80", None, "The kernel could"),
    ] {
        let answer = answer(listener, clusters, dst);
        assert_eq!(answer.dispatch, dispatch, "{}", answer.text());
        assert!(answer.text().contains(says), "{}", answer.text());
    }
    // What no virtual listener serves is not asked after.
    assert!(!answer(&kernel, "", "10.0.0.1:99").text().contains("dispatch"));
}

#[test]
fn the_kernel_knows_what_it_dispatches_and_what_a_wildcard_must_leave_to_the_agent() {
    let kernel = loaded(&format!("dispatch: kernel, {TO_C}"), "").expect("valid");
    let names = |snapshot: &Snapshot| -> Vec<String> {
        wanted(snapshot).into_iter().map(|(listener, address)| format!("{} {address}", listener.name)).collect()
    };
    assert_eq!(names(&kernel.snapshot), ["l 0.0.0.0:80", "exact 127.9.9.9:80"]);
    assert!(names(&loaded(TO_C, "").expect("valid").snapshot).is_empty());
}

#[test]
fn who_is_bound_to_an_address_is_told_its_endpoint_and_who_is_not_that_it_is_always_the_same() {
    let listener = "dispatch: kernel, default_filter_chain: {tcp_proxy: {cluster: d, hash_policy: [{source_ip: {}}]}}";
    let cluster = "  - {name: d, lb_policy: ring_hash, endpoints: [127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3]}\n";
    let loaded = loaded(listener, cluster).expect("valid");
    let ask = |src: Option<&str>| {
        let question = Question::new("http://x/".parse().expect("a URL"));
        let src = src.and_then(|src| src.parse().ok());
        explain(&loaded.snapshot, &Question { dst: "10.0.0.1:80".parse().ok(), src, ..question })
    };
    let unbound = ask(None);
    assert_eq!((unbound.dispatch, unbound.endpoint.as_ref()), (Some("kernel"), None));
    assert!(unbound.text().contains("always the same for one network namespace"), "{}", unbound.text());
    let set = loaded.snapshot.clusters["d"].endpoints.load_full();
    for src in ["10.0.0.7:0", "[fd00::1]:0"] {
        let expected = sticky::endpoint(&set, src.parse::<SocketAddr>().expect("address").ip()).expect("an endpoint");
        let bound = ask(Some(src));
        assert_eq!(bound.endpoint, Some(expected.address.to_string()), "{}", bound.text());
        let said = format!("dispatched in the kernel to {}", expected.address);
        assert!(bound.text().contains(&said), "{}", bound.text());
    }
}
