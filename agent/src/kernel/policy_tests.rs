//! The compiled policy against a naive reading of the rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn rule(cidr: &str, ports: &[RangeInclusive<u16>]) -> Rule {
    let cidr = (!cidr.is_empty()).then(|| cidr.parse().unwrap());
    Rule { cidr, ports: ports.to_vec() }
}

fn compiled_says(compiled: &Compiled, ip: IpAddr, port: u16) -> bool {
    let rules = compiled.rules_at(ip).expect("a root for each family");
    rules.includes(port) && !rules.excludes(port)
}

/// What the user wrote, read naively.
fn rules_say(policy: &Policy, ip: IpAddr, port: u16) -> bool {
    let ip = ip.to_canonical();
    let matches = |rule: &Rule| {
        let mapped = rule.cidr.is_some_and(|net| Prefix::from(net).is_v4());
        let inside = match rule.cidr {
            None => true,
            Some(IpNet::V6(net)) if mapped => match ip {
                IpAddr::V4(ip) => net.contains(&ip.to_ipv6_mapped()),
                IpAddr::V6(_) => false,
            },
            Some(net) => net.contains(&ip),
        };
        inside && (rule.ports.is_empty() || rule.ports.iter().any(|range| range.contains(&port)))
    };
    (policy.include.is_empty() || policy.include.iter().any(matches)) && !policy.exclude.iter().any(matches)
}

#[test]
fn a_rule_still_holds_within_a_longer_prefix() {
    let policy = Policy {
        include: vec![rule("10.0.0.0/8", &[80..=80]), rule("10.1.0.0/16", &[443..=443])],
        exclude: vec![rule("10.1.2.0/24", &[443..=443]), rule("", &[22..=22])],
    };
    let compiled = Compiled::new(&policy).unwrap();
    let check = |ip: &str, port: u16, expected: bool| {
        assert_eq!(compiled_says(&compiled, ip.parse().unwrap(), port), expected, "{ip} {port}");
    };
    check("10.9.9.9", 80, true);
    check("10.9.9.9", 443, false);
    check("10.1.9.9", 80, true);
    check("10.1.9.9", 443, true);
    check("10.1.2.9", 80, true);
    check("10.1.2.9", 443, false);
    check("11.0.0.1", 80, false);
    check("::ffff:10.1.9.9", 443, true);
    check("2001:db8::1", 80, false);
}

#[test]
fn an_empty_policy_intercepts_everything_of_both_families() {
    let compiled = Compiled::new(&Policy::default()).unwrap();
    assert!(compiled.intercepts_v4() && compiled.intercepts_v6());
    assert_eq!(compiled.nodes().len(), 2);
}

#[test]
fn a_family_is_out_of_scope_when_it_is_excluded_or_not_included() {
    let excluded = Policy { exclude: vec![rule("::/0", &[])], ..Policy::default() };
    assert!(!Compiled::new(&excluded).unwrap().intercepts_v6());
    assert!(Compiled::new(&excluded).unwrap().intercepts_v4());
    let not_included = Policy { include: vec![rule("10.0.0.0/8", &[])], ..Policy::default() };
    assert!(!Compiled::new(&not_included).unwrap().intercepts_v6());
    let hole =
        Policy { include: vec![rule("2001:db8::/32", &[1..=100])], exclude: vec![rule("::/0", &[1..=49, 51..=200])] };
    assert!(Compiled::new(&hole).unwrap().intercepts_v6());
}

#[test]
fn a_rule_for_all_of_ipv6_says_nothing_about_ipv4() {
    let policy = Policy { exclude: vec![rule("::/0", &[])], ..Policy::default() };
    let compiled = Compiled::new(&policy).unwrap();
    assert!(compiled_says(&compiled, "127.0.0.1".parse().unwrap(), 80));
    assert!(!compiled_says(&compiled, "::1".parse().unwrap(), 80));
}

#[test]
fn too_many_separate_ranges_are_an_error_that_names_the_prefix() {
    let odd: Vec<_> = (0..=PORT_RANGES as u16).map(|n| n * 2..=n * 2).collect();
    let policy = Policy { include: vec![rule("10.0.0.0/8", &odd)], ..Policy::default() };
    let error = Compiled::new(&policy).unwrap_err();
    assert_eq!(
        error.to_string(),
        "include rules give 10.0.0.0/8 17 separate port ranges, at most 16 are possible: merge some"
    );
    let adjacent: Vec<_> = (0..=PORT_RANGES as u16).map(|n| n..=n).collect();
    let policy = Policy { include: vec![rule("10.0.0.0/8", &adjacent)], ..Policy::default() };
    assert!(Compiled::new(&policy).is_ok());
}

/// Addresses and prefixes from a small space, so that they meet.
fn any_ip() -> impl Strategy<Value = IpAddr> {
    let byte = || prop_oneof![Just(0_u8), Just(1), Just(128), Just(255)];
    prop_oneof![
        (byte(), byte(), byte()).prop_map(|(a, b, c)| IpAddr::from(Ipv4Addr::new(10, a, b, c))),
        (byte(), byte()).prop_map(|(a, b)| Ipv4Addr::new(10, a, 0, b).to_ipv6_mapped().into()),
        (byte(), byte())
            .prop_map(|(a, b)| { IpAddr::from(Ipv6Addr::new(0xfd00, u16::from(a), 0, 0, 0, 0, 0, u16::from(b),)) }),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let ports = prop::collection::vec((0_u16..12, 0_u16..12).prop_map(|(a, b)| a..=b), 0..3);
    let cidr = (any_ip(), 0_u8..=128).prop_map(|(ip, len)| {
        let len = if ip.is_ipv4() { len % 33 } else { len };
        IpNet::new(ip, len).unwrap()
    });
    (prop::option::weighted(0.9, cidr), ports).prop_map(|(cidr, ports)| Rule { cidr, ports })
}

/// A mapped network shorter than /96 is an IPv6 network that no IPv4 connection is in; nobody writes one.
fn sane(rule: &Rule) -> bool {
    rule.cidr.is_none_or(|net| match net {
        IpNet::V6(net) => net.addr().to_ipv4_mapped().is_none() || net.prefix_len() >= 96,
        IpNet::V4(_) => true,
    })
}

proptest! {
    #[test]
    fn the_longest_prefix_alone_says_what_all_rules_say(
        include in prop::collection::vec(any_rule().prop_filter("sane", sane), 0..6),
        exclude in prop::collection::vec(any_rule().prop_filter("sane", sane), 0..6),
        asked in prop::collection::vec((any_ip(), 0_u16..14), 1..20),
    ) {
        let policy = Policy { include, exclude };
        let compiled = Compiled::new(&policy).unwrap();
        for (ip, port) in asked {
            prop_assert_eq!(compiled_says(&compiled, ip, port), rules_say(&policy, ip, port), "{} {}", ip, port);
        }
    }

    #[test]
    fn a_family_that_is_intercepted_anywhere_is_reported(
        include in prop::collection::vec(any_rule().prop_filter("sane", sane), 0..4),
        exclude in prop::collection::vec(any_rule().prop_filter("sane", sane), 0..4),
        ip in any_ip(),
        port in 0_u16..14,
    ) {
        let policy = Policy { include, exclude };
        let compiled = Compiled::new(&policy).unwrap();
        if rules_say(&policy, ip, port) {
            let v4 = ip.to_canonical().is_ipv4();
            let reported = if v4 { compiled.intercepts_v4() } else { compiled.intercepts_v6() };
            prop_assert!(reported);
        }
    }
}

#[test]
fn policies_overlap_where_both_redirect_the_same_destination() {
    let rule = |cidr: Option<&str>, ports: &[u16]| Rule {
        cidr: cidr.map(|cidr| cidr.parse().unwrap()),
        ports: ports.iter().map(|port| *port..=*port).collect(),
    };
    let all = || Policy::default();
    let only = |rule: Rule| Policy { include: vec![rule], exclude: vec![] };
    let not = |rule: Rule| Policy { include: vec![], exclude: vec![rule] };
    let ten = Some("10.0.0.0/8");
    for (a, b, expected) in [
        (all(), all(), true),
        (all(), only(rule(ten, &[80])), true),
        (only(rule(None, &[80])), only(rule(None, &[443])), false),
        (only(rule(ten, &[])), only(rule(Some("10.1.0.0/16"), &[80])), true),
        (only(rule(ten, &[])), only(rule(Some("11.0.0.0/8"), &[])), false),
        (only(rule(ten, &[])), only(rule(Some("::/0"), &[])), false),
        (not(rule(ten, &[])), only(rule(ten, &[])), false),
        (not(rule(ten, &[80])), only(rule(ten, &[80, 81])), true),
    ] {
        let (a, b) = (Compiled::new(&a).unwrap(), Compiled::new(&b).unwrap());
        assert_eq!(overlap(a.nodes(), b.nodes()), expected, "{a:?} {b:?}");
        assert_eq!(overlap(b.nodes(), a.nodes()), expected, "{b:?} {a:?}");
    }
}
