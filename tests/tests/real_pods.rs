//! Real pods on a real containerd, and the real agent beside it: what is enrolled, taken, recorded and let go.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use waylay_tests::agent::binary;
use waylay_tests::containerd::{Container, Containerd, Pod, PodSpec};
use waylay_tests::world::Side;
use waylay_tests::{Agent, Finished, World, eventually};

const BY_LABEL: &[(&str, &str)] = &[("waylay.io/inject", "true"), ("app", "web")];
const BY_ANNOTATION: &[(&str, &str)] = &[("waylay.io/inject", "true")];

/// Port 8080 is served as HTTP in both directions; of what arrives, `/admin` is only for pods with the label app=web.
fn config(containerd: &Containerd<'_>, poll_interval: &str) -> String {
    format!(
        "
intercept:
  cgroup: '@CGROUP@'
  inbound: {{}}
  pods: {{runtimes: ['cri://{socket}'], poll_interval: {poll_interval}}}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    listener_filters: [http_inspector]
    filter_chains:
      - match: {{destination_port: 8080, application_protocols: [http/1.1, h2c]}}
        http: {{route_config: outbound}}
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - name: virtualInbound
    address: 127.0.0.1:15006
    traffic_direction: inbound
    listener_filters: [http_inspector]
    filter_chains:
      - match: {{destination_port: 8080, application_protocols: [http/1.1, h2c]}}
        http: {{route_config: inbound}}
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
route_configs:
  - name: outbound
    virtual_hosts:
      - name: all
        domains: ['*']
        routes:
          - {{name: blocked, match: {{prefix: /blocked}}, direct_response: {{status: 418, body: 'not out of here'}}}}
          - {{name: out, match: {{prefix: /}}, route: {{cluster: passthrough}}}}
  - name: inbound
    virtual_hosts:
      - name: all
        domains: ['*']
        routes:
          - {{name: web, match: {{prefix: /admin, source_pod: {{namespace: shop, labels: {{app: web}}}}}},
             route: {{cluster: passthrough}}}}
          - {{name: others, match: {{prefix: /admin}}, direct_response: {{status: 403, body: 'not for you'}}}}
          - {{name: in, match: {{prefix: /}}, route: {{cluster: passthrough}}}}
clusters:
  - {{name: passthrough, type: original_dst}}
",
        socket = containerd.socket().display()
    )
}

fn spec<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)], annotations: &'a [(&'a str, &'a str)]) -> PodSpec<'a> {
    PodSpec { namespace: "shop", name, labels, annotations, ..PodSpec::default() }
}

/// A container that serves its pod's name at every port of `ports`, below `/`, `/admin` and `/blocked`.
fn serve(containerd: &Containerd<'_>, pod: &Pod, name: &str, ports: &str) -> Container {
    let script = format!(
        "for path in index.html admin blocked; do echo {name} >/www/$path; done
         for port in {ports}; do httpd -p $port -h /www; done; exec sleep 1000000"
    );
    let container = containerd.run(pod, &["sh", "-c", &script]);
    let last = ports.rsplit(' ').next().expect("a port");
    let url = format!("http://127.0.0.1:{last}/");
    eventually("the pod's server serves", || containerd.exec(&container, &["wget", "-qO-", &url]).status.success());
    container
}

/// What `container` gets from there; busybox tells a status other than 200 on standard error.
fn get(containerd: &Containerd<'_>, container: &Container, ip: IpAddr, port: u16, path: &str) -> Finished {
    let url = match ip {
        IpAddr::V4(ip) => format!("http://{ip}:{port}{path}"),
        IpAddr::V6(ip) => format!("http://[{ip}]:{port}{path}"),
    };
    containerd.exec(container, &["wget", "-O-", "-T", "5", &url])
}

/// Name and state of every pod, in the order of names.
fn pods(agent: &Agent) -> Vec<(String, String, String)> {
    let pods: Value = serde_json::from_str(&agent.cli(&["pods", "-o", "json"]).success()).expect("JSON");
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let rows = pods["pods"].as_array().expect("an array").iter();
    let name = |row: &Value| format!("{}/{}", text(row, "namespace"), text(row, "name"));
    let mut rows: Vec<_> = rows.map(|row| (name(row), text(row, "state"), text(row, "reason"))).collect();
    rows.sort();
    rows
}

fn enrolled(agent: &Agent) -> Vec<String> {
    pods(agent).into_iter().filter(|(_, state, _)| state == "enrolled").map(|(name, ..)| name).collect()
}

#[track_caller]
fn wait_enrolled(agent: &Agent, names: &[&str]) {
    eventually(&format!("{names:?} are enrolled, got {:?}", pods(agent)), || enrolled(agent) == names);
}

fn of<'a>(records: &'a [Value], direction: &str, path: &str) -> &'a Value {
    let is_it = |record: &&Value| record["direction"] == direction && record["path"] == path;
    records.iter().find(is_it).unwrap_or_else(|| panic!("no {direction} record of {path}: {records:#?}"))
}

#[test]
fn real_pods_talk_both_ways_and_every_side_is_named() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    // Before the agent starts: by its label, by its annotation, and one that nobody asked for.
    let web = containerd.pod(&spec("web", BY_LABEL, &[]));
    let shop = containerd.pod(&spec("shop", &[], BY_ANNOTATION));
    let other = containerd.pod(&spec("other", &[("app", "other")], &[]));
    let in_web = serve(&containerd, &web, "web", "8080");
    let in_shop = serve(&containerd, &shop, "shop", "8080");
    let in_other = containerd.run(&other, &["sleep", "1000000"]);
    let agent = world.agent(&config(&containerd, "5s"));
    wait_enrolled(&agent, &["shop/shop", "shop/web"]);
    let socket = agent.socket().to_str().expect("UTF-8").to_owned();
    let trace =
        world.spawn(Side::Outside, binary(), &["trace", "--pod", "shop/shop", "-o", "json", "--admin-socket", &socket]);
    std::thread::sleep(Duration::from_millis(300));

    let from_web = |path: &str| get(&containerd, &in_web, shop.ip, 8080, path);
    assert_eq!(from_web("/admin").success(), "shop\n");
    let v6 = shop.ips.iter().copied().find(IpAddr::is_ipv6).expect("an IPv6 address");
    assert_eq!(get(&containerd, &in_web, v6, 8080, "/?v6").success(), "shop\n");
    assert_eq!(get(&containerd, &in_shop, web.ip, 8080, "/?back").success(), "web\n");
    let blocked = from_web("/blocked");
    assert!(!blocked.status.success() && blocked.stderr.contains("418"), "{blocked:?}");
    let refused = get(&containerd, &in_other, shop.ip, 8080, "/admin");
    assert!(!refused.status.success() && refused.stderr.contains("403"), "{refused:?}");
    // As the kubelet asks.
    let probe = format!("http://{}:8080/?probe", shop.ip);
    assert_eq!(world.run(Side::Outside, "curl", &["-sS", "--max-time", "5", &probe]).success(), "shop\n");

    // Three ways on both sides, one that ends on its way out, and one of a pod that is not enrolled.
    let records = agent.wait_records("request", 8);
    for (direction, path, pod, source) in [
        ("outbound", "/admin", "shop/web", "shop/web"),
        ("outbound", "/?v6", "shop/web", "shop/web"),
        ("inbound", "/?v6", "shop/shop", "shop/web"),
        ("outbound", "/?back", "shop/shop", "shop/shop"),
        ("inbound", "/?back", "shop/web", "shop/shop"),
    ] {
        let record = of(&records, direction, path);
        assert_eq!((&record["pod"], &record["source_pod"]), (&pod.into(), &source.into()), "{record:#}");
    }
    let arrived = |source: &str| {
        let is_it = |record: &&Value| record["direction"] == "inbound" && record["source_pod"] == source;
        records.iter().filter(is_it).find(|record| record["path"] == "/admin").expect(source)
    };
    assert_eq!(
        (&arrived("shop/web")["route_name"], &arrived("shop/web")["response_code"]),
        (&"web".into(), &200.into())
    );
    assert_eq!(
        (&arrived("shop/other")["route_name"], &arrived("shop/other")["response_code"]),
        (&"others".into(), &403.into())
    );
    let sent = of(&records, "outbound", "/admin");
    assert_eq!(sent["comm"], "wget", "{sent:#}");
    let pid = sent["pid"].as_u64().expect("the process's pid");
    assert!(pid > 1, "as the node counts: {sent:#}");

    let traced = trace.stdout();
    assert!(traced.contains("shop/shop") && traced.contains("/?back"), "{traced}");
    the_command_line_names_them(&agent, &web);
    containerd.remove(&web);
    wait_enrolled(&agent, &["shop/shop"]);
}

#[track_caller]
fn the_command_line_names_them(agent: &Agent, web: &Pod) {
    let wide = agent.cli(&["pods", "-o", "wide"]).success();
    let row = wide.lines().find(|line| line.contains(&web.ip.to_string())).expect("its address");
    assert!(row.contains("web") && row.contains("enrolled") && row.contains("app=web"), "{wide}");
    let other = pods(agent).into_iter().find(|(name, ..)| name == "shop/other").expect("it is listed");
    assert!(other.1 == "skipped" && other.2.contains("no row"), "{other:?}");
    let maps = agent.cli(&["maps"]).success();
    assert!(maps.contains("shop/web") && maps.contains("shop/shop"), "{maps}");
    let routes = agent.cli(&["proxy-config", "route", "-o", "wide"]).success();
    assert!(routes.contains("from shop/* with app=web"), "{routes}");
    let listeners = agent.cli(&["proxy-config", "listener"]).success();
    assert!(listeners.contains("15006") && listeners.contains("Route: inbound"), "{listeners}");
    let file = agent.config().to_str().expect("UTF-8").to_owned();
    let explain = |label: &str| {
        let mut command = std::process::Command::new(binary());
        command.args(["explain", "-c", &file, "--inbound", "--dst", "10.88.0.9:8080", "--source-pod", "shop/web"]);
        command.args(["--source-label", label, "http://shop/admin"]);
        Finished::of(command).success()
    };
    assert!(explain("app=web").contains("passthrough"), "{}", explain("app=web"));
    assert!(explain("app=other").contains("403"), "{}", explain("app=other"));
}

#[test]
fn a_pods_annotations_decide_what_is_taken_of_it() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let agent = world.agent(&config(&containerd, "5s"));
    let pod = |name, more: &[(&str, &str)]| containerd.pod(&spec(name, &[("waylay.io/inject", "true")], more));
    let client = pod("client", &[("waylay.io/exclude-outbound-ports", "8081,9000-9100")]);
    let few = pod("few", &[("waylay.io/include-inbound-ports", "8081")]);
    let off = pod("off", &[("waylay.io/inbound", "off")]);
    pod("veto", &[("waylay.io/inject", "false")]);
    pod("wrong", &[("waylay.io/exclude-inbound-ports", "http")]);
    let node = containerd.pod(&PodSpec { host_network: true, ..spec("node", BY_LABEL, &[]) });
    let in_client = containerd.run(&client, &["sleep", "1000000"]);
    serve(&containerd, &few, "few", "8080 8081");
    serve(&containerd, &off, "off", "8080");
    wait_enrolled(&agent, &["shop/client", "shop/few", "shop/off"]);

    for (at, port, name) in [(&few, 8080, "few\n"), (&few, 8081, "few\n"), (&off, 8080, "off\n")] {
        assert_eq!(get(&containerd, &in_client, at.ip, port, "/").success(), name);
    }
    let directions = || {
        let mut all: Vec<_> =
            agent.records().iter().map(|r| format!("{} {}", r["direction"], r["original_dst"])).collect();
        all.sort();
        all.dedup();
        all.iter().map(|text| text.replace('"', "")).collect::<Vec<_>>()
    };
    let mut expected =
        [format!("inbound {}:8081", few.ip), format!("outbound {}:8080", few.ip), format!("outbound {}:8080", off.ip)];
    expected.sort();
    eventually("what is taken has records", || directions().len() >= 3);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(directions(), expected);

    let reason = |name: &str| {
        let all = pods(&agent);
        let row = all.iter().find(|row| row.0 == format!("shop/{name}")).unwrap_or_else(|| panic!("{name}: {all:?}"));
        assert_eq!(row.1, "skipped", "{row:?}");
        row.2.clone()
    };
    assert!(reason("veto").contains("waylay.io/inject is \"false\""), "{}", reason("veto"));
    assert!(reason("wrong").contains("waylay.io/exclude-inbound-ports"), "{}", reason("wrong"));
    assert!(reason("node").contains("host network"), "{}", reason("node"));
    containerd.remove(&node);
    eventually("it is forgotten", || pods(&agent).iter().all(|row| row.0 != "shop/node"));
}

#[test]
fn pods_outlive_their_agent_and_are_enrolled_by_the_next_one() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let web = containerd.pod(&spec("web", BY_LABEL, &[]));
    let shop = containerd.pod(&spec("shop", &[], BY_ANNOTATION));
    let in_web = containerd.run(&web, &["sleep", "1000000"]);
    serve(&containerd, &shop, "shop", "8080");
    let url = |path: &str| get(&containerd, &in_web, shop.ip, 8080, path);
    assert_eq!(url("/").success(), "shop\n", "before any agent");
    let mut agent = world.agent(&config(&containerd, "5s"));
    wait_enrolled(&agent, &["shop/shop", "shop/web"]);
    assert_eq!(url("/?first").success(), "shop\n");
    agent.wait_records("request", 2);

    agent.child().signal(Signal::SIGKILL);
    // At once, and when it is certainly gone.
    assert_eq!(url("/?without").success(), "shop\n");
    agent.kill();
    assert_eq!(url("/?without").success(), "shop\n");

    let agent = world.agent(&config(&containerd, "5s"));
    wait_enrolled(&agent, &["shop/shop", "shop/web"]);
    assert_eq!(url("/?again").success(), "shop\n");
    eventually("both sides are taken again", || {
        agent.records().iter().filter(|record| record["path"] == "/?again").count() == 2
    });
    let said = agent.stop();
    assert!(!said.contains("ERROR") && !said.contains("panicked"), "{said}");
    assert_eq!(url("/?after").success(), "shop\n", "after it has ended in order");
}

#[test]
fn a_pod_that_is_deleted_in_the_middle_of_a_connection_leaves_nothing() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let agent = world.agent(&config(&containerd, "5s"));
    let web = containerd.pod(&spec("web", BY_LABEL, &[]));
    let shop = containerd.pod(&spec("shop", &[], BY_ANNOTATION));
    let in_web = containerd.run(&web, &["sleep", "1000000"]);
    let echo = "import socket
s = socket.create_server(('', 9000))
print('listens', flush=True)
while True:
    connection, _ = s.accept()
    connection.sendall(connection.recv(5))
    connection.recv(1)";
    let in_shop = containerd.run(&shop, &["/usr/bin/python3", "-u", "-c", echo]);
    eventually("its server listens", || in_shop.log().contains("listens"));
    wait_enrolled(&agent, &["shop/shop", "shop/web"]);
    let talk = format!(
        "import socket
s = socket.create_connection(('{}', 9000), 5)
s.sendall(b'hello'); print('heard', s.recv(5).decode(), flush=True)
s.settimeout(60)
try: print('read', s.recv(1), flush=True)
except OSError as error: print('cut', type(error).__name__, flush=True)",
        shop.ip
    );
    let talking = containerd.run(&web, &["/usr/bin/python3", "-u", "-c", &talk]);
    eventually("the connection is open", || talking.log().contains("heard hello"));
    let files = agent.open_files();

    let removed = Instant::now();
    containerd.remove(&shop);
    wait_enrolled(&agent, &["shop/web"]);
    eventually("the client hears of it", || talking.log().contains("read") || talking.log().contains("cut"));
    assert!(removed.elapsed() < Duration::from_secs(15), "{:?}", removed.elapsed());
    let records = agent.wait_records("connection", 2);
    for direction in ["inbound", "outbound"] {
        assert!(records.iter().any(|record| record["direction"] == direction), "{records:#?}");
    }
    eventually("its files are closed", || agent.open_files() < files);
    let maps = agent.cli(&["maps"]).success();
    assert!(!maps.contains("shop/shop") && maps.contains("shop/web"), "{maps}");
    // The same name again is another pod.
    let again = containerd.pod(&spec("shop", &[], BY_ANNOTATION));
    serve(&containerd, &again, "again", "8080");
    wait_enrolled(&agent, &["shop/shop", "shop/web"]);
    assert_eq!(get(&containerd, &in_web, again.ip, 8080, "/").success(), "again\n");
    agent.wait_records("request", 2);
}

#[test]
fn with_the_cni_plugin_a_pods_very_first_connection_is_taken() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    // Long enough that only events and the plugin can be why a pod is known.
    let agent = world.agent(&config(&containerd, "60s"));
    let shop = containerd.pod(&spec("shop", &[], BY_ANNOTATION));
    serve(&containerd, &shop, "shop", "8080");
    wait_enrolled(&agent, &["shop/shop"]);
    // The lists that follow the agent's start and the pod before are over.
    std::thread::sleep(Duration::from_secs(2));
    let (pod, plain) = made_in(&containerd, "plain");
    while agent.metric("waylay_server_pods_enrolled") < 2.0 {
        assert!(pod.made.elapsed() < Duration::from_secs(10), "{:?}", pods(&agent));
        std::thread::sleep(Duration::from_millis(1));
    }
    let gap = pod.made.elapsed();
    containerd.remove(&pod);

    let log = world.folder().join("cni.log");
    let mut install = std::process::Command::new(binary());
    install.args(["cni", "install", "--on-agent-absent", "refuse", "--bin-dir"]).arg(containerd.plugins());
    install.arg("--conf-dir").arg(containerd.networks()).arg("--agent-socket").arg(agent.socket());
    install.arg("--log-file").arg(&log);
    Finished::of(install).success();
    // containerd reads the configuration again by itself, a moment after it changed.
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("containerd runs the plugin", || {
        containerd.remove(&containerd.pod(&spec("probe", &[], &[])));
        said().contains(" ADD ")
    });
    let (pod, chained) = made_in(&containerd, "chained");
    containerd.remove(&pod);
    println!("without the plugin enrolled after at most {gap:?}; RunPodSandbox {plain:?}, with the plugin {chained:?}");

    for round in 0..5 {
        let name = format!("first{round}");
        let pod = containerd.pod(&spec(&name, &[], BY_ANNOTATION));
        // Its first process connects at once.
        let url = format!("http://{}:8080/?{name}", shop.ip);
        let first = containerd.run(&pod, &["wget", "-qO-", "-T", "5", &url]);
        eventually("its answer", || first.log().contains("shop"));
        eventually(&format!("{name} was taken on both sides"), || {
            let path = format!("/?{name}");
            agent.records().iter().filter(|record| record["path"] == path.as_str()).count() == 2
        });
        containerd.remove(&pod);
    }
    println!("{}", said());
    assert!(said().lines().filter(|line| line.contains(" ADD shop/first") && line.contains("enrolled")).count() == 5);
    wait_enrolled(&agent, &["shop/shop"]);
    eventually("nothing is left", || pods(&agent).iter().all(|row| row.1 != "failed" && row.0 != "shop/chained"));
}

/// A pod that is enrolled, and how long it took to make it.
fn made_in(containerd: &Containerd<'_>, name: &str) -> (Pod, Duration) {
    let started = Instant::now();
    let pod = containerd.pod(&spec(name, &[], BY_ANNOTATION));
    let took = pod.made.duration_since(started);
    (pod, took)
}
