use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::kernel::OnAgentLoss;
use crate::snapshot::{Inbound, PodPolicy, Redirect};
use crate::workload::{Selector, WorkloadMatch};

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn workload(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Workload {
    Workload {
        namespace: "shop".into(),
        name: "web-1".into(),
        labels: map(labels),
        annotations: map(annotations),
        pid: Some(7),
        ..Workload::default()
    }
}

fn rule(cidr: &str, ports: &[RangeInclusive<u16>]) -> Rule {
    Rule { cidr: (!cidr.is_empty()).then(|| cidr.parse().expect("network")), ports: ports.to_vec() }
}

fn policy(include: &[Rule], exclude: &[Rule]) -> Policy {
    Policy { include: include.to_vec(), exclude: exclude.to_vec() }
}

/// The default selectors, no policies of pods.
fn pods() -> Pods {
    let select = vec![
        Selector { labels: map(&[(INJECT, "true")]), ..Selector::default() },
        Selector { annotations: map(&[(INJECT, "true")]), ..Selector::default() },
    ];
    Pods { runtimes: Vec::new(), poll_interval: Duration::from_secs(5), select, policies: Vec::new() }
}

fn intercept(outbound: Policy, inbound: Option<Inbound>) -> Intercept {
    Intercept {
        cgroup: PathBuf::from("/"),
        host: false,
        processes: Vec::new(),
        outbound,
        inbound,
        pods: None,
        redirect: Redirect::Listeners,
        on_agent_loss: OnAgentLoss::Allow,
        handover_entries: 16,
    }
}

fn everything_inbound(from_node: FromNode) -> Option<Inbound> {
    Some(Inbound { policy: Policy::default(), from_node })
}

#[track_caller]
fn check_skip(workload: &Workload, pods: &Pods, expected: &str, expected_unexpected: bool) {
    match decide(workload, pods, &intercept(Policy::default(), None), &[]) {
        Decision::Skip { reason, unexpected } => {
            assert!(reason.contains(expected), "{reason}");
            assert_eq!(unexpected, expected_unexpected, "{reason}");
        }
        enrolled => panic!("{enrolled:?} of {workload:?}"),
    }
}

#[track_caller]
fn enrolled(workload: &Workload, pods: &Pods, intercept: &Intercept) -> (Policy, Option<Policy>) {
    match decide(workload, pods, intercept, &["10.0.0.1".parse().expect("address")]) {
        Decision::Enrol { outbound, inbound } => (outbound, inbound),
        skipped => panic!("{skipped:?} of {workload:?}"),
    }
}

#[test]
fn a_label_or_an_annotation_selects_and_false_always_wins() {
    let (yes, no) = ((INJECT, "true"), (INJECT, "false"));
    let intercept = intercept(Policy::default(), None);
    for workload in [workload(&[yes], &[]), workload(&[], &[yes]), workload(&[yes], &[yes])] {
        assert_eq!(enrolled(&workload, &pods(), &intercept), (Policy::default(), None));
    }
    check_skip(&workload(&[], &[]), &pods(), "no row of intercept.pods.select", false);
    check_skip(&workload(&[yes], &[no]), &pods(), "its annotation waylay.io/inject is \"false\"", false);
    check_skip(&workload(&[no], &[yes]), &pods(), "its label waylay.io/inject is \"false\"", false);
    check_skip(&workload(&[(INJECT, "yes")], &[]), &pods(), "is \"yes\": write \"true\" or \"false\"", true);
    let all = Pods { select: vec![Selector::default()], ..pods() };
    assert_eq!(enrolled(&workload(&[], &[]), &all, &intercept), (Policy::default(), None));
    check_skip(&workload(&[no], &[]), &all, "is \"false\"", false);
}

#[test]
fn a_workload_without_a_namespace_of_its_own_is_left_alone() {
    let selected = workload(&[(INJECT, "true")], &[]);
    check_skip(&Workload { host_network: true, ..selected.clone() }, &pods(), "host network", true);
    check_skip(&Workload { pid: None, ..selected.clone() }, &pods(), "does not tell where", true);
    check_skip(&Workload { host_network: true, ..workload(&[], &[]) }, &pods(), "no row of", false);
    let bound = Workload { pid: None, netns_path: Some("/run/netns/a".into()), ..selected };
    enrolled(&bound, &pods(), &intercept(Policy::default(), None));
}

#[test]
fn the_first_policy_that_matches_replaces_what_it_gives() {
    let general = intercept(policy(&[rule("10.0.0.0/8", &[])], &[]), everything_inbound(FromNode::Intercept));
    let of = |name: &str, outbound: Option<Policy>, inbound: Option<Policy>| PodPolicy {
        source_pod: WorkloadMatch { name: Some(name.to_owned()), ..WorkloadMatch::default() },
        outbound,
        inbound,
    };
    let (a, b) = (policy(&[rule("", &[80..=80])], &[]), policy(&[rule("", &[81..=81])], &[]));
    let web = workload(&[(INJECT, "true")], &[]);
    let with = |policies: Vec<PodPolicy>| enrolled(&web, &Pods { policies, ..pods() }, &general);
    assert_eq!(with(vec![]), (general.outbound.clone(), Some(Policy::default())));
    assert_eq!(with(vec![of("db", Some(a.clone()), None)]), (general.outbound.clone(), Some(Policy::default())));
    assert_eq!(with(vec![of("web-*", Some(a.clone()), None)]), (a.clone(), Some(Policy::default())));
    let both = vec![of("web-1", None, Some(b.clone())), of("web-*", Some(a.clone()), Some(a.clone()))];
    assert_eq!(with(both), (general.outbound.clone(), Some(b.clone())), "the first only");
    // A pod's inbound policy holds without a general one, and probes pass.
    let outbound_only = intercept(Policy::default(), None);
    let (_, inbound) =
        enrolled(&web, &Pods { policies: vec![of("*", None, Some(b.clone()))], ..pods() }, &outbound_only);
    assert_eq!(inbound, Some(policy(&b.include, &[rule("10.0.0.1/32", &[])])));
}

#[test]
fn annotations_replace_included_ports_and_add_excluded_ones() {
    let general = policy(&[rule("10.0.0.0/8", &[])], &[rule("10.9.0.0/16", &[])]);
    let inbound = Some(Inbound { policy: policy(&[rule("", &[8080..=8080])], &[]), from_node: FromNode::Intercept });
    let intercept = intercept(general.clone(), inbound.clone());
    let with =
        |annotations: &[(&str, &str)]| enrolled(&workload(&[(INJECT, "true")], annotations), &pods(), &intercept);
    let inbound = inbound.map(|inbound| inbound.policy);
    assert_eq!(with(&[("example.com/other", "x"), ("waylay.io/inbound", "on")]), (general.clone(), inbound.clone()));
    assert_eq!(with(&[("waylay.io/inbound", "off")]), (general.clone(), None));
    let replaced = policy(&[rule("", &[80..=80, 8000..=8999])], &general.exclude);
    assert_eq!(with(&[("waylay.io/include-outbound-ports", " 80, 8000-8999")]), (replaced, inbound.clone()));
    let added = policy(&general.include, &[general.exclude.clone(), vec![rule("", &[22..=22])]].concat());
    assert_eq!(with(&[("waylay.io/exclude-outbound-ports", "22")]), (added, inbound));
    let (_, inbound) =
        with(&[("waylay.io/include-inbound-ports", "1-65535"), ("waylay.io/exclude-inbound-ports", "9090")]);
    assert_eq!(inbound, Some(policy(&[rule("", &[1..=65535])], &[rule("", &[9090..=9090])])));
}

#[test]
fn a_bad_annotation_keeps_the_pod_out_and_says_why() {
    let check = |key: &str, value: &str, expected: &str| {
        check_skip(&workload(&[(INJECT, "true")], &[(key, value)]), &pods(), expected, true);
    };
    let ports = "waylay.io/include-outbound-ports";
    for (value, expected) in [
        ("", "\"\" is not a port"),
        ("80,", "\"\" is not a port"),
        ("http", "\"http\" is not a port"),
        ("0", "\"0\" is not a port from 1 to 65535"),
        ("65536", "\"65536\" is not a port"),
        ("+80", "\"+80\" is not a port"),
        ("90-80", "the range 90-80 ends before it begins"),
        ("80-90-95", "\"90-95\" is not a port"),
        ("80;90", "write ports and ranges such as \"80,8000-8999\""),
    ] {
        check(ports, value, expected);
    }
    check("waylay.io/inbound", "no", "is \"no\": write \"on\" or \"off\"");
    check("waylay.io/exclude-outbond-ports", "80", "is not known; there are waylay.io/inject, ");
    let many: Vec<_> = (1..200).map(|port| (2 * port).to_string()).collect();
    check(ports, &many.join(","), "do not fit into the kernel");
    // One that a selector asks for is known.
    let tier = Selector { annotations: map(&[("waylay.io/tier", "a")]), ..Selector::default() };
    let pods = Pods { select: vec![tier], ..pods() };
    enrolled(&workload(&[], &[("waylay.io/tier", "a")]), &pods, &intercept(Policy::default(), None));
}

#[test]
fn what_the_node_itself_sends_passes_unless_it_is_wanted() {
    let web = workload(&[(INJECT, "true")], &[]);
    let of = |from_node| enrolled(&web, &pods(), &intercept(Policy::default(), everything_inbound(from_node))).1;
    assert_eq!(of(FromNode::Pass), Some(policy(&[], &[rule("10.0.0.1/32", &[])])));
    assert_eq!(of(FromNode::Intercept), Some(Policy::default()));
}
