//! Route tables that are refused.

use super::{check_errors, warnings};

/// A cluster `c`, and a listener that names the route table.
const REST: &str = "clusters: [{name: c, type: original_dst}]
listeners: [{name: l, address: 127.0.0.1:1, default_filter_chain: {http: {route_config: t}}}]
";

/// Virtual hosts, one a line from line 4 on, and what else a file needs.
fn hosts(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("  - {line}\n")).collect();
    format!("route_configs:\n- name: t\n  virtual_hosts:\n{lines}{REST}")
}

/// One row, at column 9 of line 7, and what else a file needs.
fn row(row: &str) -> String {
    let host = "name: h\n    domains: [\"*\"]\n    routes:";
    format!("route_configs:\n- name: t\n  virtual_hosts:\n  - {host}\n      - {row}\n{REST}")
}

/// What is wrong with one row: the column and what follows the row's path.
#[track_caller]
fn check_rows(cases: &[(&str, &[(usize, &str)])]) {
    for (text, expected) in cases {
        let expected: Vec<_> = expected
            .iter()
            .map(|(column, rest)| format!("7:{column}: route_configs[0].virtual_hosts[0].routes[0]{rest}"))
            .collect();
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        check_errors(&[(&row(text), &expected)]);
    }
}

#[test]
fn route_configs_and_virtual_hosts_that_cannot_be_are_refused() {
    check_errors(&[
        (
            "route_configs: [{virtual_hosts: []}]",
            &["1:17: route_configs[0]: a route config needs a `name`, by which listeners call it"],
        ),
        (
            "route_configs: [{name: a}, {name: a}]",
            &["1:35: route_configs[1].name: there is another route config `a` before this one"],
        ),
        (
            &hosts(&["{name: x, domains: []}", "{name: x, domains: [\"a*b\", \"\", \"*x*\", \"http://x\"]}"]),
            &[
                "4:24: route_configs[0].virtual_hosts[0].domains: a virtual host needs at least one domain; `domains: [\"*\"]` takes every host",
                "5:12: route_configs[0].virtual_hosts[1].name: Only unique names for virtual hosts are permitted: `x` is taken",
                "5:25: route_configs[0].virtual_hosts[1].domains[0]: a `*` can begin or end a domain, once, found `a*b`",
                "5:32: route_configs[0].virtual_hosts[1].domains[1]: a domain must not be empty",
                "5:36: route_configs[0].virtual_hosts[1].domains[2]: a `*` can begin or end a domain, once, found `*x*`",
                "5:43: route_configs[0].virtual_hosts[1].domains[3]: a domain is a host name, perhaps with a port, found `http://x`",
            ],
        ),
    ]);
}

#[test]
fn a_domain_that_two_virtual_hosts_claim_is_refused() {
    let text = hosts(&["{name: x, domains: [a.example, b.example]}", "{name: y, domains: [c.example, B.example]}"]);
    check_errors(&[(
        &text,
        &[
            "5:36: route_configs[0].virtual_hosts[1].domains[1]: Only unique values for domains are permitted. Duplicate entry of domain b.example (virtual hosts 'x' and 'y')",
        ],
    )]);
}

#[test]
fn a_row_has_exactly_one_action() {
    check_rows(&[
        ("{match: {prefix: /}}", &[(9, ": one of `route`, `redirect`, `direct_response` is missing")]),
        (
            "{match: {prefix: /}, route: {cluster: c}, redirect: {strip_query: true}}",
            &[(9, ": `route` and `redirect` exclude each other: keep one of them")],
        ),
        ("{match: {prefix: /}, rout: {cluster: c}}", &[(30, ".rout: unknown field `rout`: did you mean `route`?")]),
        (
            "{mach: {prefix: /}, route: {clster: c}}",
            &[
                (10, ".mach: unknown field `mach`: did you mean `match`?"),
                (37, ".route.clster: unknown field `clster`: did you mean `cluster`?"),
            ],
        ),
        ("{route: {cluster: c}}", &[(9, ".match: the field `match` is missing (expected a mapping)")]),
    ]);
}

#[test]
fn a_row_has_exactly_one_condition_on_the_path() {
    let forward = |matches: &str| format!("{{match: {matches}, route: {{cluster: c}}}}");
    check_rows(&[
        (
            &forward("{methods: [GET]}"),
            &[(
                17,
                ".match: a condition on the path is missing: `prefix: /` takes every path (or path, safe_regex, path_separated_prefix, path_template, connect_matcher)",
            )],
        ),
        (
            &forward("{prefix: /, path: /x}"),
            &[(17, ".match: `prefix` and `path` exclude each other: keep one of them")],
        ),
        (
            &forward("{path_separated_prefix: /a/}"),
            &[(
                41,
                ".match.path_separated_prefix: must not end with `/`, found `/a/`: `/` is expected behind it anyway; for every path write `prefix: /`",
            )],
        ),
        (
            &forward("{path_separated_prefix: \"/a?\"}"),
            &[(41, ".match.path_separated_prefix: must not contain `?` or `#`, found `/a?`")],
        ),
        (
            &forward("{path_separated_prefix: a}"),
            &[(41, ".match.path_separated_prefix: must have at least two characters, such as /a, found `a`")],
        ),
        (
            &forward("{safe_regex: \"a((\"}"),
            &[(30, ".match.safe_regex: `a((` is no regular expression: unclosed group")],
        ),
        (
            &forward("{safe_regex: {regex: \"a)(b\"}}"),
            &[(30, ".match.safe_regex: `a)(b` is no regular expression: unopened group")],
        ),
    ]);
}

#[test]
fn conditions_that_cannot_be_are_refused() {
    let forward = |conditions: &str| format!("{{match: {{prefix: /, {conditions}}}, route: {{cluster: c}}}}");
    check_rows(&[
        ("{match: {path_template: \"/{a\"}, route: {cluster: c}}", &[(33, ".match.path_template: a { is not closed")]),
        (
            &forward("headers: [{name: x, prefix: \"\"}, {name: x, suffix: \"\"}, {name: x, contains: \"\"}]"),
            &[
                (
                    57,
                    ".match.headers[0].prefix: must not be empty: every value would match; to ask whether it is there write `present: true`",
                ),
                (
                    80,
                    ".match.headers[1].suffix: must not be empty: every value would match; to ask whether it is there write `present: true`",
                ),
                (
                    105,
                    ".match.headers[2].contains: must not be empty: every value would match; to ask whether it is there write `present: true`",
                ),
            ],
        ),
        (
            &forward(
                "headers: [{name: x y}, {name: a, exact: b, present: true}, {name: r, range: {start: 5, end: 5}}]",
            ),
            &[
                (
                    46,
                    ".match.headers[0].name: `x y` is no header name, and none of :method, :authority, :path, :scheme",
                ),
                (52, ".match.headers[1]: `exact` and `present` exclude each other: keep one of them"),
                (105, ".match.headers[2].range: the range from 5 to below 5 is empty"),
            ],
        ),
        (
            &forward("headers: [{name: x, exact_match: y}]"),
            &[(49, ".match.headers[0].exact_match: unknown field `exact_match`: it is called `exact` here")],
        ),
        (
            &forward("query_parameters: [{name: \"\"}, {name: q, exact: a, prefix: b}]"),
            &[
                (55, ".match.query_parameters[0].name: a query parameter needs a name"),
                (60, ".match.query_parameters[1]: `exact` and `prefix` exclude each other: keep one of them"),
            ],
        ),
        (
            &forward("methods: [G T], runtime_fraction: {numerator: 101}, grpc: 1"),
            &[
                (39, ".match.methods[0]: `G T` is no HTTP method"),
                (75, ".match.runtime_fraction.numerator: must be 0 to 100, found 101"),
                (87, ".match.grpc: expected true or false, found `1`"),
            ],
        ),
    ]);
}

#[test]
fn route_actions_that_cannot_be_are_refused() {
    let forward = |fields: &str| format!("{{match: {{prefix: /}}, route: {{{fields}}}}}");
    check_rows(&[
        (&forward(""), &[(37, ".route: one of `cluster`, `weighted_clusters`, `cluster_header` is missing")]),
        (
            &forward("cluster: c, cluster_header: x"),
            &[(37, ".route: `cluster` and `cluster_header` exclude each other: keep one of them")],
        ),
        (&forward("cluster: d"), &[(47, ".route.cluster: there is no cluster `d`")]),
        (
            &forward("weighted_clusters: [{name: c, weight: 4294967295}, {name: c, weight: 1}]"),
            &[(57, ".route.weighted_clusters: the weights sum to 4294967296: the sum must be 1 to 4294967295")],
        ),
        (
            &forward("cluster: c, prefix_rewrite: /, regex_rewrite: {pattern: a, substitution: '\\1'}"),
            &[
                (37, ".route: `prefix_rewrite` and `regex_rewrite` exclude each other: keep one of them"),
                (111, ".route.regex_rewrite.substitution: `\\1` names a group, and the pattern has 0 of them"),
            ],
        ),
        (
            &forward("cluster: c, regex_rewrite: {pattern: a, substitution: 'x\\n'}"),
            &[(92, ".route.regex_rewrite.substitution: a `\\` stands before a digit or another `\\`, found `x\\n`")],
        ),
        (
            &forward("cluster: c, path_template_rewrite: /x"),
            &[(73, ".route.path_template_rewrite: needs `path_template` in the row's match, whose variables it uses")],
        ),
        (
            &forward(
                "cluster: c, host_rewrite: a b, auto_host_rewrite: true, timeout: 5, cluster_not_found_response_code: 502",
            ),
            &[
                (37, ".route: `host_rewrite_literal` and `auto_host_rewrite` exclude each other: keep one of them"),
                (64, ".route.host_rewrite_literal: expected a host, perhaps with a port, found `a b`"),
                (
                    103,
                    ".route.timeout: expected a duration such as 5s, 0.25s, 250ms, 1m or 1h, found `5`: a unit is missing, write 5s or 5ms",
                ),
                (139, ".route.cluster_not_found_response_code: must be 503, 404 or 500, found 502"),
            ],
        ),
        (
            &forward(
                "cluster: c, retry_policy: {retry_on: [5xx, retriable-headers], retry_back_off: {base_interval: 1s, max_interval: 1ms}, retriable_status_codes: [1]}",
            ),
            &[
                (
                    81,
                    ".route.retry_policy.retry_on[1]: expected one of `5xx`, `gateway-error`, `reset`, `reset-before-request`, `connect-failure`, `refused-stream`, `retriable-4xx`, `retriable-status-codes`, `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`, found `retriable-headers`: did you mean `retriable-status-codes`?",
                ),
                (151, ".route.retry_policy.retry_back_off.max_interval: must not be shorter than `base_interval`"),
                (182, ".route.retry_policy.retriable_status_codes[0]: must be 100 to 599, found 1"),
            ],
        ),
    ]);
}

#[test]
fn answers_that_cannot_be_are_refused() {
    let large = format!("{{match: {{prefix: /}}, direct_response: {{status: 200, body: \"{}\"}}}}", "x".repeat(4097));
    check_rows(&[
        (
            "{match: {prefix: /}, direct_response: {status: 99}}",
            &[(56, ".direct_response.status: must be 200 to 599, found 99")],
        ),
        (
            "{match: {prefix: /}, direct_response: {body: x}}",
            &[(47, ".direct_response.status: the field `status` is missing (expected whole number)")],
        ),
        (
            &large,
            &[(
                67,
                ".direct_response.body: response body size is 4097 bytes; maximum is 4096 (max_direct_response_body_size_bytes of the route config)",
            )],
        ),
        (
            "{match: {prefix: /}, redirect: {https_redirect: true, scheme_redirect: http, response_code: 304, port_redirect: 0, host_redirect: a b}}",
            &[
                (40, ".redirect: `https_redirect` and `scheme_redirect` exclude each other: keep one of them"),
                (
                    101,
                    ".redirect.response_code: expected the status of a redirect, one of 301 (MOVED_PERMANENTLY), 302 (FOUND), 303 (SEE_OTHER), 307 (TEMPORARY_REDIRECT), 308 (PERMANENT_REDIRECT); found `304`",
                ),
                (121, ".redirect.port_redirect: must be 1 to 65535, found 0"),
                (139, ".redirect.host_redirect: expected a host, perhaps with a port, found `a b`"),
            ],
        ),
        (
            "{match: {prefix: /}, redirect: {path_redirect: /a, prefix_rewrite: /b}}",
            &[(40, ".redirect: `path_redirect` and `prefix_rewrite` exclude each other: keep one of them")],
        ),
    ]);
}

#[test]
fn headers_that_may_not_be_changed_are_refused() {
    let add = |list: &str| format!("{{match: {{prefix: /}}, route: {{cluster: c}}, request_headers_to_add: [{list}]}}");
    let modified = ":-prefixed or host headers may not be modified, found";
    let instead = "see `host_rewrite_literal` and the path rewrites";
    check_rows(&[
        (
            &add("{key: Host, value: x}, {header: {key: :path, value: x}}"),
            &[
                (82, &format!(".request_headers_to_add[0].key: {modified} `Host`: {instead}")),
                (114, &format!(".request_headers_to_add[1].header.key: {modified} `:path`: {instead}")),
            ],
        ),
        (
            &add("{value: x}, {key: a b, value: x}, {key: a, value: \"%PROTOCOL%\"}, {header: {key: a}, key: b}"),
            &[
                (76, ".request_headers_to_add[0]: the header's name is missing: write {key: NAME, value: VALUE}"),
                (94, ".request_headers_to_add[1].key: `a b` is no header name"),
                (126, ".request_headers_to_add[2].value: variables are not supported, found %PROTOCOL%"),
                (
                    141,
                    ".request_headers_to_add[3]: `header` and `key` and `value` exclude each other: keep one of them",
                ),
            ],
        ),
        (
            "{match: {prefix: /}, route: {cluster: c}, response_headers_to_remove: [\":status\", \"\"]}",
            &[
                (80, &format!(".response_headers_to_remove[0]: {modified} `:status`: {instead}")),
                (91, ".response_headers_to_remove[1]: `` is no header name"),
            ],
        ),
    ]);
}

#[test]
fn rows_that_are_probably_not_meant_so_are_warned_about() {
    let warning = |text: &str| {
        let found = warnings(&row(text));
        found.iter().map(|line| line.replacen("route_configs[0].virtual_hosts[0].routes[0]", "", 1)).collect::<Vec<_>>()
    };
    for (text, expected) in [
        (
            "{match: {prefix: shop}, route: {cluster: c}}",
            "7:26: .match.prefix: `shop` never matches: every path begins with `/`",
        ),
        (
            "{match: {path: \"/a?b=c\"}, route: {cluster: c}}",
            "7:24: .match.path: `/a?b=c` never matches: paths are compared without query and fragment",
        ),
        (
            "{match: {prefix: /, methods: [get]}, route: {cluster: c}}",
            "7:39: .match.methods[0]: methods are case-sensitive: did you mean `GET`?",
        ),
        (
            "{match: {prefix: /}, redirect: {}}",
            "7:40: .redirect: redirects to the very same location: nothing of it is changed",
        ),
        (
            "{match: {prefix: /}, route: {cluster: c, retry_policy: {}}}",
            "7:64: .route.retry_policy: without `retry_on` nothing is tried again",
        ),
        (
            "{match: {prefix: /, headers: [{name: x, safe_regex: a, ignore_case: true}]}, route: {cluster: c}}",
            "7:77: .match.headers[0].ignore_case: has no effect on a regular expression: begin it with (?i)",
        ),
    ] {
        assert_eq!(warning(text), [expected], "{text}");
    }
}

#[test]
fn hash_policies_that_hash_nothing_are_refused() {
    let route = |policy: &str| format!("{{match: {{prefix: /}}, route: {{cluster: c, hash_policy: [{policy}]}}}}");
    check_rows(&[
        (
            &route("{terminal: true}, {header: a, cookie: b}"),
            &[
                (
                    64,
                    ".route.hash_policy[0]: one of `header`, `cookie`, `connection_properties`, `query_parameter` is missing",
                ),
                (82, ".route.hash_policy[1]: `header` and `cookie` exclude each other: keep one of them"),
            ],
        ),
        (
            &route(
                "{header: a b}, {cookie: {name: a=b, ttl: 1s, path: a;b}}, {connection_properties: {}}, {query_parameter: ''}",
            ),
            &[
                (73, ".route.hash_policy[0].header: `a b` is no header name"),
                (88, ".route.hash_policy[1].cookie: `a=b` is no name of a cookie"),
                (115, ".route.hash_policy[1].cookie.path: \"a;b\" holds characters that the path of a cookie cannot"),
                (
                    146,
                    ".route.hash_policy[2].connection_properties: `source_ip: true` is all that there is to hash of a connection",
                ),
                (169, ".route.hash_policy[3].query_parameter: a query parameter needs a name"),
            ],
        ),
    ]);
    let of_tcp = |policy: &str| {
        format!(
            "listeners: [{{name: l, address: 127.0.0.1:1, default_filter_chain: {{tcp_proxy: {{cluster: c, hash_policy: [{policy}]}}}}}}]\nclusters: [{{name: c, endpoints: [127.0.0.1:1]}}]\n"
        )
    };
    let at = "listeners[0].default_filter_chain.tcp_proxy.hash_policy";
    check_errors(&[
        (
            &of_tcp("{source_ip: {}}, {source_ip: true}"),
            &[&format!("1:123: {at}[1]: a TCP proxy hashes one thing: the first")],
        ),
        (
            &of_tcp("{source_ip: false}"),
            &[&format!("1:118: {at}[0].source_ip: must be true (or `{{}}`): there is nothing else to hash")],
        ),
    ]);
}
