//! Pods in network namespaces of their own: enrolled, taken from and served there, both directions, and let go.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use waylay_tests::pods::{Node, Pod};
use waylay_tests::world::Side;
use waylay_tests::{Agent, Finished, World, eventually};

const INJECT: &[(&str, &str)] = &[("waylay.io/inject", "true"), ("app", "shop")];

/// Port 8080 is served as HTTP in both directions; all else passes as bytes.
fn config(node: &Node<'_>) -> String {
    config_with(node, "", "{prefix: /}")
}

fn config_with(node: &Node<'_>, intercept: &str, inbound_match: &str) -> String {
    format!(
        "
intercept:
  cgroup: '@CGROUP@'
  inbound: {{}}
  pods: {{runtimes: ['{runtime}'], poll_interval: 1s}}
{intercept}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - name: outbound_8080
    address: 0.0.0.0:8080
    bind_to_port: false
    listener_filters: [http_inspector]
    filter_chains:
      - match: {{application_protocols: [http/1.1, h2c]}}
        http: {{route_config: outbound}}
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - name: virtualInbound
    address: 127.0.0.1:15006
    traffic_direction: inbound
    listener_filters: [http_inspector]
    filter_chains:
      - match: {{destination_port: 8080, application_protocols: [http/1.1, h2c]}}
        http: {{route_config: inbound}}
      - match: {{destination_port: 9999}}
        tcp_proxy: {{cluster: local}}
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
route_configs:
  - name: outbound
    virtual_hosts:
      - {{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: passthrough}}}}]}}
  - name: inbound
    virtual_hosts:
      - name: all
        domains: ['*']
        routes:
          - {{match: {inbound_match}, route: {{cluster: passthrough}}}}
          - {{match: {{prefix: /}}, direct_response: {{status: 403, body: 'not for you'}}}}
clusters:
  - {{name: passthrough, type: original_dst}}
  - {{name: local, type: static, endpoints: ['127.0.0.1:9999']}}
",
        runtime = node.runtime()
    )
}

fn enrolled(agent: &Agent) -> Vec<String> {
    let pods: Value = serde_json::from_str(&agent.cli(&["pods", "-o", "json"]).success()).expect("JSON");
    let rows = pods["pods"].as_array().expect("an array").iter();
    let name = |row: &Value| row["name"].as_str().unwrap_or("").trim_start_matches("docker/").to_owned();
    rows.filter(|row| row["state"] == "enrolled").map(name).collect()
}

#[track_caller]
fn wait_enrolled(agent: &Agent, names: &[&str]) {
    eventually(&format!("{names:?} are enrolled, got {:?}", enrolled(agent)), || enrolled(agent) == names);
}

fn get(pod: &Pod<'_>, url: &str) -> String {
    pod.run("curl", &["-sS", "--max-time", "10", url]).success()
}

#[test]
fn two_pods_talk_through_the_agent_and_records_name_both() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);

    assert_eq!(get(&web, &format!("http://{}:8080/cart", shop.ip)), "shop GET /cart HTTP/1.1\n");

    let records = agent.wait_records("request", 2);
    let of = |direction: &str| records.iter().find(|record| record["direction"] == direction).expect(direction);
    let (out, inn) = (of("outbound"), of("inbound"));
    assert_eq!((&out["pod"], &out["source_pod"]), (&"docker/web".into(), &"docker/web".into()), "{out:#}");
    assert_eq!((&inn["pod"], &inn["source_pod"]), (&"docker/shop".into(), &"docker/web".into()), "{inn:#}");
    assert_eq!(out["comm"], "curl");
    let destination = format!("{}:8080", shop.ip);
    assert_eq!(
        (&out["original_dst"], &inn["original_dst"]),
        (&Value::from(&*destination), &Value::from(&*destination))
    );
}

/// The value in the exposition of a pod's statistic; `None` when it is not there. `more` are labels besides its own.
fn pod_metric(agent: &Agent, name: &str, pod: &str, direction: &str, more: &str) -> Option<u64> {
    let (_, text) = agent.get("/stats/prometheus").expect("metrics");
    let series =
        format!("waylay_pod_downstream_{name}{{namespace=\"docker\",pod=\"{pod}\",direction=\"{direction}\"{more}}} ");
    text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
}

#[test]
fn the_traffic_of_a_pod_is_counted_by_direction_until_the_pod_is_gone() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let origins = (shop.origin("shop", "0.0.0.0:8080"), shop.origin("bytes", "0.0.0.0:9000"));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "inbound", ""), Some(0));

    let ends = [("web", "outbound"), ("shop", "inbound")];
    get(&web, &format!("http://{}:9000/", shop.ip));
    let records = agent.wait_records("connection", 2);
    for (pod, direction) in ends {
        let value = |name| pod_metric(&agent, name, pod, direction, "");
        let record = records.iter().find(|record| record["direction"] == direction).expect(direction);
        let (received, sent) = (record["bytes_received"].as_u64(), record["bytes_sent"].as_u64());
        assert!(received > Some(20) && sent > Some(20), "{record:#}");
        assert_eq!((value("cx_total"), value("cx_active"), value("rq_total")), (Some(1), Some(0), Some(0)), "{pod}");
        assert_eq!((value("cx_rx_bytes_total"), value("cx_tx_bytes_total")), (received, sent), "{pod} {direction}");
    }

    let before = pod_metric(&agent, "cx_rx_bytes_total", "web", "outbound", "");
    get(&web, &format!("http://{}:8080/", shop.ip));
    get(&web, &format!("http://{}:8080/", shop.ip));
    agent.wait_records("request", 4);
    for (pod, direction) in ends {
        let value = |name| pod_metric(&agent, name, pod, direction, "");
        assert_eq!(value("rq_total"), Some(2), "{pod} {direction}");
        let of_class =
            |class| pod_metric(&agent, "rq_xx", pod, direction, &format!(",response_code_class=\"{class}\""));
        assert_eq!((of_class(2), of_class(5)), (Some(2), Some(0)), "{pod} {direction}");
    }
    // The client has closed both; what the agent keeps open for the next request is open at the other pod.
    let of_web = |name| pod_metric(&agent, name, "web", "outbound", "");
    eventually("no connection is open", || of_web("cx_active") == Some(0));
    assert!(of_web("cx_total") == Some(3) && of_web("cx_rx_bytes_total") > before);
    assert!(pod_metric(&agent, "cx_active", "shop", "inbound", "") > Some(0), "kept for the next request");
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "outbound", ""), Some(0), "it connected to nobody");

    drop(origins);
    drop(shop);
    wait_enrolled(&agent, &["web"]);
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "inbound", ""), None);
    assert_eq!(pod_metric(&agent, "cx_total", "web", "outbound", ""), Some(3), "the others keep theirs");
}

#[test]
fn explain_asks_the_running_agent_what_it_knows_of_a_pod_and_is_right() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", &[("waylay.io/exclude-outbound-ports", "8080")]));
    let _origin = web.origin("web", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["web"]);
    let explained = |pod: &str, dst: &str| -> Value {
        let args = ["explain", "--pod", pod, "--dst", dst, "-o", "json", "http://web/"];
        serde_json::from_str(&agent.cli(&args).success()).expect("JSON")
    };
    let (url, dst) = (format!("http://{}:8080/", web.ip), format!("{}:8080", web.ip));

    let (taken, left) = (explained("docker/web", &dst), explained("docker/shop", &dst));
    assert_eq!((&taken["pod"]["enrolled"], &taken["pod"]["taken"]), (&true.into(), &true.into()), "{taken:#}");
    assert_eq!((&left["pod"]["enrolled"], &left["pod"]["select"]), (&false.into(), &Value::Null), "{left:#}");
    assert_eq!(taken["listener"], "outbound_8080");
    let unknown = agent.cli(&["explain", "--pod", "docker/nobody", "--dst", &dst, "http://web/"]).failure();
    assert!(unknown.contains("knows of no pod docker/nobody"), "{unknown}");

    shop.announce(&[("waylay.io/inject", "true"), ("waylay.io/exclude-outbound-ports", "8080")]);
    wait_enrolled(&agent, &["shop", "web"]);
    let excluded = explained("docker/shop", &dst);
    assert_eq!(
        (&excluded["pod"]["enrolled"], &excluded["pod"]["taken"]),
        (&true.into(), &false.into()),
        "{excluded:#}"
    );
    get(&shop, &url);
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "outbound", ""), Some(0), "as explained");
    assert_eq!(pod_metric(&agent, "cx_total", "web", "inbound", ""), Some(1));
}

#[test]
fn an_application_that_listens_on_loopback_only_or_on_the_pods_address_only_is_reached() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let on_address = shop.origin("address", &format!("{}:8080", shop.ip));
    let on_loopback = shop.origin("loopback", "127.0.0.1:9999");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);

    assert_eq!(get(&web, &format!("http://{}:8080/", shop.ip)), "address GET / HTTP/1.1\n");
    assert_eq!(get(&web, &format!("http://{}:9999/", shop.ip)), "loopback GET / HTTP/1.1\n");
    assert_eq!((on_address.connections(), on_loopback.connections()), (1, 1), "each was reached once");
    assert_eq!(on_loopback.seen()[0].peer.ip().to_string(), "127.0.0.1");
}

#[test]
fn the_same_addresses_and_ports_in_two_pods_never_mix() {
    let world = World::new();
    let node = Node::new(&world);
    let pods = [node.pod("one", INJECT), node.pod("two", INJECT)];
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["one", "two"]);
    let origins: Vec<_> = pods
        .iter()
        .map(|pod| {
            pod.run("ip", &["addr", "add", "10.1.1.1/32", "dev", "lo"]).success();
            pod.origin(&pod.name, "10.1.1.1:8080")
        })
        .collect();
    for round in 0..5 {
        for pod in &pods {
            // The same source port too: all four parts of the two connections are equal.
            let url = format!("http://10.1.1.1:8080/{round}");
            let args =
                ["-sS", "--max-time", "10", "--local-port", &format!("4{round}000"), "--interface", "10.1.1.1", &url];
            assert_eq!(pod.run("curl", &args).success(), format!("{} GET /{round} HTTP/1.1\n", pod.name));
        }
    }
    assert!(origins.iter().all(|origin| origin.seen().len() == 5));
}

#[test]
fn routes_match_on_the_pod_that_a_request_comes_from() {
    let world = World::new();
    let node = Node::new(&world);
    let web = node.pod("web", &[("waylay.io/inject", "true"), ("app", "web")]);
    let other = node.pod("other", &[("app", "other")]);
    let shop = node.pod("shop", INJECT);
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent =
        world.agent(&config_with(&node, "", "{prefix: /, source_pod: {namespace: docker, labels: {app: web}}}"));
    wait_enrolled(&agent, &["shop", "web"]);

    let url = format!("http://{}:8080/", shop.ip);
    assert_eq!(get(&web, &url), "shop GET / HTTP/1.1\n");
    assert_eq!(get(&other, &url), "not for you", "it is known by its address although it is not enrolled");
}

#[test]
fn what_comes_from_the_node_passes_unless_it_is_asked_for() {
    let world = World::new();
    let node = Node::new(&world);
    let shop = node.pod("shop", INJECT);
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop"]);
    let url = format!("http://{}:8080/healthz", shop.ip);

    assert_eq!(
        world.run(Side::Outside, "curl", &["-sS", "--max-time", "10", &url]).success(),
        "shop GET /healthz HTTP/1.1\n"
    );
    agent.wait_records("request", 0);

    let changed = config(&node).replace("inbound: {}", "inbound: {from_node: intercept}");
    agent.reload(&world, &changed);
    world.run(Side::Outside, "curl", &["-sS", "--max-time", "10", &url]).success();
    assert_eq!(agent.wait_records("request", 1)[0]["pod"], "docker/shop");
}

#[test]
fn a_pod_that_goes_away_takes_its_connections_and_all_else_with_it() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let _origin = shop.origin("shop", "0.0.0.0:9000");
    let mut agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
    let open = format!(
        "s = socket.create_connection(('{}', 9000)); print('open', flush=True); s.settimeout(30)\n\
         try: print('read', s.recv(1))\nexcept OSError as error: print('cut', type(error).__name__)",
        shop.ip
    );
    let mut client = web.spawn("python3", &["-u", "-c", &format!("import socket\n{open}")]);
    client.wait_for("open");
    let fds = agent.open_files();

    drop(shop);
    wait_enrolled(&agent, &["web"]);
    client.wait(Duration::from_secs(20));
    let records = agent.wait_records("connection", 2);
    let cut = records.iter().find(|record| record["pod"] == "docker/shop").expect("the inbound connection's record");
    assert_eq!(cut["response_flags"], "LR", "{cut:#}");
    assert_eq!(cut["connection_termination_details"], "the workload is gone");
    assert!(agent.open_files() < fds, "its sockets are closed");
    for map in ["netns", "listeners"] {
        let printed = agent.cli(&["maps", map, "-o", "json"]).success();
        let instances: Vec<Value> = serde_json::from_str(&printed).expect("JSON");
        // Other agents of this machine are listed as well, without names.
        let pid = agent.child().pid();
        let is_it = |instance: &&Value| instance["agent_pid"] == pid;
        let rows =
            instances.iter().find(is_it).and_then(|instance| instance[map].as_array()).expect("this agent's rows");
        assert!(!rows.is_empty() && rows.iter().all(|row| row["pod"] == "docker/web"), "{rows:#?}");
    }
}

#[test]
fn a_changed_label_retires_a_pod_and_enrols_it_again() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", &[]));
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["web"]);
    let url = format!("http://{}:8080/", shop.ip);
    get(&web, &url);
    agent.wait_records("request", 1);

    web.announce(&[("waylay.io/inject", "false")]);
    wait_enrolled(&agent, &[]);
    get(&web, &url);
    agent.wait_records("request", 1);

    web.announce(INJECT);
    wait_enrolled(&agent, &["web"]);
    get(&web, &url);
    agent.wait_records("request", 2);
    assert_eq!(pod_metric(&agent, "cx_total", "web", "outbound", ""), Some(2), "its statistics go on");
}

#[test]
fn a_pod_that_the_plugin_took_away_does_not_come_back_because_its_runtime_still_lists_it() {
    let world = World::new();
    let node = Node::new(&world);
    let (_web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);

    let body = format!("{{\"container_id\":\"{}\"}}", shop.id);
    let mut stream = UnixStream::connect(agent.socket()).expect("the admin socket");
    write!(
        stream,
        "POST /cni/del HTTP/1.1\r\nhost: waylay\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("a request");
    let answer = std::io::read_to_string(stream).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Another pod has the agent look at all that is listed.
    let _late = node.pod("late", INJECT);
    wait_enrolled(&agent, &["late", "web"]);
}

#[test]
fn a_pod_whose_port_is_taken_is_told_of_and_the_others_are_served() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, broken) = (node.pod("web", INJECT), node.pod("broken", INJECT));
    let taken = broken.inside(|| std::net::TcpListener::bind("127.0.0.1:15001").expect("the port"));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["web"]);
    let listing = || agent.cli(&["pods"]).success();
    let told = || listing().contains("127.0.0.1:15001") && listing().contains("listens there");
    eventually(&format!("the other one is told of: {}", listing()), told);

    drop(taken);
    wait_enrolled(&agent, &["broken", "web"]);
    drop(web);
}

#[test]
fn with_the_agent_killed_under_load_applications_take_over() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let mut agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
    let load = format!(
        "
import socket, time
end = time.time() + 3
good = refused = broken = 0
while time.time() < end:
    try:
        s = socket.create_connection(('{}', 8080), 5)
        s.sendall(b'GET / HTTP/1.1\\r\\nhost: shop\\r\\nconnection: close\\r\\n\\r\\n')
        data = b''
        while got := s.recv(65536): data += got
        if b'200 OK' in data: good += 1
        else: broken += 1
    except ConnectionRefusedError: refused += 1
    except OSError: broken += 1
    print('going', flush=True)
print('good', good, 'refused', refused, 'broken', broken)
",
        shop.ip
    );
    let mut client = web.spawn("python3", &["-u", "-c", &load]);
    client.wait_for("going");
    std::thread::sleep(Duration::from_secs(1));
    let (links, others) = agent.links_and_others();
    assert!(links.len() >= 8 && links.iter().min() > others.iter().max(), "links {links:?}, others {others:?}");
    agent.child().signal(Signal::SIGKILL);
    client.wait(Duration::from_secs(30));
    let said = client.stdout();
    let counts: Vec<u32> = said.lines().last().unwrap_or("").split(' ').filter_map(|word| word.parse().ok()).collect();
    let [good, refused, broken] = counts[..] else { panic!("{said}") };
    assert!(good > 50, "{said}");
    assert!(
        refused == 0 && broken <= 1,
        "only what was in flight may be lost: good {good} refused {refused} broken {broken}"
    );

    let again = world.agent(&config(&node));
    wait_enrolled(&again, &["shop", "web"]);
    let before = again.records().len();
    get(&web, &format!("http://{}:8080/", shop.ip));
    eventually("both sides are taken again", || again.records().len() >= before + 2);
}

#[test]
fn a_pod_that_the_network_plugin_lets_go_is_not_enrolled_again_while_its_runtime_lists_it() {
    let world = World::new();
    let node = Node::new(&world);
    let web = node.pod("web", INJECT);
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["web"]);
    let (socket, netns) = (agent.socket().display(), web.netns_path());
    let plugin = |verb: &str| {
        let told = format!(
            r#"{{"cniVersion": "1.0.0", "name": "n", "type": "waylay-cni", "agentSocket": "{socket}",
                "onAgentAbsent": "refuse", "prevResult": {{"cniVersion": "1.0.0", "ips": []}}}}"#
        );
        let script = format!("printf '%s' '{told}' | CNI_COMMAND={verb} \"$0\" cni");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).arg(waylay_tests::agent::binary()).env("CNI_CONTAINERID", &web.id);
        command.env("CNI_NETNS", &netns).env("CNI_IFNAME", "eth0").env("CNI_PATH", "/nonexistent");
        Finished::of(command).success();
    };

    plugin("DEL");
    wait_enrolled(&agent, &[]);
    // Its runtime tells of it again and again.
    web.announce(&[("waylay.io/inject", "true"), ("still", "there")]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(enrolled(&agent), [""; 0]);
    // Started again under the same id, as podman does.
    plugin("ADD");
    wait_enrolled(&agent, &["web"]);
}

#[test]
fn the_rights_of_the_systemd_unit_are_enough_for_pods() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/waylay.service");
    let unit = std::fs::read_to_string(unit).expect("the unit");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("capabilities");
    let named = line.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase());
    let set = named.fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    assert!(unit.contains("\nNoNewPrivileges=yes\n"), "{unit}");
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let through = ["setpriv", "--bounding-set", &set, "--no-new-privs", "--"];
    let agent = Agent::spawn_through(&world, &config(&node), &through);
    agent.wait_ready();
    wait_enrolled(&agent, &["shop", "web"]);

    get(&web, &format!("http://{}:8080/", shop.ip));
    agent.wait_records("request", 2);
    agent.stop();
}

#[test]
fn pods_stay_enrolled_through_reloads_that_add_listeners_and_are_let_go_with_the_last_row() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let _origin = shop.origin("shop", "0.0.0.0:9000");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
    let open = format!(
        "import socket, time\ns = socket.create_connection(('{}', 9000), 5); print('open', flush=True)\n\
         time.sleep(4); s.sendall(b'GET /late HTTP/1.1\\r\\nhost: a\\r\\nconnection: close\\r\\n\\r\\n')\n\
         print('got', s.recv(100), flush=True)",
        shop.ip
    );
    let mut client = web.spawn("python3", &["-u", "-c", &open]);
    client.wait_for("open");

    let more = config(&node).replace(
        "route_configs:",
        "  - {name: direct, address: '127.0.0.1:15055', default_filter_chain: {tcp_proxy: {cluster: local}}}\nroute_configs:",
    );
    agent.reload(&world, &more);
    wait_enrolled(&agent, &["shop", "web"]);
    let nobody = config(&node).replace("poll_interval: 1s}", "poll_interval: 1s, select: [{namespaces: [none]}]}");
    agent.reload(&world, &nobody);
    wait_enrolled(&agent, &[]);
    let start = nobody.find("  pods:").expect("pods");
    let end = start + nobody[start..].find('\n').expect("a line");
    let without = format!("{}  host: false{}", &nobody[..start], &nobody[end..]);
    agent.reload(&world, &without);
    client.wait(Duration::from_secs(20));
    assert!(client.stdout().contains("200 OK"), "what was open is served on: {}", client.stdout());
    agent.reload(&world, &config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
}

#[test]
fn pods_that_come_and_go_leave_nothing_behind() {
    let world = World::new();
    let node = Node::new(&world);
    let web = node.pod("web", INJECT);
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["web"]);
    let churn = |rounds: u32| {
        for round in 0..rounds {
            let pods: Vec<_> = (0..10).map(|number| node.pod(&format!("p{number}"), INJECT)).collect();
            eventually("ten more are enrolled", || enrolled(&agent).len() == 11);
            let origin = pods[0].origin("one", "0.0.0.0:8080");
            get(&web, &format!("http://{}:8080/{round}", pods[0].ip));
            drop((origin, pods));
            wait_enrolled(&agent, &["web"]);
        }
    };
    churn(2);
    let (files, memory) = (agent.open_files(), agent.resident_kib());
    churn(4);
    // Connections that are just being closed may hold one or two.
    eventually(&format!("{files} open files, now {}", agent.open_files()), || agent.open_files() <= files + 2);
    let grown = agent.resident_kib().saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} KiB more after 40 pods");
}
