//! `dispatch: kernel` with a hash policy: who connects from the same address, or out of the same network namespace, stays with
//! an endpoint, and whoever else's endpoint fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::Value;
use waylay_tests::pods::Node;
use waylay_tests::{Agent, Origin, World, eventually};

/// Port 8080 of any address is dispatched to four endpoints below `address`.
fn config(intercept: &str, address: &str, more: &str) -> String {
    let endpoints: Vec<_> = (9001..=9004).map(|port| format!("'{address}:{port}'")).collect();
    let listener = "bind_to_port: false, dispatch: kernel, default_filter_chain: {tcp_proxy: {cluster: web, hash_policy: \
                    [{source_ip: {}}]}}";
    format!(
        "
intercept: {{cgroup: '@CGROUP@'{intercept}}}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - {{name: web4, address: '0.0.0.0:8080', {listener}}}
  - {{name: web6, address: '[::]:8080', {listener}}}
clusters:
  - {{name: passthrough, type: original_dst}}
  - {{name: web, lb_policy: maglev, endpoints: [{}]{more}}}
",
        endpoints.join(", ")
    )
}

/// Asks port 8080 once for each of `sources`, which are Python expressions of what to bind to, or None; prints a line each:
/// the source and who answered.
fn ask(target: &str, sources: &str) -> String {
    format!(
        "import socket
for source in {sources}:
    s = socket.socket(socket.AF_INET6 if source and ':' in source else socket.AF_INET)
    s.settimeout(10)
    if source: s.bind((source, 0))
    s.connect(('::ffff:{target}' if source and ':' in source else '{target}', 8080))
    s.sendall(b'GET /hello HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
    print(source, rest(s).decode().splitlines()[-1].split()[0])
    s.close()
"
    )
}

/// Who answered each source.
fn answers(printed: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut answers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (source, origin) in printed.lines().filter_map(|line| line.split_once(' ')) {
        answers.entry(source).or_default().insert(origin);
    }
    answers
}

/// The only one who answered each source.
#[track_caller]
fn stuck(printed: &str) -> BTreeMap<String, String> {
    let only = |(source, origins): (&str, BTreeSet<&str>)| {
        assert_eq!(origins.len(), 1, "{source} is answered by {origins:?}");
        (source.to_owned(), origins.into_iter().collect())
    };
    answers(printed).into_iter().map(only).collect()
}

fn origins(world: &World, ports: std::ops::RangeInclusive<u16>) -> Vec<Arc<Origin>> {
    ports.map(|port| world.origin(&port.to_string(), &format!("127.0.0.1:{port}"))).collect()
}

/// The fourth endpoint, until it is dropped.
fn fourth(world: &World) -> Origin {
    world.inside(|| Origin::serve("9004", TcpListener::bind("127.0.0.1:9004").expect("binding an origin")))
}

const BOUND: &str = "[f'127.77.5.{n}' for n in range(1, 61)]";

/// The addresses of the endpoints that this agent's tables hold.
fn in_table(agent: &mut Agent) -> String {
    let maps = agent.cli(&["maps", "dispatch", "-o", "json"]).success();
    let maps: Value = serde_json::from_str(&maps).expect("JSON");
    let pid = agent.child().pid();
    let own = maps.as_array().into_iter().flatten().find(|instance| instance["agent_pid"] == pid);
    own.expect("the agent's instance")["dispatch"].to_string()
}

#[test]
fn one_namespace_stays_with_an_endpoint_and_bound_addresses_each_with_their_own() {
    let world = World::new();
    let _origins = origins(&world, 9001..=9004);
    let mut agent = world.agent(&config("", "127.0.0.1", ""));
    assert!(in_table(&mut agent).contains("\"by hash\""), "{}", in_table(&mut agent));
    let unbound = stuck(&world.python(&ask("127.77.0.1", "[None] * 30")));
    assert_eq!(unbound.len(), 1);

    let bound = stuck(&world.python(&ask("127.77.0.1", &format!("{BOUND} * 2"))));
    let used: BTreeSet<_> = bound.values().collect();
    assert!(bound.len() == 60 && used.len() == 4, "{bound:?}");
    let most = used.iter().map(|origin| bound.values().filter(|other| *other == *origin).count()).max();
    assert!(most < Some(35), "shared evenly, more or less: {bound:?}");

    // The same address is the same client, whatever socket it uses.
    let mapped = stuck(&world.python(&ask("127.77.0.1", &BOUND.replace("127.77", "::ffff:127.77"))));
    for (source, origin) in &bound {
        assert_eq!(mapped.get(&format!("::ffff:{source}")), Some(origin), "{source}");
    }
    let records = agent.wait_records("connection", 30 + 120 + 60);
    assert!(records.iter().all(|record| record["dispatch"] == "kernel"));

    // `explain` draws as the kernel does.
    for (source, origin) in bound.iter().take(5) {
        let file = agent.config().to_str().expect("UTF-8").to_owned();
        let src = format!("{source}:0");
        let said =
            agent.cli(&["explain", "-c", &file, "--dst", "127.77.0.1:8080", "--src", &src, "http://x/"]).success();
        let expected = format!("dispatched in the kernel to 127.0.0.1:{origin}:");
        assert!(said.contains(&expected), "{expected} of {source} in\n{said}");
    }
    agent.stop();
}

#[test]
fn only_those_whose_endpoint_fails_move_and_they_come_back_with_it() {
    let world = World::new();
    let _origins = origins(&world, 9001..=9003);
    let fails = fourth(&world);
    let checks = ", health_checks: [{tcp: {}, interval: 200ms, unhealthy_threshold: 1, healthy_threshold: 1}]";
    let mut agent = world.agent(&config("", "127.0.0.1", checks));
    let healthy = |agent: &Agent| agent.metric("waylay_cluster_membership_healthy{cluster=\"web\"}");
    eventually("all are healthy", || healthy(&agent) == 4.0);
    let before = stuck(&world.python(&ask("127.77.0.1", BOUND)));

    drop(fails);
    eventually("the fourth is out", || healthy(&agent) == 3.0 && !in_table(&mut agent).contains("127.0.0.1:9004"));
    let without = stuck(&world.python(&ask("127.77.0.1", BOUND)));
    let stayed = before.iter().filter(|(source, origin)| without.get(*source) == Some(origin)).count();
    let its_own = before.values().filter(|origin| *origin == "9004").count();
    assert!(its_own > 0 && without.values().all(|origin| origin != "9004"), "{without:?}");
    // Maglev moves a few per cent of the others.
    assert!(stayed + its_own >= 52, "{stayed} of {} stayed:\n{before:?}\n{without:?}", 60 - its_own);

    let _back = fourth(&world);
    eventually("it is in again", || healthy(&agent) == 4.0 && in_table(&mut agent).contains("127.0.0.1:9004"));
    assert_eq!(stuck(&world.python(&ask("127.77.0.1", BOUND))), before);
    agent.stop();
}

#[test]
fn each_pod_stays_with_an_endpoint_of_its_own() {
    let world = World::new();
    let node = Node::new(&world);
    let server = node.pod("server", &[]);
    let _origins: Vec<_> =
        (9001..=9004).map(|port| server.origin(&port.to_string(), &format!("0.0.0.0:{port}"))).collect();
    let names: Vec<_> = (0..10).map(|number| format!("client-{number}")).collect();
    let pods: Vec<_> = names.iter().map(|name| node.pod(name, &[("waylay.io/inject", "true")])).collect();
    let intercept = format!(", pods: {{runtimes: ['{}'], poll_interval: 1s}}", node.runtime());
    let agent = world.agent(&config(&intercept, &server.ip.to_string(), ""));
    eventually("all pods are enrolled", || {
        agent.cli(&["pods"]).success().lines().filter(|line| line.contains("enrolled")).count() >= pods.len()
    });
    let target = server.ip.to_string();
    let chosen: Vec<_> =
        pods.iter().map(|pod| stuck(&pod.python(&ask(&target, "[None] * 8"))).remove("None")).collect();
    let used: BTreeSet<_> = chosen.iter().collect();
    assert!(used.len() > 1, "all pods go to {used:?}");
    let records = agent.wait_records("connection", 80);
    assert!(records.iter().all(|record| record["dispatch"] == "kernel"), "{:#}", records[0]);
    agent.stop();
}

/// More listeners than there is room for: the last one is the agent's, until another one has gone.
#[test]
fn a_listener_that_found_no_room_is_dispatched_as_soon_as_there_is_some() {
    let world = World::new();
    let origin = world.origin("9001", "127.0.0.1:9001");
    let config = |numbers: std::ops::RangeInclusive<u8>| {
        let chain = "default_filter_chain: {tcp_proxy: {cluster: web, hash_policy: [{source_ip: {}}]}}";
        let of = |number: u8| {
            format!(
                "  - {{name: l{number}, address: '127.77.6.{number}:8080', bind_to_port: false, dispatch: kernel, {chain}}}\n"
            )
        };
        format!(
            "intercept: {{cgroup: '@CGROUP@'}}\nlisteners:\n  - {{name: all, address: 127.0.0.1:15001, use_original_dst: true, \
             default_filter_chain: {{tcp_proxy: {{cluster: web}}}}}}\n{}clusters: [{{name: web, lb_policy: maglev, endpoints: \
             ['127.0.0.1:9001']}}]\n",
            numbers.map(of).collect::<String>()
        )
    };
    // 32,768 slots hold 32 slices of 1,021.
    let agent = world.agent(&config(1..=33));
    let asked = |last: u8, dispatch: &str, records: usize| {
        world.python(&ask(&format!("127.77.6.{last}"), "[None]"));
        let records = agent.wait_records("connection", records);
        records.last().is_some_and(|record| record["dispatch"] == dispatch)
    };
    assert!(asked(33, "agent", 1), "there is no room for it");
    assert!(asked(32, "kernel", 2));
    agent.reload(&world, &config(2..=33));
    let mut records = 2;
    eventually("there is room for it", || {
        records += 1;
        asked(33, "kernel", records)
    });
    assert_eq!(origin.connections(), records);
    agent.stop();
}
