//! Pods that come, change and go, and agents that do.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use waylay_tests::pods::Node;
use waylay_tests::{Agent, Finished, World, eventually};

use super::{INJECT, config, enrolled, get, pod_metric, wait_enrolled};

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
