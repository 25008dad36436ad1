//! The decision as a table, and its invariants as properties.

use core::net::SocketAddr;

use proptest::prelude::*;

use super::*;

const HOUR_NS: u64 = 3_600_000_000_000;
const LOSS_NS: u64 = 2_000_000_000;

fn endpoint(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

fn settings(on_agent_loss: OnAgentLoss) -> Settings {
    let mut settings = Settings::new(on_agent_loss, LOSS_NS, 1, 1);
    settings.redirect_v4 = endpoint("127.0.0.1:15001");
    settings.redirect_v6 = endpoint("[::1]:15001");
    settings
}

fn everything() -> PortRules {
    let mut rules = PortRules::EMPTY;
    rules.include[0] = PortRange::ALL;
    rules
}

/// A connection that is redirected, but for what a case changes.
fn check(name: &str, change: impl FnOnce(&mut Facts<'_>, &mut PortRules, &mut Settings), expected: Verdict) {
    let (given_rules, given_settings) = (everything(), settings(OnAgentLoss::Allow));
    let (mut rules, mut settings) = (given_rules, given_settings);
    let mut facts = ours(&given_rules, &given_settings);
    change(&mut facts, &mut rules, &mut settings);
    let facts = Facts { rules: facts.rules.and(Some(&rules)), settings: &settings, ..facts };
    assert_eq!(decide(&facts), expected, "{name}");
}

fn ours<'a>(rules: &'a PortRules, settings: &'a Settings) -> Facts<'a> {
    Facts {
        protocol: 6,
        role: None,
        destination: endpoint("10.0.0.1:80"),
        socket_is_v6: false,
        refused_by_other: false,
        bound_to_device: false,
        redirecting: true,
        netns_enrolled: true,
        chosen: true,
        exempt: false,
        wildcard_exempt: false,
        rules: Some(rules),
        heartbeat_age_ns: 0,
        settings,
    }
}

#[test]
fn the_agent_is_its_process_and_only_while_it_lives() {
    let settings = settings(OnAgentLoss::Allow);
    let check = |protocol, caller, agent, age, expected| {
        let own = is_agents_own((protocol, caller), agent, &settings, || age);
        assert_eq!(own, expected, "{protocol} {caller} {agent} {age}");
    };
    check(6, 7, 7, 0, true);
    check(262, 7, 7, LOSS_NS, true);
    check(17, 7, 7, 0, false);
    check(6, 8, 7, 0, false);
    check(6, 7, 7, LOSS_NS + 1, false);
    check(6, 7, 7 | 1 << 32, 0, false);
    check(6, 0, 0, 0, false);
}

#[test]
fn the_verdict_is_the_first_reason_that_holds() {
    use Counter::*;
    use Verdict::{Pass, Redirect, Refuse};
    let v4 = endpoint("127.0.0.1:15001");
    let v6 = endpoint("[::1]:15001");
    check("plain", |_, _, _| {}, Redirect { to: v4, counter: RedirectedV4 });
    check(
        "IPv6",
        |f, _, _| (f.destination, f.socket_is_v6) = (endpoint("[2001:db8::1]:80"), true),
        Redirect { to: v6, counter: RedirectedV6 },
    );
    check(
        "mapped",
        |f, _, _| (f.destination, f.socket_is_v6) = (endpoint("[::ffff:10.0.0.1]:80"), true),
        Redirect { to: v4, counter: RedirectedV4Mapped },
    );
    check("multipath", |f, _, _| f.protocol = 262, Redirect { to: v4, counter: RedirectedV4 });
    check("connects again", |f, _, _| f.role = Some(Role::Client), Redirect { to: v4, counter: RedirectedV4 });
    check("UDP", |f, _, _| f.protocol = 17, Pass(PassedNotTcp));
    check("stamped", |f, _, _| f.role = Some(Role::Bypass), Pass(PassedBypass));
    check("stamped for the inbound side", |f, _, _| f.role = Some(Role::Inbound), Pass(PassedBypass));
    check("refused already", |f, _, _| f.refused_by_other = true, Pass(PassedRefusedByOther));
    check("draining", |f, _, _| f.redirecting = false, Pass(PassedDraining));
    check("foreign netns", |f, _, _| f.netns_enrolled = false, Pass(PassedNetns));
    check("not chosen", |f, _, _| f.chosen = false, Pass(PassedNotChosen));
    check("device", |f, _, _| f.bound_to_device = true, Pass(PassedBoundDevice));
    check(
        "link-local",
        |f, _, _| (f.destination, f.socket_is_v6) = (endpoint("[fe80::1]:80"), true),
        Pass(PassedLinkLocal),
    );
    check("own listener", |f, _, _| f.exempt = true, Pass(PassedOwnListener));
    check(
        "another machine's same port",
        |f, _, _| f.wildcard_exempt = true,
        Redirect { to: v4, counter: RedirectedV4 },
    );
    check(
        "own wildcard listener",
        |f, _, _| (f.destination, f.wildcard_exempt) = (endpoint("127.9.9.9:80"), true),
        Pass(PassedOwnListener),
    );
    check("no policy", |f, _, _| f.rules = None, Pass(PassedUnconfigured));
    check("excluded", |_, r, _| r.exclude[15] = PortRange { first: 80, last: 80 }, Pass(PassedExcluded));
    check(
        "beside the excluded",
        |_, r, _| r.exclude[0] = PortRange { first: 81, last: 90 },
        Redirect { to: v4, counter: RedirectedV4 },
    );
    check("not included", |_, r, _| *r = PortRules::EMPTY, Pass(PassedNotIncluded));
    check("just alive", |f, _, _| f.heartbeat_age_ns = LOSS_NS, Redirect { to: v4, counter: RedirectedV4 });
    check("lost, allow", |f, _, _| f.heartbeat_age_ns = HOUR_NS, Pass(PassedAgentLost));
    check(
        "lost, refuse",
        |f, _, s| (f.heartbeat_age_ns, *s) = (HOUR_NS, settings(OnAgentLoss::Refuse)),
        Refuse(RefusedAgentLost),
    );
    check(
        "lost, refuse, but excluded",
        |f, r, s| {
            (f.heartbeat_age_ns, *s) = (HOUR_NS, settings(OnAgentLoss::Refuse));
            r.exclude[0] = PortRange::ALL;
        },
        Pass(PassedExcluded),
    );
    check("no listener", |_, _, s| s.redirect_v4 = Endpoint::NONE, Pass(PassedNoListener));
}

#[test]
fn an_empty_range_matches_no_port() {
    for port in [0, 1, 80, u16::MAX] {
        assert!(!PortRange::EMPTY.contains(port));
        assert!(PortRange::ALL.contains(port));
    }
}

proptest! {
    #[test]
    fn a_port_is_ruled_by_any_of_the_ranges(bounds: [(u16, u16); PORT_RANGES], port: u16) {
        let ranges = bounds.map(|(first, last)| PortRange { first, last });
        let rules = PortRules { include: ranges, ..PortRules::EMPTY };
        prop_assert_eq!(rules.includes(port), ranges.iter().any(|range| range.contains(port)));
        for edge in bounds {
            prop_assert_eq!(rules.includes(edge.0), ranges.iter().any(|range| range.contains(edge.0)));
            prop_assert_eq!(rules.includes(edge.1), ranges.iter().any(|range| range.contains(edge.1)));
        }
    }

    /// Whatever the hook has looked up: it denies only a lost agent's connections and only under `refuse`, it never
    /// redirects a stamped socket, an exempt or an excluded destination, and always to its own family's listener.
    #[test]
    fn a_hook_never_denies_or_redirects_by_accident(
        protocol in prop_oneof![Just(6_u32), Just(17), Just(262), any::<u32>()],
        role in prop_oneof![Just(None), Just(Some(Role::Client)), Just(Some(Role::Accepted)), Just(Some(Role::Bypass)),
            Just(Some(Role::Inbound))],
        destination: SocketAddr,
        flags: [bool; 8],
        include: (u16, u16),
        exclude: (u16, u16),
        heartbeat_age_ns in prop_oneof![Just(0), Just(LOSS_NS), Just(LOSS_NS + 1), any::<u64>()],
    ) {
        let settings = settings(if flags[7] { OnAgentLoss::Refuse } else { OnAgentLoss::Allow });
        let mut rules = PortRules::EMPTY;
        rules.include[3] = PortRange { first: include.0, last: include.1 };
        rules.exclude[4] = PortRange { first: exclude.0, last: exclude.1 };
        let facts = Facts {
            protocol,
            role,
            destination: destination.into(),
            socket_is_v6: flags[0],
            refused_by_other: flags[1],
            bound_to_device: flags[2],
            redirecting: flags[3],
            netns_enrolled: flags[4],
            chosen: true,
            exempt: flags[5],
            wildcard_exempt: flags[6],
            rules: Some(&rules),
            heartbeat_age_ns,
            settings: &settings,
        };
        let lost = heartbeat_age_ns > LOSS_NS;
        match decide(&facts) {
            Verdict::Refuse(_) => {
                prop_assert!(lost && flags[7]);
                prop_assert!(rules.includes(destination.port()) && !rules.excludes(destination.port()));
            }
            Verdict::Redirect { to, .. } => {
                prop_assert!(!lost && !matches!(role, Some(Role::Bypass | Role::Inbound)) && protocol != 17 && !facts.exempt);
                prop_assert!(facts.redirecting && facts.netns_enrolled && !facts.refused_by_other);
                prop_assert!(rules.includes(destination.port()) && !rules.excludes(destination.port()));
                prop_assert_eq!(to.ip().is_v4(), facts.destination.ip().is_v4());
            }
            Verdict::Pass(_) => {}
        }
    }
}
