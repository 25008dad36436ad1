//! `dispatch: kernel`: connections go to an endpoint without meeting the agent, and are accounted for all the same.

use std::sync::Arc;

use serde_json::Value;
use waylay_tests::world::Side;
use waylay_tests::{Agent, Child, Origin, World, eventually};

/// Port 8080 of any address is dispatched to `web`, except at one address, whose listener is the agent's.
fn config(listener: &str, clusters: &str) -> String {
    format!(
        "
intercept: {{cgroup: '@CGROUP@'}}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - {{name: web4, address: '0.0.0.0:8080', bind_to_port: false, {listener}}}
  - {{name: web6, address: '[::]:8080', bind_to_port: false, {listener}}}
  - name: exact
    address: 127.77.0.9:8080
    bind_to_port: false
    default_filter_chain: {{tcp_proxy: {{cluster: web}}}}
clusters:
  - {{name: passthrough, type: original_dst}}
{clusters}
"
    )
}

const TO_WEB: &str = "dispatch: kernel, default_filter_chain: {tcp_proxy: {cluster: web}}";

/// Nine connections to 9001 and 9002, which stand 1 to 2.
const TWO: &str = "  - {name: web, endpoints: ['127.0.0.1:9001', {address: '127.0.0.1:9002', weight: 2}]}";

fn origins(world: &World) -> [Arc<Origin>; 2] {
    [world.origin("one", "127.0.0.1:9001"), world.origin("two", "127.0.0.1:9002")]
}

/// Asks `target` so often, with a socket of `family` each; prints who answered, and the peer that the socket sees.
fn ask(family: &str, target: &str, times: usize) -> String {
    format!(
        "import os, socket
os.sched_setaffinity(0, {{0}})
for i in range({times}):
    s = socket.socket(socket.{family}, socket.SOCK_STREAM)
    s.settimeout(10)
    s.connect(('{target}', 8080))
    s.sendall(b'GET /hello HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
    print(rest(s).decode().splitlines()[-1].split()[0], s.getpeername()[0], s.getpeername()[1])
    s.close()
"
    )
}

fn answers(printed: &str, of: &str) -> usize {
    printed.lines().filter(|line| line.starts_with(of)).count()
}

/// A Python program outside that serves one connection at port 9001 by `handler(conn)`.
fn server(world: &World, handler: &str) -> Child {
    let program = format!(
        "import socket, struct, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('127.0.0.1', 9001))
listener.listen()
print('listening', flush=True)
conn, peer = listener.accept()
def everything(s):
    data = b''
    while got := s.recv(65536): data += got
    return data
{handler}
"
    );
    let child = world.spawn(Side::Outside, "python3", &["-u", "-c", &program]);
    child.wait_for("listening");
    child
}

const ONE: &str = "  - {name: web, endpoints: ['127.0.0.1:9001']}";

/// One connection of the client program `client` to the server program `handler`; its record.
fn one_connection(handler: &str, client: &str) -> Value {
    let world = World::new();
    let _server = server(&world, handler);
    let agent = world.agent(&config(TO_WEB, ONE));
    world.python(&format!("import socket, struct, time\ns = socket.create_connection(('127.77.0.1', 8080))\n{client}"));
    let record = agent.wait_records("connection", 1).remove(0);
    assert_eq!(record["dispatch"], "kernel", "{record:#}");
    agent.stop();
    record
}

fn bytes(record: &Value) -> (u64, u64) {
    let number = |name: &str| record[name].as_u64().expect("a number");
    (number("bytes_received"), number("bytes_sent"))
}

/// What this agent's instance dispatches, as `waylay maps` shows it.
fn dispatched(agent: &mut Agent) -> String {
    let maps = agent.cli(&["maps", "dispatch", "-o", "json"]).success();
    let maps: Value = serde_json::from_str(&maps).expect("JSON");
    let pid = agent.child().pid();
    let own = maps.as_array().into_iter().flatten().find(|instance| instance["agent_pid"] == pid);
    own.expect("the agent's instance")["dispatch"].to_string()
}

#[track_caller]
fn kernel_counter(agent: &Agent, name: &str) -> f64 {
    agent.metric(&format!("waylay_kernel_{name}"))
}

#[test]
fn connections_go_to_the_endpoints_by_weight_and_leave_records_and_statistics() {
    let world = World::new();
    let [one, two] = origins(&world);
    let agent = world.agent(&config(TO_WEB, TWO));
    let printed = world.python(&ask("AF_INET", "127.77.0.1", 9));
    assert_eq!((answers(&printed, "one"), answers(&printed, "two")), (3, 6), "{printed}");
    assert!(
        printed.lines().all(|line| line.ends_with(" 127.77.0.1 8080")),
        "getpeername is what was dialled: {printed}"
    );
    let records = agent.wait_records("connection", 9);
    for record in &records {
        assert_eq!((&record["dispatch"], &record["original_dst"]), (&"kernel".into(), &"127.77.0.1:8080".into()));
        assert_eq!((&record["listener"], &record["filter_chain"]), (&"web4".into(), &"default".into()));
        assert_eq!((&record["upstream_cluster"], &record["response_flags"]), (&"web".into(), &"-".into()));
        assert_eq!(record["comm"], "python3");
        assert_eq!(bytes(record).0, 51, "{record:#}");
        assert!(record["upstream_rtt_us"].as_u64().is_some_and(|rtt| rtt > 0), "{record:#}");
        assert!(!record["downstream_remote_address"].as_str().expect("text").ends_with(":15001"));
    }
    let to_two = records.iter().filter(|record| record["upstream_host"] == "127.0.0.1:9002").count();
    assert_eq!((to_two, one.connections(), two.connections()), (6, 3, 6));
    assert_eq!(agent.metric("waylay_listener_downstream_cx_total{listener=\"web4\"}"), 9.0);
    assert_eq!(agent.metric("waylay_listener_downstream_cx_active{listener=\"web4\"}"), 0.0);
    assert_eq!(agent.metric("waylay_cluster_upstream_cx_total{cluster=\"web\"}"), 9.0);
    assert_eq!(agent.metric("waylay_cluster_upstream_cx_tx_bytes_total{cluster=\"web\"}"), 9.0 * 51.0);
    assert_eq!(kernel_counter(&agent, "dispatched_v4"), 9.0);
    assert_eq!(kernel_counter(&agent, "redirected_v4"), 0.0);
    agent.stop();
}

#[test]
fn every_kind_of_socket_goes_to_an_endpoint_of_the_family_that_it_dialled() {
    let world = World::new();
    let [_one, _two] = origins(&world);
    let _six = world.origin("six", "[::1]:9001");
    let both = "  - {name: web, endpoints: ['127.0.0.1:9001']}\n  - {name: six, endpoints: ['[::1]:9001']}";
    let to_six = TO_WEB.replace("web", "six");
    let config = config(TO_WEB, both);
    let config = config.replace(
        &format!("'[::]:8080', bind_to_port: false, {TO_WEB}"),
        &format!("'[::]:8080', bind_to_port: false, {to_six}"),
    );
    let agent = world.agent(&config);
    for (family, target, answer) in
        [("AF_INET", "127.77.0.1", "one"), ("AF_INET6", "::ffff:127.77.0.1", "one"), ("AF_INET6", "::1", "six")]
    {
        assert_eq!(world.python(&ask(family, target, 1)), format!("{answer} {target} 8080\n"));
    }
    let records = agent.wait_records("connection", 3);
    let hosts: Vec<_> = records.iter().map(|record| record["upstream_host"].as_str().expect("text")).collect();
    assert_eq!(hosts, ["127.0.0.1:9001", "127.0.0.1:9001", "[::1]:9001"]);
    for (counter, value) in [("dispatched_v4", 1.0), ("dispatched_v4_mapped", 1.0), ("dispatched_v6", 1.0)] {
        assert_eq!(kernel_counter(&agent, counter), value, "{counter}");
    }
    agent.stop();
}

#[test]
fn an_endpoint_of_another_family_is_reached_through_the_agent() {
    let world = World::new();
    let _one = world.origin("one", "127.0.0.1:9001");
    let agent = world.agent(&config(TO_WEB, ONE));
    assert_eq!(world.python(&ask("AF_INET6", "::1", 1)), "one ::1 8080\n");
    let record = &agent.wait_records("connection", 1)[0];
    assert_eq!((&record["dispatch"], &record["listener"]), (&"agent".into(), &"web6".into()));
    assert_eq!(kernel_counter(&agent, "dispatch_other_family"), 1.0);
    agent.stop();
}

#[test]
fn a_listener_of_the_agent_at_an_exact_address_keeps_its_connections() {
    let world = World::new();
    let _one = world.origin("one", "127.0.0.1:9001");
    let agent = world.agent(&config(TO_WEB, ONE));
    assert_eq!(world.python(&ask("AF_INET", "127.77.0.9", 1)), "one 127.77.0.9 8080\n");
    let record = &agent.wait_records("connection", 1)[0];
    assert_eq!((&record["dispatch"], &record["listener"]), (&"agent".into(), &"exact".into()));
    agent.stop();
}

#[test]
fn weighted_clusters_share_connections_and_an_original_dst_cluster_lets_them_go_on() {
    let world = World::new();
    let [one, two] = origins(&world);
    let there = world.origin("there", "127.77.0.1:8080");
    let clusters = "  - {name: web, endpoints: ['127.0.0.1:9001']}\n  - {name: new, endpoints: ['127.0.0.1:9002']}";
    let weighted = "dispatch: kernel, filter_chains: [{tcp_proxy: {weighted_clusters: [{name: web, weight: 50}, \
                    {name: new, weight: 25}, {name: passthrough, weight: 25}]}}]";
    let agent = world.agent(&config(weighted, clusters));
    world.python(&ask("AF_INET", "127.77.0.1", 400));
    // Of 400 draws each lies within five standard deviations.
    for (origin, expected) in [(&one, 200_usize), (&two, 100), (&there, 100)] {
        assert!(origin.connections().abs_diff(expected) <= 50, "{} of {expected}", origin.connections());
    }
    let records = agent.wait_records("connection", 400);
    let passed: Vec<_> = records.iter().filter(|record| record["upstream_cluster"] == "passthrough").collect();
    assert_eq!(passed.len(), there.connections());
    assert!(passed.iter().all(|record| record["upstream_host"] == "127.77.0.1:8080" && record["dispatch"] == "kernel"));
    assert_eq!(kernel_counter(&agent, "dispatched_original_dst") as usize, passed.len());
    agent.stop();
}

#[test]
fn an_unhealthy_endpoint_is_not_chosen_and_without_any_the_agent_answers() {
    let world = World::new();
    let two = world.origin("two", "127.0.0.1:9002");
    let checked = "  - {name: web, endpoints: ['127.0.0.1:9001', '127.0.0.1:9002'], health_checks: [{tcp: {}, interval: 200ms, \
                   unhealthy_threshold: 1, healthy_threshold: 1}]}";
    let mut agent = world.agent(&config(TO_WEB, checked));
    let healthy = |agent: &Agent| agent.metric("waylay_cluster_membership_healthy{cluster=\"web\"}");
    eventually("the endpoint that nobody serves is out", || {
        healthy(&agent) == 1.0 && !dispatched(&mut agent).contains("127.0.0.1:9001")
    });
    let printed = world.python(&ask("AF_INET", "127.77.0.1", 6));
    assert_eq!(answers(&printed, "two"), 6, "{printed}");

    let one = world.origin("one", "127.0.0.1:9001");
    eventually("it is in again", || healthy(&agent) == 2.0 && dispatched(&mut agent).contains("127.0.0.1:9001"));
    let before = one.connections();
    let printed = world.python(&ask("AF_INET", "127.77.0.1", 6));
    assert_eq!(answers(&printed, "one"), 3, "{printed}");
    assert!(one.connections() >= before + 3);
    drop((one, two));
    agent.stop();
}

#[test]
fn bytes_are_exact_whoever_ends_first() {
    // The client ends all at once.
    let record = one_connection("everything(conn)", "s.sendall(b'x' * 300_000)\ns.close()");
    assert_eq!((bytes(&record), &record["response_flags"]), ((300_000, 0), &"-".into()));
    // The client ends its side, then hears the rest.
    let half = "s.sendall(b'x' * 10)\ns.shutdown(socket.SHUT_WR)\nassert len(rest(s)) == 700_000\ns.close()";
    let record = one_connection("everything(conn)\nconn.sendall(b'y' * 700_000)\nconn.close()", half);
    assert_eq!((bytes(&record), &record["response_flags"]), ((10, 700_000), &"-".into()));
    // The endpoint ends first.
    let record = one_connection("conn.sendall(b'bye')\nconn.close()", "assert rest(s) == b'bye'\ns.close()");
    assert_eq!((bytes(&record), &record["response_flags"]), ((0, 3), &"-".into()));
    // The endpoint ends its side, and hears the rest.
    let server = "conn.sendall(b'bye')\nconn.shutdown(socket.SHUT_WR)\neverything(conn)";
    let record = one_connection(server, "assert rest(s) == b'bye'\ns.sendall(b'z' * 5)\ns.close()");
    assert_eq!((bytes(&record), &record["response_flags"]), ((5, 3), &"-".into()));
    // Nobody says anything.
    let record = one_connection("everything(conn)", "s.close()");
    assert_eq!(bytes(&record), (0, 0));
}

#[test]
fn a_reset_and_a_refusal_are_told() {
    let reset =
        "conn.recv(3)\nconn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\nconn.close()";
    let client = "s.sendall(b'abc')\ntry: s.recv(1)\nexcept ConnectionResetError: pass\ns.close()";
    let record = one_connection(reset, client);
    assert_eq!((bytes(&record), &record["response_flags"]), ((3, 0), &"UC".into()));

    let world = World::new();
    let agent = world.agent(&config(TO_WEB, ONE));
    let printed = world.python(
        "import socket
try: socket.create_connection(('127.77.0.1', 8080))
except ConnectionRefusedError: print('refused')
",
    );
    assert_eq!(printed, "refused\n", "the endpoint's own error");
    let record = &agent.wait_records("connection", 1)[0];
    assert_eq!((&record["response_flags"], &record["upstream_host"]), (&"UF".into(), &"127.0.0.1:9001".into()));
    assert_eq!(agent.metric("waylay_cluster_upstream_cx_connect_fail{cluster=\"web\"}"), 1.0);
    assert_eq!(agent.metric("waylay_cluster_upstream_cx_active{cluster=\"web\"}"), 0.0);
    agent.stop();
}

#[test]
fn a_socket_that_connects_again_has_a_record_for_each_connection() {
    let world = World::new();
    let [_one, _two] = origins(&world);
    let agent = world.agent(&config(TO_WEB, TWO));
    world.python(
        "import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket()
for target in ('127.77.0.1', '127.77.0.2', '127.77.0.9'):
    s.connect((target, 8080))
    s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')
    s.recv(65536)
    assert s.getpeername()[0] == target
    unspec = struct.pack('H14x', socket.AF_UNSPEC)
    assert libc.connect(s.fileno(), unspec, 16) == 0
",
    );
    let records = agent.wait_records("connection", 3);
    let mut seen: Vec<_> =
        records.iter().map(|record| (record["original_dst"].to_string(), record["dispatch"].to_string())).collect();
    seen.sort();
    let expected = [("127.77.0.1", "kernel"), ("127.77.0.2", "kernel"), ("127.77.0.9", "agent")];
    assert_eq!(seen, expected.map(|(target, dispatch)| (format!("\"{target}:8080\""), format!("\"{dispatch}\""))));
    agent.stop();
}

#[test]
fn a_reload_changes_what_comes_and_leaves_what_is_there_and_the_end_of_the_agent_does_so_too() {
    let world = World::new();
    let [_one, _two] = origins(&world);
    let mut agent = world.agent(&config(TO_WEB, ONE));
    let client = world.spawn_python(
        "import socket, time
s = socket.create_connection(('127.77.0.1', 8080))
print('connected', flush=True)
time.sleep(60)
",
        &[],
    );
    client.wait_for("connected");
    let active = |agent: &Agent| agent.metric("waylay_listener_downstream_cx_active{listener=\"web4\"}");
    eventually("it is counted as open", || active(&agent) == 1.0);

    agent.reload(&world, &config(TO_WEB, "  - {name: web, endpoints: ['127.0.0.1:9002']}"));
    assert!(world.python(&ask("AF_INET", "127.77.0.1", 1)).starts_with("two "));
    agent.reload(&world, &config("default_filter_chain: {tcp_proxy: {cluster: web}}", ONE));
    assert!(world.python(&ask("AF_INET", "127.77.0.1", 1)).starts_with("one "));
    let records = agent.wait_records("connection", 2);
    assert_eq!((&records[0]["dispatch"], &records[1]["dispatch"]), (&"kernel".into(), &"agent".into()));
    assert_eq!(dispatched(&mut agent), "[]");
    assert_eq!(active(&agent), 1.0, "the open connection is untouched");
    let log = world.folder().join("access.log");
    agent.stop();
    let log = std::fs::read_to_string(log).expect("the access log");
    let last: Value = serde_json::from_str(log.lines().last().expect("a record")).expect("JSON");
    assert_eq!(last["connection_termination_details"], "the agent ended: the connection goes on without it");
    assert_eq!(log.lines().count(), 3);
}
