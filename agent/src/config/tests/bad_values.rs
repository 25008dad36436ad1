//! Files that are wrong in a single value, or no configuration at all.

use super::{check, check_errors, warnings};
use crate::config::{Source, load};
use crate::snapshot::Runtime;

#[test]
fn a_file_that_is_none_says_why() {
    let load = |source| load(&source, &Runtime::default(), 1).map(|_| ()).map_err(|errors| errors.to_string());
    assert_eq!(
        load(Source::File("/nowhere/waylay.yaml".into())),
        Err("/nowhere/waylay.yaml:1:1: cannot open the file: No such file or directory (os error 2)".to_owned())
    );
    let large = "#".repeat(16 * 1024 * 1024 + 1);
    assert_eq!(
        check(&large).map(|_| ()),
        Err("f.yaml:1:1: the file has more than 16777216 bytes, the limit".to_owned())
    );
    check_errors(&[("clusters: [", &["1:11: this is no YAML: unclosed bracket '['"])]);
    check_errors(&[(
        "just text",
        &[
            "1:1: expected a mapping with the fields intercept, dns, listeners, route_configs, clusters, admin, access_log, drain_timeout; found `just text`",
        ],
    )]);
}

#[test]
fn an_empty_file_serves_nothing_and_says_so() {
    assert_eq!(warnings(""), ["1:1: listeners: there are no listeners: this configuration serves nothing"]);
    assert_eq!(warnings("clusters:\nlisteners:\n").len(), 1, "an empty field is an absent one");
}

#[test]
fn an_unknown_field_names_the_one_that_was_meant() {
    check_errors(&[
        ("listners: []", &["1:1: listners: unknown field `listners`: did you mean `listeners`?"]),
        (
            "clusters: [{nmae: a}]",
            // The name is missing too, but that is said already.
            &["1:13: clusters[0].nmae: unknown field `nmae`: did you mean `name`?"],
        ),
        (
            "clusters: [{name: a, colour: red}]",
            &[
                "1:22: clusters[0].colour: unknown field `colour`: cluster has name, type, lb_policy, ring_hash_lb_config, maglev_lb_config, connect_timeout, endpoints, protocol, health_checks, healthy_panic_threshold, circuit_breakers, idle_timeout, max_requests_per_connection, dns_refresh_rate, respect_dns_ttl, dns_lookup_family",
            ],
        ),
        (
            "clusters: [{name: a, load_assignment: {}}]",
            &[
                "1:22: clusters[0].load_assignment: unknown field `load_assignment`: list the endpoints directly: `endpoints: [IP:PORT, ...]`",
            ],
        ),
    ]);
}

#[test]
fn a_field_that_is_given_twice_is_refused() {
    check_errors(&[
        (
            "drain_timeout: 1s\ndrain_timeout: 2s\n",
            &["2:1: drain_timeout: duplicate field `drain_timeout`, first given at 1:1"],
        ),
        (
            "listeners:\n  - {name: a, address: 127.0.0.1:1, reuse_port: true, enable_reuse_port: false, default_filter_chain: {tcp_proxy: {cluster: c}}}\nclusters: [{name: c, type: original_dst}]\n",
            &[
                "2:55: listeners[0].enable_reuse_port: `enable_reuse_port` and `reuse_port` (given at 2:37) are two names of one field: keep one of them",
            ],
        ),
    ]);
}

#[test]
fn a_duration_needs_a_number_and_a_unit() {
    let wrong = "1:16: drain_timeout: expected a duration such as 5s, 0.25s, 250ms, 1m or 1h, found";
    check_errors(&[
        ("drain_timeout: 30", &[&format!("{wrong} `30`: a unit is missing, write 30s or 30ms")]),
        ("drain_timeout: -1s", &[&format!("{wrong} `-1s`")]),
        ("drain_timeout: 1.s", &[&format!("{wrong} `1.s`")]),
        ("drain_timeout: 5 s", &[&format!("{wrong} `5 s`")]),
        ("drain_timeout: 1d", &[&format!("{wrong} `1d`")]),
        ("drain_timeout: [1s]", &["1:16: drain_timeout: expected duration, found a list"]),
        (
            "drain_timeout: 99999999999999h",
            &["1:16: drain_timeout: `99999999999999h` is longer than a year, the longest duration there is"],
        ),
    ]);
    for (text, ms) in [("0s", 0), ("0.25s", 250), ("250ms", 250), ("1m", 60_000), ("1h", 3_600_000), ("\"5s\"", 5000)] {
        let loaded = check(&format!("drain_timeout: {text}")).expect(text);
        assert_eq!(loaded.snapshot.drain_timeout.as_millis(), ms, "{text}");
    }
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    check_errors(&[
        ("access_log: /dev/stdout", &["1:13: access_log: expected a list, found `/dev/stdout`: write [/dev/stdout]"]),
        (
            "access_log: {path: x}",
            &["1:13: access_log: expected a list, found a mapping: write a `-` before each element"],
        ),
        (
            "access_log: [{format: xml}]",
            &[
                "1:14: access_log[0].path: the field `path` is missing (expected text)",
                "1:23: access_log[0].format: expected one of `text`, `brief`, `json`, found `xml`",
            ],
        ),
        ("admin: {socket: [x]}", &["1:17: admin.socket: expected text, found a list"]),
        ("admin: {socket: \"\"}", &["1:17: admin.socket: a unix socket's path has 1 to 107 bytes, this has 0"]),
        (
            "admin: {readiness: 15021}",
            &["1:20: admin.readiness: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `15021` (or `off`)"],
        ),
        (
            "admin: {readiness: \"::1\"}",
            &[
                "1:20: admin.readiness: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `::1`: write an IPv6 address in brackets, and the port behind it (or `off`)",
            ],
        ),
        (
            "admin: {readiness: 127.0.0.1:15090}",
            &["1:20: admin.readiness: `prometheus` and `readiness` need addresses of their own"],
        ),
    ]);
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_file() {
    let text = "listners: []
drain_timeout: 5
listeners:
  - name: a
    address: 127.0.0.1:99999
    default_filter_chain: {tcp_proxy: {cluster: chekout}}
clusters:
  - {name: checkout, type: static, endpoints: [shop.internal:80]}
  - {name: checkout}
";
    check_errors(&[(
        text,
        &[
            "1:1: listners: unknown field `listners`: did you mean `listeners`?",
            "2:16: drain_timeout: expected a duration such as 5s, 0.25s, 250ms, 1m or 1h, found `5`: a unit is missing, write 5s or 5ms",
            "5:14: listeners[0].address: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `127.0.0.1:99999`: `99999` is no port, and `127.0.0.1` stands before it",
            "6:49: listeners[0].default_filter_chain.tcp_proxy.cluster: there is no cluster `chekout`: did you mean `checkout`?",
            "8:48: clusters[0].endpoints[0]: `shop.internal:80` is a name, and the endpoints of a static cluster are IP addresses: did you mean `type: strict_dns`?",
            "9:12: clusters[1].name: there is another cluster `checkout` before this one",
        ],
    )]);
}

#[test]
fn a_value_that_cannot_be_read_causes_no_further_problems() {
    check_errors(&[
        (
            // Which cluster it is cannot be known while a name is missing.
            "listeners: [{name: a, address: 127.0.0.1:1, default_filter_chain: {tcp_proxy: {cluster: c}}}]\nclusters: [{type: original_dst}]\n",
            &["2:12: clusters[0].name: the field `name` is missing (expected text)"],
        ),
        (
            "listeners: [{name: a, address: x, filter_chains: 5}, {name: b, address: y, default_filter_chain: {http: 5}}]",
            &[
                "1:32: listeners[0].address: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `x`",
                "1:50: listeners[0].filter_chains: expected a list, found `5`: write [5]",
                "1:73: listeners[1].address: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `y`",
                "1:105: listeners[1].default_filter_chain.http: expected a mapping with the fields route_config, stat_prefix, codec_type, idle_timeout, stream_idle_timeout, request_timeout, request_headers_timeout, accept_http_10, max_request_headers_kb, max_headers_count, upgrades, normalize_path, merge_slashes, use_remote_address, generate_request_id, server_header_transformation, server_name, strip_any_host_port; found `5`",
            ],
        ),
    ]);
}
