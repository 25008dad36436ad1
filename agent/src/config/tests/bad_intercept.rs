//! Files whose `intercept` takes connections of nobody, for nobody, or too many of them.

use super::{check_errors, warnings};

/// A file with this `intercept` and these listeners besides one for what goes out.
fn with(intercept: &str, listeners: &str) -> String {
    format!(
        "intercept: {intercept}\nlisteners:\n  - {{name: out, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}\n{listeners}clusters: [{{name: c, type: original_dst}}]\n"
    )
}

fn inbound(name: &str, fields: &str) -> String {
    format!(
        "  - {{name: {name}, traffic_direction: inbound, {fields}, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}\n"
    )
}

fn usual() -> String {
    inbound("in", "address: 127.0.0.1:15006")
}

/// What is said about `intercept`, which begins at column 12 of the first line.
#[track_caller]
fn refused(intercept: &str, listeners: &str, expected: &[&str]) {
    check_errors(&[(&with(intercept, listeners), expected)]);
}

#[track_caller]
fn warned(intercept: &str, listeners: &str, expected: &[&str]) {
    assert_eq!(warnings(&with(intercept, listeners)), expected, "{intercept}");
}

#[test]
fn what_arrives_needs_a_listener_of_its_own() {
    let nobody = "nothing to hand to what arrives: give one listener `traffic_direction: inbound` and an address of its own, such as 127.0.0.1:15006";
    refused("{inbound: {include: [{ports: [80]}]}}", "", &[&format!("1:22: intercept.inbound: {nobody}")]);
    refused(
        "{pods: {policies: [{source_pod: {}, outbound: {}}, {source_pod: {}, inbound: {}}]}}",
        "",
        &[&format!("1:89: intercept.pods.policies[1].inbound: {nobody}")],
    );
    refused(
        "{inbound: {include: [{ports: [80]}]}}",
        &inbound("virtual", "address: 0.0.0.0:80, bind_to_port: false"),
        &[&format!("1:22: intercept.inbound: {nobody}")],
    );
}

#[test]
fn a_listener_for_what_arrives_needs_something_that_does() {
    let idle = "4:35: listeners[1].traffic_direction: nothing that arrives is handed to it: say what is taken in `intercept.inbound`, or in `inbound` of a row of `intercept.pods.policies`";
    warned("{}", &usual(), &[idle]);
    warned("{pods: {}}", &usual(), &[idle]);
    warned("{pods: {policies: [{source_pod: {}, inbound: {}}]}}", &usual(), &[]);
    warned("{pods: {}, inbound: {}}", &usual(), &[]);
}

#[test]
fn there_is_one_listener_for_what_arrives() {
    let two = usual() + &inbound("other", "address: \"[::1]:15007\"");
    refused(
        "{inbound: {include: [{ports: [80]}]}}",
        &two,
        &[
            "5:38: listeners[2].traffic_direction: the kernel hands what arrives to one listener, of both families, and that is `in`: make this one `bind_to_port: false`",
        ],
    );
    let virtual_too = usual() + &inbound("other", "address: 0.0.0.0:80, bind_to_port: false");
    let message = "nothing reaches listener";
    let found = warnings(&with("{inbound: {include: [{ports: [80]}]}}", &virtual_too));
    assert!(found.iter().all(|warning| !warning.contains(message)), "that is the linter's: {found:?}");
}

#[test]
fn listeners_of_different_directions_may_have_one_address_unless_both_are_bound() {
    let listeners = usual()
        + &inbound("in-8080", "address: 0.0.0.0:8080, bind_to_port: false")
        + "  - {name: out-8080, address: 0.0.0.0:8080, bind_to_port: false, default_filter_chain: {tcp_proxy: {cluster: c}}}\n";
    warned("{pods: {}, inbound: {}}", &listeners, &[]);
    refused(
        "{pods: {}, inbound: {}}",
        &inbound("in", "address: 127.0.0.1:15001"),
        &[
            "4:53: listeners[1].address: error adding listener: 'in' has duplicate address '127.0.0.1:15001' as existing listener 'out'",
        ],
    );
    refused(
        "{pods: {}, inbound: {}}",
        &inbound("in", "address: 127.0.0.2:15001"),
        &[
            "3:26: listeners[0].address: `in` has port 15001 too, and in the network namespaces of pods both listen on loopback: give one of them another",
        ],
    );
    let plain = "  - {name: six, address: \"[::1]:15006\", default_filter_chain: {tcp_proxy: {cluster: c}}}\n";
    refused(
        "{inbound: {include: [{ports: [80]}]}}",
        &(usual() + plain),
        &[
            "5:26: listeners[2].address: [::1]:15006 belongs to listener `in`: with `traffic_direction: inbound` it takes IPv6 connections there",
        ],
    );
}

#[test]
fn the_host_names_the_ports_that_it_takes() {
    let all = "takes what arrives at this machine itself on any port, its SSH too: name the ports, as in `include: [{ports: [8080]}]`";
    refused("{inbound: {}}", &usual(), &[&format!("1:22: intercept.inbound: {all}")]);
    refused(
        "{host: true, pods: {}, inbound: {include: [{ports: [80]}, {cidr: 10.0.0.0/8}]}}",
        &usual(),
        &[&format!("1:70: intercept.inbound.include[1]: {all}")],
    );
    warned("{inbound: {include: [{cidr: 10.0.0.0/8, ports: [80]}]}}", &usual(), &[]);
    warned(
        "{host: false}",
        "",
        &[
            "1:19: intercept.host: nothing is intercepted: this leaves out the agent's own network namespace, and there is no `pods`",
        ],
    );
}

#[test]
fn what_arrives_may_be_all_that_is_taken() {
    let only = |intercept: &str| {
        format!("intercept: {intercept}\nlisteners:\n{}clusters: [{{name: c, type: original_dst}}]\n", usual())
    };
    assert_eq!(warnings(&only("{inbound: {include: [{ports: [80]}]}}")), [""; 0]);
    let nobody = "nothing to redirect to: give one listener `use_original_dst: true` and an address of its own, such as 127.0.0.1:15001";
    check_errors(&[
        (&only("{}"), &[&format!("1:12: intercept: {nobody}")]),
        (
            &only("{inbound: {include: [{ports: [80]}]}, outbound: {exclude: [{ports: [22]}]}, processes: [{pid: 1}]}"),
            &[&format!("1:60: intercept.outbound: {nobody}"), &format!("1:99: intercept.processes: {nobody}")],
        ),
        (
            &only("{pods: {policies: [{source_pod: {}, inbound: {}, outbound: {}}]}}"),
            &[&format!("1:71: intercept.pods.policies[0].outbound: {nobody}")],
        ),
        (
            "intercept: {redirect_to: [127.0.0.1:9, \"[::1]:9\"], pods: {}}",
            &[
                "1:26: intercept.redirect_to: the proxy is in the agent's own network namespace, where connections of `pods` do not reach it: give a listener of this file `use_original_dst: true` instead",
            ],
        ),
    ]);
}

#[test]
fn a_process_rule_names_processes() {
    let cases: &[(&str, &str)] = &[
        (
            "{}",
            "1:25: intercept.processes[0]: a row needs `user`, `comm`, `pid`, `unit` or `cgroup`: leave `processes` out to take those of every process",
        ),
        (
            "{user: no-such-user}",
            "1:32: intercept.processes[0].user: there is no user `no-such-user` on this machine: give a name that `id` knows, or the number",
        ),
        ("{pid: 0}", "1:31: intercept.processes[0].pid: must be 1 to 2147483647, found 0"),
        ("{comm: \"\"}", "1:32: intercept.processes[0].comm: must not be empty: give a name as `ps -o comm` shows it"),
        (
            "{comm: systemd-networkd}",
            "1:32: intercept.processes[0].comm: `systemd-networkd` has 16 bytes and the kernel keeps 15 of a name: write `systemd-network`",
        ),
        ("{comm: /usr/bin/curl}", "1:32: intercept.processes[0].comm: is the name alone, without a path: write `curl`"),
        (
            "{unit: ssh.socket}",
            "1:32: intercept.processes[0].unit: `ssh.socket` has no processes: give a unit that ends in .service, .scope, .slice",
        ),
        (
            "{unit: a/b}",
            "1:32: intercept.processes[0].unit: expected the name of a systemd unit such as nginx.service, found `a/b`",
        ),
        (
            "{cgroup: user.slice}",
            "1:34: intercept.processes[0].cgroup: must begin with `/` (the cgroup2 mount itself) and go downwards, found `user.slice`",
        ),
        (
            "{unit: a, cgroup: /b}",
            "1:25: intercept.processes[0]: `unit` and `cgroup` exclude each other: keep one of them",
        ),
    ];
    for (row, expected) in cases {
        refused(&format!("{{processes: [{row}]}}"), "", &[expected]);
    }
    let rows = vec!["{pid: 1}"; 17].join(", ");
    refused(
        &format!("{{processes: [{rows}]}}"),
        "",
        &["1:24: intercept.processes: 17 rows, at most 16 are possible: put the processes into one control group"],
    );
}

#[test]
fn pods_are_found_and_chosen_by_what_they_have() {
    for (runtime, expected) in [
        (
            "/run/crio/crio.sock",
            "`/run/crio/crio.sock` does not say what is spoken there: write cri:///run/crio/crio.sock",
        ),
        ("unix:///run/podman.sock", "`unix` is not a protocol here: write docker:///run/podman.sock"),
        ("cri://run/x", "`cri://run/x` has no absolute path: write cri:///run/x, with three slashes"),
    ] {
        let pods = format!("{{pods: {{runtimes: [\"{runtime}\"]}}}}");
        refused(&pods, "", &[&format!("1:31: intercept.pods.runtimes[0]: {expected}")]);
    }
    refused("{pods: {poll_interval: 0s}}", "", &["1:35: intercept.pods.poll_interval: must be longer than 0s"]);
    refused(
        "{pods: {select: [{namespaces: [\"shop*\"]}, {labels: [a]}, {labels: {a: }}, {annotations: {a: 1, a: 2}}]}}",
        "",
        &[
            "1:43: intercept.pods.select[0].namespaces[0]: expected the whole name of a namespace, found `shop*`",
            "1:63: intercept.pods.select[1].labels: expected a mapping such as {app: web}, found a list",
            "1:79: intercept.pods.select[2].labels: `a` needs a value; for an empty one write a: \"\"",
            "1:107: intercept.pods.select[3].annotations: `a` is given twice",
        ],
    );
    refused(
        "{pods: {policies: [{source_pod: {name: \"a*b\"}}, {source_pod: {name: shop/web}, outbound: {include: [{}]}}]}}",
        "",
        &[
            "1:31: intercept.pods.policies[0]: a row needs `outbound`, `inbound` or both: it changes nothing",
            "1:51: intercept.pods.policies[0].source_pod.name: `*` stands at the end only, as in web-*; found `a*b`",
            "1:80: intercept.pods.policies[1].source_pod.name: the name of a pod has no `/`: give the namespace as `namespace`; found `shop/web`",
            "1:112: intercept.pods.policies[1].outbound.include[0]: a rule needs `cidr`, `ports` or both; for all addresses write 0.0.0.0/0 and ::/0",
        ],
    );
    warned(
        "{pods: {select: []}}",
        "",
        &[
            "1:28: intercept.pods.select: selects no pod: leave it out for those with waylay.io/inject: \"true\", or write [{}] for all",
        ],
    );
}
