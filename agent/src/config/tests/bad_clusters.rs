//! Clusters that are refused, and `intercept`.

use super::{check_errors, warnings};

#[test]
fn clusters_that_cannot_be_are_refused() {
    check_errors(&[
        ("clusters: [{name: \"\"}]", &["1:19: clusters[0].name: a cluster needs a name"]),
        (
            "clusters: [{name: a, type: logical_dns}]",
            &["1:28: clusters[0].type: expected one of `static`, `strict_dns`, `original_dst`, found `logical_dns`"],
        ),
        (
            "clusters: [{name: a, type: strict_dsn, endpoints: [x:1]}]",
            &[
                "1:28: clusters[0].type: expected one of `static`, `strict_dns`, `original_dst`, found `strict_dsn`: did you mean `strict_dns`?",
            ],
        ),
        (
            "clusters: [{name: a, endpoints: [127.0.0.1, \"127.0.0.1:0\", {address: 127.0.0.1:1, weight: 129}]}]",
            &[
                "1:34: clusters[0].endpoints[0]: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `127.0.0.1`: the port is missing",
                "1:45: clusters[0].endpoints[1]: the port of `127.0.0.1:0` must be 1 to 65535",
                "1:91: clusters[0].endpoints[2].weight: must be 1 to 128, found 129",
            ],
        ),
        (
            "clusters: [{name: a, type: strict_dns, endpoints: [a..b:80, shop, \"::1\"], dns_refresh_rate: 0s}]",
            &[
                "1:52: clusters[0].endpoints[0]: expected HOST:PORT such as shop.internal:8080, found `a..b:80`: this is no host name",
                "1:61: clusters[0].endpoints[1]: expected HOST:PORT such as shop.internal:8080, found `shop`: the port is missing",
                "1:67: clusters[0].endpoints[2]: the port of `::1` is missing",
                "1:93: clusters[0].dns_refresh_rate: must be longer than 0s",
            ],
        ),
        (
            "clusters: [{name: a, type: original_dst, endpoints: [127.0.0.1:1], lb_policy: random, health_checks: [{tcp: {}}]}]",
            &[
                "1:53: clusters[0].endpoints: a cluster of type original_dst goes where the client wanted to go: it has no endpoints",
                "1:79: clusters[0].lb_policy: a cluster of type original_dst has nothing to choose from: leave `lb_policy` out",
                "1:102: clusters[0].health_checks: a cluster of type original_dst has no endpoints to check",
            ],
        ),
        (
            "clusters: [{name: a, endpoints: [127.0.0.1:1], lb_policy: cluster_provided, respect_dns_ttl: true, connect_timeout: 0s, max_requests_per_connection: 0, healthy_panic_threshold: 101}]",
            &[
                "1:59: clusters[0].lb_policy: `cluster_provided` is for clusters of type original_dst",
                "1:94: clusters[0].respect_dns_ttl: `respect_dns_ttl` has a meaning for `type: strict_dns` only",
                "1:117: clusters[0].connect_timeout: must be longer than 0s",
                "1:150: clusters[0].max_requests_per_connection: must be at least 1, found 0",
                "1:178: clusters[0].healthy_panic_threshold: must be 0 to 100, found 101",
            ],
        ),
    ]);
}

#[test]
fn tables_of_hashes_have_sizes_that_envoy_would_take() {
    let cluster = |fields: &str| format!("clusters: [{{name: a, endpoints: [127.0.0.1:1], {fields}}}]");
    check_errors(&[
        (
            &cluster("lb_policy: ring_hash, ring_hash_lb_config: {minimum_ring_size: 8388609}, maglev_lb_config: {}"),
            &[
                "1:111: clusters[0].ring_hash_lb_config.minimum_ring_size: must be 1 to 8388608, found 8388609",
                "1:139: clusters[0].maglev_lb_config: `maglev_lb_config` has a meaning for `lb_policy: maglev` only",
            ],
        ),
        (
            &cluster("lb_policy: ring_hash, ring_hash_lb_config: {maximum_ring_size: 512}"),
            &[
                "1:91: clusters[0].ring_hash_lb_config: `minimum_ring_size` (1024) must not be above `maximum_ring_size` (512)",
            ],
        ),
        (
            &cluster("lb_policy: MAGLEV, maglev_lb_config: {table_size: 65536}"),
            &[
                "1:98: clusters[0].maglev_lb_config.table_size: must be a prime number, found 65536: the next one is 65537",
            ],
        ),
        (
            &cluster("lb_policy: maglev, maglev_lb_config: {table_size: 5000012}"),
            &["1:98: clusters[0].maglev_lb_config.table_size: must be 2 to 5000011, found 5000012"],
        ),
        (
            &cluster("ring_hash_lb_config: {}"),
            &[
                "1:69: clusters[0].ring_hash_lb_config: `ring_hash_lb_config` has a meaning for `lb_policy: ring_hash` only",
            ],
        ),
    ]);
}

#[test]
fn health_checks_that_check_nothing_are_refused() {
    let cluster = |check: &str| format!("clusters: [{{name: a, endpoints: [127.0.0.1:1], health_checks: [{check}]}}]");
    check_errors(&[
        (&cluster("{}"), &["1:64: clusters[0].health_checks[0]: one of `tcp`, `http` is missing"]),
        (
            &cluster("{tcp: {}, http: {path: /}}"),
            &["1:64: clusters[0].health_checks[0]: `tcp` and `http` exclude each other: keep one of them"],
        ),
        (
            &cluster("{tcp: {send: xyz, receive: [\"\"]}}"),
            &[
                "1:77: clusters[0].health_checks[0].tcp.send: expected bytes as pairs of hexadecimal digits such as 50494e47, found `xyz`",
                "1:92: clusters[0].health_checks[0].tcp.receive[0]: expected bytes as pairs of hexadecimal digits such as 50494e47, found ``",
            ],
        ),
        (
            &cluster(
                "{timeout: 0s, interval: 0s, unhealthy_threshold: 0, healthy_threshold: 0, http: {path: x, expected_statuses: [{start: 200, end: 200}]}}",
            ),
            &[
                "1:74: clusters[0].health_checks[0].timeout: must be longer than 0s",
                "1:88: clusters[0].health_checks[0].interval: must be longer than 0s",
                "1:113: clusters[0].health_checks[0].unhealthy_threshold: must be at least 1, found 0",
                "1:135: clusters[0].health_checks[0].healthy_threshold: must be at least 1, found 0",
                "1:151: clusters[0].health_checks[0].http.path: must be a path beginning with `/`, found `x`",
                "1:174: clusters[0].health_checks[0].http.expected_statuses[0]: must be a range of statuses with 100 <= start < end <= 600 (end is beyond it), found 200 to 200",
            ],
        ),
    ]);
}

#[test]
fn an_interception_needs_a_listener_and_rules_that_say_something() {
    let with_target = |intercept: &str| {
        format!(
            "intercept: {intercept}\nlisteners: [{{name: v, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}]\nclusters: [{{name: c, type: original_dst}}]\n"
        )
    };
    check_errors(&[
        (
            "intercept: {}",
            &[
                "1:12: intercept: nothing to redirect to: give one listener `use_original_dst: true` and an address of its own, such as 127.0.0.1:15001",
            ],
        ),
        (
            &with_target("{cgroup: kube, on_agent_loss: deny, handover_entries: 0}"),
            &[
                "1:21: intercept.cgroup: must begin with `/` (the cgroup2 mount itself) and go downwards, found `kube`",
                "1:42: intercept.on_agent_loss: expected one of `allow`, `refuse`, found `deny`",
                "1:66: intercept.handover_entries: must be 1 to 1048576, found 0",
            ],
        ),
        (
            &with_target(
                "{cgroup: /a/../.., outbound: {include: [{cidr: 10.0.0.1/8}, {}, {ports: [99999, 90-80]}], exclude: [{cidr: x}]}}",
            ),
            &[
                "1:21: intercept.cgroup: must begin with `/` (the cgroup2 mount itself) and go downwards, found `/a/../..`",
                "1:59: intercept.outbound.include[0].cidr: `10.0.0.1/8` has bits beyond its 8: write 10.0.0.0/8",
                "1:72: intercept.outbound.include[1]: a rule needs `cidr`, `ports` or both; for all addresses write 0.0.0.0/0 and ::/0",
                "1:85: intercept.outbound.include[2].ports[0]: expected a port such as 80 or a range such as 8000-8999, found `99999`",
                "1:92: intercept.outbound.include[2].ports[1]: the range `90-80` is empty: write 80-90",
                "1:119: intercept.outbound.exclude[0].cidr: expected a CIDR such as 10.0.0.0/8 or fd00::/8, found `x`",
            ],
        ),
    ]);
}

#[test]
fn clusters_that_are_probably_not_meant_so_are_warned_about() {
    let found = warnings(
        "listeners: [{name: v, address: 127.0.0.1:1, default_filter_chain: {tcp_proxy: {cluster: a}}}]\nclusters:\n  - {name: a, endpoints: []}\n  - {name: b, endpoints: [127.0.0.1:1, 127.0.0.1:1]}\n",
    );
    assert_eq!(
        found,
        [
            "3:26: clusters[0].endpoints: cluster `a` has no endpoints: requests that go there get 503, connections are reset (flag UH)",
            "4:40: clusters[1].endpoints[1]: 127.0.0.1:1 is listed twice",
        ]
    );
}
