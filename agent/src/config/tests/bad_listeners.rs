//! Listeners and filter chains that are refused.

use super::{check_errors, warnings};

/// Listeners, one a line from line 2 on, and a cluster `c`.
fn listeners(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("  - {line}\n")).collect();
    format!("listeners:\n{lines}clusters: [{{name: c, type: original_dst}}]\nroute_configs: [{{name: shop}}]\n")
}

const CHAIN: &str = "default_filter_chain: {tcp_proxy: {cluster: c}}";

#[test]
fn listeners_in_each_others_way_are_refused() {
    check_errors(&[
        (
            &listeners(&[
                &format!("{{name: a, address: 127.0.0.1:80, {CHAIN}}}"),
                &format!("{{name: b, address: 127.0.0.1:80, bind_to_port: false, {CHAIN}}}"),
            ]),
            &[
                "3:24: listeners[1].address: error adding listener: 'b' has duplicate address '127.0.0.1:80' as existing listener 'a'",
            ],
        ),
        (
            &listeners(&[
                &format!("{{name: a, address: 127.0.0.1:80, {CHAIN}}}"),
                &format!("{{name: a, address: 127.0.0.1:81, {CHAIN}}}"),
            ]),
            &["3:12: listeners[1].name: two listeners are called 'a'"],
        ),
        (
            &listeners(&[
                &format!("{{name: a, address: 127.0.0.1:80, use_original_dst: true, {CHAIN}}}"),
                &format!("{{name: b, address: 127.0.0.1:81, use_original_dst: true, {CHAIN}}}"),
            ]),
            &[
                "3:56: listeners[1].use_original_dst: the kernel redirects IPv4 connections to one listener, and that is `a`: make this one `bind_to_port: false` or leave `use_original_dst` out",
            ],
        ),
        (
            &listeners(&[
                &format!("{{name: a, address: 127.0.0.1:80, use_original_dst: true, {CHAIN}}}"),
                &format!("{{name: b, address: \"[::1]:80\", {CHAIN}}}"),
            ]),
            &[
                "3:24: listeners[1].address: [::1]:80 belongs to listener `a`: with `use_original_dst` it takes IPv6 connections there",
            ],
        ),
        (
            &format!(
                "admin: {{readiness: 127.0.0.1:80}}\n{}",
                listeners(&[&format!("{{name: a, address: 127.0.0.1:80, {CHAIN}}}")])
            ),
            &["1:20: admin.readiness: 127.0.0.1:80 is the address of listener `a` already"],
        ),
    ]);
    // One for each family is fine.
    let both = listeners(&[
        &format!("{{name: a, address: 127.0.0.1:80, use_original_dst: true, {CHAIN}}}"),
        &format!("{{name: b, address: \"[::1]:80\", use_original_dst: true, {CHAIN}}}"),
    ]);
    assert!(super::check(&both).is_ok());
}

#[test]
fn listeners_that_cannot_be_are_refused() {
    check_errors(&[
        (
            &listeners(&["{name: a, address: 127.0.0.1:80}"]),
            &[
                "2:5: listeners[0]: a listener needs `filter_chains` or a `default_filter_chain`: it would close every connection",
            ],
        ),
        (
            &listeners(&[&format!("{{name: \"\", address: 0.0.0.0:0, bind_to_port: false, {CHAIN}}}")]),
            &[
                "2:12: listeners[0].name: a listener needs a name",
                "2:25: listeners[0].address: no connection goes to port 0: give the port of the original destination",
            ],
        ),
        (
            &listeners(&[&format!(
                "{{name: a, address: shop:80, tcp_backlog_size: 0, listener_filters: [tls_inspecter, http_inspector, http_inspector], {CHAIN}}}"
            )]),
            &[
                "2:24: listeners[0].address: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `shop:80`: `shop` is no IP address",
                "2:51: listeners[0].tcp_backlog_size: must be 1 to 2147483647, found 0",
                "2:73: listeners[0].listener_filters[0]: expected one of `tls_inspector`, `http_inspector`, found `tls_inspecter`: did you mean `tls_inspector`?",
                "2:104: listeners[0].listener_filters[2]: `http_inspector` is listed twice",
            ],
        ),
    ]);
}

#[test]
fn filter_chains_that_cannot_be_are_refused() {
    let chain = |chain: &str| {
        listeners(&[&format!(
            "{{name: a, address: 127.0.0.1:80, listener_filters: [tls_inspector], filter_chains: [{chain}]}}"
        )])
    };
    check_errors(&[
        (&chain("{}"), &["2:89: listeners[0].filter_chains[0]: one of `tcp_proxy`, `http` is missing"]),
        (
            &chain("{tcp_proxy: {}, http: {route_config: shop}}"),
            &[
                "2:89: listeners[0].filter_chains[0]: `tcp_proxy` and `http` exclude each other: keep one of them",
                "2:101: listeners[0].filter_chains[0].tcp_proxy: one of `cluster`, `weighted_clusters` is missing",
            ],
        ),
        (
            &chain("{filters: []}"),
            &[
                "2:90: listeners[0].filter_chains[0].filters: unknown field `filters`: write `tcp_proxy: {...}` or `http: {...}` directly in the filter chain",
            ],
        ),
        (
            &chain(
                "{match: {server_names: [\"*\", w*.x], destination_port: 0, source_ports: [0], application_protocols: [\"\"]}, tcp_proxy: {cluster: c}}",
            ),
            &[
                "2:113: listeners[0].filter_chains[0].match.server_names[0]: partial wildcards are not supported in server_names, found `*`: write a whole name, or `*.` and the end of one",
                "2:118: listeners[0].filter_chains[0].match.server_names[1]: partial wildcards are not supported in server_names, found `w*.x`: write a whole name, or `*.` and the end of one",
                "2:143: listeners[0].filter_chains[0].match.destination_port: must be 1 to 65535, found 0",
                "2:161: listeners[0].filter_chains[0].match.source_ports[0]: must be 1 to 65535, found 0",
                "2:189: listeners[0].filter_chains[0].match.application_protocols[0]: an application protocol needs a name, such as http/1.1 or h2",
            ],
        ),
        (
            &chain(
                "{tcp_proxy: {weighted_clusters: [{name: c, weight: 0}, {name: d, weight: 0}], max_connect_attempts: 0, max_downstream_connection_duration: 0s}}",
            ),
            &[
                "2:121: listeners[0].filter_chains[0].tcp_proxy.weighted_clusters: the weights sum to 0: the sum must be 1 to 4294967295",
                "2:151: listeners[0].filter_chains[0].tcp_proxy.weighted_clusters[1].name: there is no cluster `d`",
                "2:189: listeners[0].filter_chains[0].tcp_proxy.max_connect_attempts: must be at least 1, found 0",
                "2:228: listeners[0].filter_chains[0].tcp_proxy.max_downstream_connection_duration: must be longer than 0s",
            ],
        ),
        (
            &chain(
                "{http: {route_config: shpo, max_request_headers_kb: 9000, max_headers_count: 0, server_name: \"a\\nb\", upgrades: [CONNECT, \"\"]}}",
            ),
            &[
                "2:111: listeners[0].filter_chains[0].http.route_config: there is no route config `shpo`: did you mean `shop`?",
                "2:141: listeners[0].filter_chains[0].http.max_request_headers_kb: must be 1 to 8192, found 9000",
                "2:166: listeners[0].filter_chains[0].http.max_headers_count: must be at least 1, found 0",
                "2:182: listeners[0].filter_chains[0].http.server_name: holds characters that a header cannot carry",
                "2:201: listeners[0].filter_chains[0].http.upgrades[0]: CONNECT is no upgrade here: a route with `connect_matcher: true` takes it",
                "2:210: listeners[0].filter_chains[0].http.upgrades[1]: an upgrade needs a name, such as websocket",
            ],
        ),
        (
            &listeners(&[
                "{name: a, address: 127.0.0.1:80, default_filter_chain: {match: {}, tcp_proxy: {cluster: c}}}",
            ]),
            &[
                "2:68: listeners[0].default_filter_chain.match: the default filter chain has no criteria: it serves what no other chain does",
            ],
        ),
    ]);
}

#[test]
fn filter_chains_that_cannot_be_told_apart_are_refused() {
    let chains = |first: &str, second: &str| {
        let chain = |criteria: &str| format!("{{match: {criteria}, tcp_proxy: {{cluster: c}}}}");
        listeners(&[&format!(
            "{{name: a, address: 127.0.0.1:80, filter_chains: [{}, {}]}}",
            chain(first),
            chain(second)
        )])
    };
    check_errors(&[
        (
            &chains("{destination_port: 80}", "{destination_port: 80}"),
            &["2:112: listeners[0].filter_chains[1]: filter chain '1' has the same matching rules defined as '0'"],
        ),
        (
            &chains("{source_ports: [80, 81]}", "{source_ports: [81, 82]}"),
            &[
                "2:114: listeners[0].filter_chains[1]: multiple filter chains with overlapping matching rules are defined: '0' and '1'",
            ],
        ),
    ]);
}

#[test]
fn criteria_that_never_match_are_warned_about() {
    let text = listeners(&[
        &format!("{{name: a, address: 127.0.0.1:80, listener_filters: [http_inspector, tls_inspector], {CHAIN}}}"),
        "{name: b, address: 127.0.0.1:81, bind_to_port: false, use_original_dst: true, filter_chains: [{match: {server_names: [x], transport_protocol: tls, application_protocols: [h2]}, http: {route_config: shop}}]}",
    ]);
    assert_eq!(
        warnings(&text),
        [
            "2:56: listeners[0].listener_filters: `http_inspector` waits for plain text before TLS is looked for: put `tls_inspector` first",
            "3:77: listeners[1].use_original_dst: has no effect without a socket: a connection is handed on once, by the listener that accepted it",
            "3:122: listeners[1].filter_chains[0].match.server_names: `server_names` never matches without `listener_filters: [tls_inspector]`",
            "3:147: listeners[1].filter_chains[0].match.transport_protocol: `transport_protocol: tls` never matches without `listener_filters: [tls_inspector]`",
            "3:175: listeners[1].filter_chains[0].match.application_protocols: `application_protocols` never matches without `listener_filters: [tls_inspector, http_inspector]`",
            "5:17: route_configs[0]: route config `shop` has no virtual hosts: every request gets 404 (flag NR)",
        ]
    );
}

#[test]
fn another_proxy_receives_each_family_once_and_nothing_bypasses_it() {
    let intercept = |fields: &str| format!("intercept: {{cgroup: /app, {fields}}}\n");
    let wrong = |fields: &str, expected: &[&str]| check_errors(&[(&intercept(fields), expected)]);
    let v4_only = "redirect_to: [127.0.0.1:15009], outbound: {exclude: [{cidr: \"::/0\"}]}";
    assert_eq!(warnings(&intercept(v4_only)), [""; 0]);
    assert_eq!(warnings(&intercept("redirect_to: [127.0.0.1:15009, \"[::1]:15009\"]")), [""; 0]);
    assert_eq!(
        warnings("intercept: {redirect_to: [127.0.0.1:15009, \"[::1]:15009\"]}"),
        [
            "1:12: intercept.cgroup: every process is intercepted, the proxy too: its own connections come back to it; name the cgroup of the programs to intercept"
        ]
    );
    wrong(
        "redirect_to: [127.0.0.1:15009]",
        &[
            "1:40: intercept.redirect_to: IPv6 connections are taken and have nowhere to go: add an IPv6 address, or exclude ::/0",
        ],
    );
    wrong(
        "redirect_to: [127.0.0.1:1, 127.0.0.1:2, 0.0.0.0:3, \"[::1]:0\", \"[::ffff:127.0.0.1]:4\"]",
        &[
            "1:54: intercept.redirect_to[1]: all IPv4 connections go to one address, and that is 127.0.0.1:1",
            "1:67: intercept.redirect_to[2]: nobody can connect to 0.0.0.0:3: give the address and port where the proxy listens",
            "1:78: intercept.redirect_to[3]: nobody can connect to [::1]:0: give the address and port where the proxy listens",
            "1:89: intercept.redirect_to[4]: [::ffff:127.0.0.1]:4 is an IPv4 address: write it as one",
        ],
    );
    wrong(
        "redirect_to: [here]",
        &["1:41: intercept.redirect_to[0]: expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `here`"],
    );
    let bound = |fields: &str| {
        format!(
            "{}{}",
            intercept(v4_only),
            listeners(&[&format!("{{name: a, address: 127.0.0.1:15009, {fields}{CHAIN}}}")])
        )
    };
    check_errors(&[
        (
            &bound(""),
            &[
                "1:41: intercept.redirect_to[0]: 127.0.0.1:15009 is the address of listener `a`: give it `use_original_dst: true` instead",
            ],
        ),
        (
            &bound("use_original_dst: true, "),
            &[
                "1:40: intercept.redirect_to: the kernel redirects to one place: take this away, or `use_original_dst` from listener `a`",
                "1:41: intercept.redirect_to[0]: 127.0.0.1:15009 is the address of listener `a`: give it `use_original_dst: true` instead",
            ],
        ),
    ]);
}
