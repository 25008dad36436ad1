//! Pods at the edges: IPv6, applications that are not there or talk to themselves, sockets of other kinds, and whoever
//! calls the agent itself.

use std::time::{Duration, Instant};

use serde_json::Value;
use waylay_tests::pods::{Node, Pod};
use waylay_tests::{Agent, World, eventually};

const INJECT: &[(&str, &str)] = &[("waylay.io/inject", "true")];

/// Port 8080 is HTTP in both directions; all else passes as bytes.
fn config(node: &Node<'_>) -> String {
    let http = |name: &str| {
        format!(
            "{{match: {{destination_port: 8080, application_protocols: [http/1.1]}}, http: {{route_config: {name}}}}}"
        )
    };
    let hosts = "[{name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: passthrough}}]}]";
    format!(
        "
intercept:
  cgroup: '@CGROUP@'
  inbound: {{}}
  pods: {{runtimes: ['{runtime}'], poll_interval: 1s}}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    listener_filters: [http_inspector]
    filter_chains: [{outbound}]
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - name: virtualInbound
    address: 127.0.0.1:15006
    traffic_direction: inbound
    listener_filters: [http_inspector]
    filter_chains: [{inbound}]
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
route_configs: [{{name: all, virtual_hosts: {hosts}}}]
clusters: [{{name: passthrough, type: original_dst}}]
",
        runtime = node.runtime(),
        outbound = http("all"),
        inbound = http("all"),
    )
}

fn states(agent: &Agent) -> Vec<(String, String)> {
    let pods: Value = serde_json::from_str(&agent.cli(&["pods", "-o", "json"]).success()).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or("").trim_start_matches("docker/").to_owned();
    let rows = pods["pods"].as_array().expect("an array").iter();
    rows.map(|row| (text(&row["name"]), text(&row["state"]))).collect()
}

#[track_caller]
fn wait_enrolled(agent: &Agent, names: &[&str]) {
    let expected = |name: &str| (name.to_owned(), "enrolled".to_owned());
    eventually(&format!("{names:?} are enrolled, got {:?}", states(agent)), || {
        let states = states(agent);
        names.iter().all(|name| states.contains(&expected(name)))
    });
}

fn get(pod: &Pod<'_>, url: &str) -> String {
    pod.run("curl", &["-sS", "--max-time", "10", url]).success()
}

/// What a client in `pod` is told that connects to `address` and sends something.
fn dial(pod: &Pod<'_>, address: &str) -> String {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let host = host.trim_matches(['[', ']']);
    let program = format!(
        "
import socket
try:
    s = socket.create_connection(('{host}', {port}), 8)
    s.sendall(b'hello\\n')
    print('read', s.recv(100))
except OSError as error: print(type(error).__name__)
"
    );
    pod.python(&program).trim().to_owned()
}

#[test]
fn pods_talk_over_ipv6_as_well() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let _origin = shop.origin("shop", "[::]:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);

    assert_eq!(get(&web, &format!("http://[{}]:8080/cart", shop.ip6)), "shop GET /cart HTTP/1.1\n");

    let records = agent.wait_records("request", 2);
    for (direction, pod) in [("outbound", "docker/web"), ("inbound", "docker/shop")] {
        let record = records.iter().find(|record| record["direction"] == direction).expect(direction);
        assert_eq!((&record["pod"], &record["source_pod"]), (&pod.into(), &"docker/web".into()), "{record:#}");
        assert_eq!(record["original_dst"], format!("[{}]:8080", shop.ip6), "{record:#}");
    }
    // An IPv6 application that is there for IPv4 too is reached by either family.
    assert_eq!(get(&web, &format!("http://{}:8080/", shop.ip)), "shop GET / HTTP/1.1\n");
    agent.wait_records("request", 4);
}

#[test]
fn an_application_that_is_not_there_is_told_of_in_time_and_served_once_it_is() {
    let world = World::new();
    let node = Node::new(&world);
    let (client, shop) = (node.pod("client", &[]), node.pod("shop", INJECT));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop"]);

    let begin = Instant::now();
    assert_eq!(dial(&client, &format!("{}:9000", shop.ip)), "ConnectionResetError");
    assert_eq!(dial(&client, &format!("{}:9000", shop.ip6)), "ConnectionResetError");
    let url = format!("http://{}:8080/", shop.ip);
    let said = client.run("curl", &["-sS", "--max-time", "10", "-w", " %{http_code}", &url]).success();
    assert!(said.ends_with(" 503"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let connections = agent.wait_records("connection", 3);
    let of_bytes: Vec<_> = connections.iter().filter(|record| record["requests"] == 0).collect();
    assert_eq!(of_bytes.len(), 2, "{connections:#?}");
    assert!(of_bytes.iter().all(|record| record["response_flags"] == "UF,URX"), "{of_bytes:#?}");
    assert_eq!(agent.wait_records("request", 1)[0]["response_flags"], "UF");

    let _late = (shop.origin("late", "[::]:9000"), shop.origin("late", "127.0.0.1:8080"));
    let on_address = shop.origin("shop", &format!("{}:8080", shop.ip));
    assert_eq!(get(&client, &url), "shop GET / HTTP/1.1\n");
    assert_eq!(on_address.connections(), 1);
    assert_eq!(get(&client, &format!("http://{}:9000/", shop.ip)), "late GET / HTTP/1.1\n");
}

#[test]
fn a_container_in_the_nodes_own_network_is_skipped_and_told_of() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.hidden("bare"));
    shop.announce_on_host(INJECT);
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["web"]);

    let listing = agent.cli(&["pods"]).success();
    let row = listing.lines().find(|line| line.contains("bare")).expect(&listing);
    assert!(!row.contains("enrolled") && row.contains("host"), "{listing}");
    assert_eq!(states(&agent).len(), 2, "{listing}");
    // What its network really is, is left alone as well: nobody listens for the agent there.
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    assert_eq!(get(&shop, &format!("http://{}:8080/", shop.ip)), "shop GET / HTTP/1.1\n");
    assert_eq!(get(&web, &format!("http://{}:8080/", shop.ip)), "shop GET / HTTP/1.1\n");
    assert_eq!(agent.wait_records("request", 1)[0]["pod"], "docker/web");
}

#[test]
fn a_pod_that_calls_itself_is_served_by_either_side_once_and_on_loopback_by_neither() {
    let world = World::new();
    let node = Node::new(&world);
    let (client, shop) = (node.pod("client", &[]), node.pod("shop", INJECT));
    let on_loopback = shop.origin("loopback", "127.0.0.1:9000");
    let on_address = shop.origin("shop", &format!("{}:8080", shop.ip));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop"]);

    assert_eq!(get(&shop, "http://127.0.0.1:9000/"), "loopback GET / HTTP/1.1\n");
    assert_eq!(on_loopback.connections(), 1);
    let url = format!("http://{}:8080/", shop.ip);
    for _ in 0..4 {
        assert_eq!(get(&shop, &url), "shop GET / HTTP/1.1\n");
    }
    let of =
        |direction: &str, records: &[Value]| records.iter().filter(|record| record["direction"] == direction).count();
    let records = agent.wait_records("request", 8);
    assert_eq!((of("outbound", &records), of("inbound", &records)), (4, 4), "{records:#?}");

    // Connections that were kept open for one direction lead another way than those of the other.
    for _ in 0..8 {
        assert_eq!(get(&client, &url), "shop GET / HTTP/1.1\n");
    }
    let records = agent.wait_records("request", 16);
    assert_eq!((of("outbound", &records), of("inbound", &records)), (4, 12), "{records:#?}");
    for _ in 0..8 {
        assert_eq!(get(&shop, &url), "shop GET / HTTP/1.1\n");
    }
    let records = agent.wait_records("request", 32);
    assert_eq!((of("outbound", &records), of("inbound", &records)), (12, 20), "{records:#?}");
    assert_eq!(on_address.seen().len(), 20);
}

#[test]
fn whoever_calls_the_agents_own_sockets_in_a_pod_is_refused_once() {
    let world = World::new();
    let node = Node::new(&world);
    let (client, shop) = (node.pod("client", &[]), node.pod("shop", INJECT));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop"]);

    let inside = ["127.0.0.1:15001", "[::1]:15001", "127.0.0.1:15006", "[::1]:15006", "[::ffff:127.0.0.1]:15006"];
    for address in inside {
        assert_eq!(dial(&shop, address), "ConnectionResetError", "{address}");
    }
    let records = agent.wait_records("connection", inside.len());
    assert!(records.iter().all(|record| record["upstream_host"].is_null()), "{records:#?}");
    for port in [15001, 15006] {
        assert_eq!(dial(&client, &format!("{}:{port}", shop.ip)), "ConnectionRefusedError", "{port}");
    }
    agent.wait_records("connection", inside.len());
}

#[test]
fn applications_with_multipath_fast_open_and_shared_ports_are_served() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
    let server = "
import socket, threading
def serve(port, protocol, *options):
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocol)
    for option in options: s.setsockopt(*option)
    s.bind(('::', port)); s.listen(16)
    def loop():
        while True:
            c, _ = s.accept()
            c.sendall(c.recv(100) + str(port).encode()); c.close()
    threading.Thread(target=loop).start()
TFO, REUSE = (socket.IPPROTO_TCP, 23, 16), (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
serve(9001, 262); serve(9002, 0, TFO); serve(9003, 0, REUSE); serve(9003, 0, REUSE)
print('serving', flush=True)
threading.Event().wait()
";
    let server = shop.spawn("python3", &["-u", "-c", server]);
    server.wait_for("serving");
    let client = format!(
        "
import socket
for port in (9001, 9002, 9003):
    for protocol in (0, 262):
        for fast in (False, True):
            s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol); s.settimeout(8)
            if fast: s.setsockopt(socket.IPPROTO_TCP, 30, 1)
            s.connect(('{}', port)); s.sendall(b'ping ')
            got = b''
            while more := s.recv(100): got += more
            assert got == b'ping %d' % port, (port, protocol, fast, got)
",
        shop.ip
    );
    web.python(&client);
    let records = agent.wait_records("connection", 24);
    assert!(records.iter().all(|record| record["response_flags"] == "-"), "{records:#?}");
}

#[test]
fn a_pod_without_ipv6_is_served_over_ipv4() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.hidden("web"), node.hidden("shop"));
    for pod in [&web, &shop] {
        pod.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("the sysctl"));
        pod.announce(INJECT);
    }
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
    assert_eq!(get(&web, &format!("http://{}:8080/", shop.ip)), "shop GET / HTTP/1.1\n");
    agent.wait_records("request", 2);
}
