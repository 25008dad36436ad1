//! The admin interface of a whole agent, over real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{AdminServer, AdminSocketOption, State};
use crate::config::{self, Source};
use crate::server::{LoadError, Ports, Running, Server, ServerOptions, SignalHandling};
use crate::snapshot::Runtime;
use crate::telemetry::record::RecordSink;
use crate::telemetry::sink::Sinks;
use crate::workload::Workload;
use crate::workload::status::{EnrolmentState, EnrolmentStatus};

const CONFIG: &str = r#"
listeners:
  - name: web
    address: 127.0.0.1:8080
    filter_chains:
      - name: http
        match: {application_protocols: [http/1.1]}
        http: {route_config: shop}
    default_filter_chain: {tcp_proxy: {cluster: origin}}
route_configs:
  - name: shop
    virtual_hosts:
      - name: all
        domains: ["*"]
        routes:
          - {match: {prefix: /a, methods: [GET, POST]}, route: {cluster: origin, prefix_rewrite: /b}}
          - {match: {prefix: /, source_pod: {name: web-1}}, redirect: {host_redirect: new.example, response_code: 308}}
clusters:
  - {name: origin, type: static, endpoints: [127.0.0.1:9001]}
"#;

/// An agent that intercepts nothing, with its admin interface.
struct World {
    running: Option<Running>,
    sinks: Arc<Sinks>,
    socket: PathBuf,
    prometheus: SocketAddr,
    readiness: SocketAddr,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("waylay.yaml");
        std::fs::write(&file, CONFIG).expect("configuration");
        let runtime = Runtime::default();
        let sinks = Sinks::open(&[], runtime.stats.clone()).expect("sinks");
        let loader = Arc::new(move |runtime: &Runtime, version| {
            let loaded = config::load(&Source::File(file.clone()), runtime, version);
            let mut snapshot = loaded.map_err(|errors| LoadError(errors.to_string()))?.snapshot;
            // Free ports, which a configuration cannot ask for.
            let free = Some(([127, 0, 0, 1], 0).into());
            (snapshot.admin.prometheus, snapshot.admin.readiness) = (free, free);
            Ok(snapshot)
        });
        let options = ServerOptions {
            concurrency: Some(1),
            ports: Ports::Ephemeral,
            signals: SignalHandling::Caller,
            ..ServerOptions::default()
        };
        let server = Server::with_loader(options, loader, runtime, sinks.clone()).expect("server");
        let socket = directory.path().join("run/admin.sock");
        let admin = AdminServer::bind(&server.shared().snapshot.load().admin, &AdminSocketOption::At(socket.clone()))
            .expect("admin");
        let (prometheus, readiness) = (admin.prometheus_address(), admin.readiness_address());
        let state = State::new(server.shared().clone(), sinks.clone(), server.control());
        server.runtime().spawn(admin.run(state));
        Self {
            running: Some(server.start().expect("running")),
            sinks,
            socket,
            prometheus: prometheus.expect("address"),
            readiness: readiness.expect("address"),
            _directory: directory,
        }
    }

    /// Status and body of the answer on the admin socket.
    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        ask(UnixStream::connect(&self.socket).expect("connect"), method, path)
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    fn configuration(&self) -> PathBuf {
        self._directory.path().join("waylay.yaml")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().expect("stopped");
        }
        assert!(!self.socket.exists(), "the socket goes with the agent");
    }
}

fn ask(stream: impl Read + Write, method: &str, path: &str) -> (u16, String) {
    ask_with(stream, method, path, "")
}

fn ask_with(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    write!(stream, "{head}{body}").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status");
    (status, body.to_owned())
}

fn tcp(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).expect("connect")
}

#[test]
fn paths_and_methods_are_told_apart() {
    let world = World::new();
    for (method, path, expected) in [
        ("GET", "/", 200),
        ("GET", "/help", 200),
        ("GET", "/ready", 200),
        ("HEAD", "/config_dump", 200),
        ("GET", "/nope", 404),
        ("POST", "/ready", 405),
        ("DELETE", "/stats", 405),
        ("GET", "/quitquitquit", 405),
        ("HEAD", "/reload", 405),
        ("GET", "/cni/add", 405),
        ("POST", "/cni/add", 400),
        ("POST", "/cni/del", 400),
        ("GET", "/stats?format=xml", 400),
        ("GET", "/stats?filter=(", 400),
        ("GET", "/config_dump?mask=x", 400),
        ("GET", "/trace?dst=nowhere", 400),
        ("GET", "/pods?format=xml", 400),
        ("POST", "/logging", 200),
    ] {
        let (status, body) = world.ask(method, path);
        assert_eq!(status, expected, "{method} {path}: {body}");
        assert_eq!(body.is_empty(), method == "HEAD", "{method} {path}");
    }
}

#[test]
fn the_open_listeners_serve_their_pages_only() {
    let world = World::new();
    let (prometheus, readiness) = (world.prometheus, world.readiness);
    for (address, method, path, expected) in [
        (prometheus, "GET", "/metrics", 200),
        (prometheus, "GET", "/stats/prometheus", 200),
        (prometheus, "GET", "/config_dump", 404),
        (prometheus, "POST", "/quitquitquit", 404),
        (prometheus, "POST", "/metrics", 405),
        (readiness, "GET", "/healthz/ready", 200),
        (readiness, "HEAD", "/ready", 200),
        (readiness, "GET", "/healthz/live", 200),
        (readiness, "POST", "/live", 405),
        (readiness, "GET", "/stats", 404),
    ] {
        assert_eq!(ask(tcp(address), method, path).0, expected, "{method} {path}");
    }
    let (_, metrics) = ask(tcp(prometheus), "GET", "/metrics");
    for line in [
        "# TYPE waylay_cluster_upstream_rq_total counter",
        "waylay_cluster_upstream_rq_total{cluster=\"origin\"} 0",
        "waylay_endpoint_rq_total{cluster=\"origin\",endpoint=\"127.0.0.1:9001\"} 0",
        "waylay_listener_downstream_cx_total{listener=\"web\"} 0",
        "waylay_server_concurrency 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\nin\n{metrics}");
    }
}

#[test]
fn the_dump_is_envoys() {
    let world = World::new();
    let dump = world.json("/config_dump?include_eds");
    let section = |name: &str| {
        let sections = dump["configs"].as_array().expect("sections");
        let wanted = format!("type.googleapis.com/envoy.admin.v3.{name}");
        sections.iter().find(|section| section["@type"] == *wanted).expect(name)
    };
    let listener = &section("ListenersConfigDump")["static_listeners"][0]["listener"];
    assert_eq!(listener["@type"], "type.googleapis.com/envoy.config.listener.v3.Listener");
    assert_eq!(listener["traffic_direction"], "OUTBOUND");
    assert_eq!(listener["filter_chains"][0]["filter_chain_match"]["application_protocols"][0], "http/1.1");
    let manager = &listener["filter_chains"][0]["filters"][0];
    assert_eq!(manager["name"], "envoy.filters.network.http_connection_manager");
    assert_eq!(manager["typed_config"]["rds"]["route_config_name"], "shop");
    assert_eq!(listener["default_filter_chain"]["filters"][0]["typed_config"]["cluster"], "origin");
    let rows = &section("RoutesConfigDump")["static_route_configs"][0]["route_config"]["virtual_hosts"][0]["routes"];
    assert_eq!(rows[0]["match"]["headers"][0]["string_match"]["safe_regex"]["regex"], "GET|POST");
    assert_eq!(rows[0]["route"]["prefix_rewrite"], "/b");
    assert_eq!(rows[1]["redirect"]["response_code"], "PERMANENT_REDIRECT");
    assert_eq!(rows[1]["metadata"]["filter_metadata"]["waylay"]["source_pod"]["name"], "web-1");
    let cluster = &section("ClustersConfigDump")["static_clusters"][0]["cluster"];
    assert_eq!((&cluster["name"], &cluster["type"]), (&"origin".into(), &"STATIC".into()));
    let endpoint = &section("EndpointsConfigDump")["static_endpoint_configs"][0]["endpoint_config"];
    assert_eq!(endpoint["cluster_name"], "origin");
    let named = world.json("/config_dump?resource=static_clusters&name_regex=nothing");
    assert_eq!(named["configs"], Value::Array(Vec::new()));
}

#[test]
fn the_lists_have_both_forms() {
    let world = World::new();
    assert!(world.ask("GET", "/clusters").1.contains("origin::127.0.0.1:9001::health_flags::healthy\n"));
    assert_eq!(world.ask("GET", "/listeners").1, "web::127.0.0.1:8080\n");
    assert_eq!(world.ask("GET", "/routes").1, "shop::all::0::rq_total::0\nshop::all::1::rq_total::0\n");
    let host = &world.json("/clusters?format=json")["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(host["address"]["socket_address"]["port_value"], 9001);
    assert_eq!(host["health_status"]["eds_health_status"], "HEALTHY");
    assert_eq!(world.json("/listeners?format=json")["listener_statuses"][0]["name"], "web");
    assert_eq!(world.json("/routes?format=json")["route_configs"][0]["virtual_hosts"][0]["routes"][1]["index"], 1);
    let info = world.json("/server_info");
    assert_eq!((&info["state"], &info["command_line_options"]["concurrency"]), (&"LIVE".into(), &1.into()));
    assert!(world.ask("GET", "/stats?filter=^server").1.lines().all(|line| line.starts_with("server.")));
    assert_eq!(world.ask("GET", "/stats?usedonly&filter=concurrency").1, "server.concurrency: 1\n");
}

#[test]
fn a_reload_answers_with_the_version_or_with_what_is_wrong() {
    let world = World::new();
    assert_eq!(world.ask("POST", "/reload"), (200, "configuration version 2 is in force\n".to_owned()));
    std::fs::write(world.configuration(), "listeners: [{nome: x}]\n").expect("configuration");
    let (status, errors) = world.ask("POST", "/reload");
    assert_eq!(status, 400);
    assert!(errors.contains("waylay.yaml:1:"), "{errors}");
    let info = world.json("/server_info");
    assert_eq!(info["configuration"]["version"], 2);
    assert!(info["configuration"]["error_state"]["details"].as_str().is_some_and(|details| details.contains("nome")));
}

#[test]
fn draining_is_told_by_readiness() {
    let world = World::new();
    assert_eq!(ask(tcp(world.readiness), "GET", "/healthz/ready"), (200, "LIVE\n".to_owned()));
    assert_eq!(world.ask("POST", "/drain_listeners").0, 200);
    let deadline = Instant::now() + Duration::from_secs(5);
    while ask(tcp(world.readiness), "GET", "/healthz/ready") != (503, "DRAINING\n".to_owned()) {
        assert!(Instant::now() < deadline, "still not draining");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_watcher_sees_records_until_it_hangs_up() {
    let world = World::new();
    let mut stream = UnixStream::connect(&world.socket).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    write!(stream, "GET /trace?comm=curl HTTP/1.1\r\nhost: x\r\n\r\n").expect("write");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !world.sinks.trace().is_watched() {
        assert!(Instant::now() < deadline, "never watched");
        std::thread::sleep(Duration::from_millis(5));
    }
    let request = crate::telemetry::samples::request();
    world.sinks.write(crate::telemetry::record::Record::Request(Box::new(request)));
    let lines = BufReader::new(&stream).lines().map(|line| line.expect("line"));
    let event = lines.into_iter().find(|line| line.starts_with('{')).expect("event");
    assert_eq!(serde_json::from_str::<Value>(&event).expect("JSON")["path"], "/checkout/cart?x=1");
    drop(stream);
    while world.sinks.trace().is_watched() {
        assert!(Instant::now() < deadline, "still watched");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn pods_are_listed_by_name_with_what_became_of_them() {
    let world = World::new();
    let status = |name: &str, state, reason: Option<&str>| EnrolmentStatus {
        workload: Arc::new(Workload { namespace: "shop".into(), name: name.into(), ..Workload::default() }),
        state,
        reason: reason.map(str::to_owned),
        netns_cookie: (state == EnrolmentState::Enrolled).then_some(42),
        since: std::time::SystemTime::UNIX_EPOCH,
        traffic: (state == EnrolmentState::Enrolled).then(Arc::default),
    };
    assert_eq!(world.ask("GET", "/pods"), (200, String::new()));
    let shared = world.running.as_ref().expect("running").shared();
    shared.enrolments.store(Arc::new(vec![
        status("web-1", EnrolmentState::Enrolled, None),
        status("db-1", EnrolmentState::Skipped, Some("no selector matches")),
    ]));
    assert_eq!(world.ask("GET", "/pods").1, "shop/db-1::skipped::no selector matches\nshop/web-1::enrolled\n");
    let (_, metrics) = world.ask("GET", "/stats/prometheus?filter=^pods");
    for line in ["waylay_pods_known{state=\"enrolled\"} 1", "waylay_pods_known{state=\"failed\"} 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line}\nin\n{metrics}");
    }
    let (_, stats) = world.ask("GET", r"/stats?filter=^pod\.");
    assert!(stats.contains("pod.shop/web-1.outbound.downstream_cx_total: 0\n"), "{stats}");
    assert!(!stats.contains("db-1"), "{stats}");
    let pods = &world.json("/pods?format=json")["pods"];
    assert_eq!((&pods[1]["name"], &pods[1]["netns_cookie"]), (&"web-1".into(), &42.into()));
    assert_eq!((&pods[0]["state"], &pods[0]["since"]), (&"skipped".into(), &"1970-01-01T00:00:00.000Z".into()));
}

#[test]
fn an_agent_that_enrols_no_pods_says_so_to_the_cni_plugin() {
    let world = World::new();
    let post = |path: &str, body: &Value| {
        ask_with(UnixStream::connect(&world.socket).expect("connect"), "POST", path, &body.to_string())
    };
    // A namespace, and not the agent's own for the network.
    let pod = json!({"container_id": "a1", "netns": "/proc/self/ns/uts", "namespace": "shop", "name": "web-1"});
    let (status, answer) = post("/cni/add", &pod);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer, json!({"answer": "not_selected", "reason": "this agent enrols no pods"}));
    assert_eq!(post("/cni/del", &json!({"container_id": "a1"})), (200, "OK\n".to_owned()));
    for (field, value, why) in [
        ("netns", json!("/proc/self/ns/net"), "is the network namespace of the agent itself"),
        ("netns", json!("/dev/null"), "/dev/null is no namespace"),
        ("netns", json!("/nonexistent"), "(os error 2)"),
        ("container_id", json!(7), "expected a string"),
        ("surplus", json!(7), "unknown field `surplus`"),
    ] {
        let mut pod = pod.clone();
        pod[field] = value;
        let (status, answer) = post("/cni/add", &pod);
        assert_eq!(status, 400, "{field}: {answer}");
        assert!(answer.contains(why), "{field}: {answer}");
    }
}
