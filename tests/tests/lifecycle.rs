//! Start, reload, end; and that nothing is left.

use std::time::Duration;

use nix::sys::signal::Signal;
use waylay_tests::agent::binary;
use waylay_tests::config::{BYTES, SHOP};
use waylay_tests::world::Side;
use waylay_tests::{World, eventually};

const KEEP: &str = "
import http.client, sys
connection = http.client.HTTPConnection('127.77.0.1', 8080, timeout=10)
for line in sys.stdin:
    connection.request('GET', line.strip())
    print(connection.getresponse().read().decode().strip(), flush=True)
";

/// Talks to a Python client that keeps one connection open.
struct Client {
    child: std::process::Child,
    lines: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Client {
    fn start(world: &World) -> Self {
        use std::io::BufRead;
        let mut command = world.command(Side::App, "python3");
        command.args(["-u", "-c", KEEP]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let lines = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    fn ask(&mut self, path: &str) -> String {
        use std::io::Write;
        writeln!(self.child.stdin.as_mut().expect("piped"), "{path}").expect("asking the client");
        self.lines.next().expect("an answer").expect("a line")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_reload_drops_no_connection_and_serves_the_next_request_by_the_new_rows() {
    let world = World::new();
    let _v1 = world.origin("checkout-v1", "127.0.0.1:9001");
    let _default = world.origin("default-svc", "127.0.0.1:9004");
    let mut agent = world.agent(SHOP);
    let mut client = Client::start(&world);
    assert_eq!(client.ask("/checkout"), "checkout-v1 GET /checkout HTTP/1.1");
    let next = SHOP.replace("prefix: /checkout", "prefix: /basket");
    agent.rewrite(&world, &next);
    eventually("the changed file is taken over", || agent.metric("waylay_server_config_reload_success") > 0.0);
    assert_eq!(
        world.app("curl", &["-sS", "http://127.77.0.1:8080/checkout"]).success(),
        "default-svc GET /checkout HTTP/1.1\n"
    );
    // The open connection lives on; whichever table it uses, it is answered.
    assert!(client.ask("/checkout").ends_with("GET /checkout HTTP/1.1"));
    agent.rewrite(&world, SHOP);
    agent.child().signal(Signal::SIGHUP);
    eventually("SIGHUP reloads", || {
        world.app("curl", &["-sS", "http://127.77.0.1:8080/checkout"]).success().starts_with("checkout-v1")
    });
    assert!(client.ask("/checkout").ends_with("GET /checkout HTTP/1.1"));
    drop(client);
    let connections = || -> Vec<_> { agent.records().into_iter().filter(|r| r["kind"] == "connection").collect() };
    eventually("the record of the kept connection", || connections().iter().any(|record| record["comm"] == "python3"));
    let connections = connections();
    assert!(connections.iter().all(|record| record["response_flags"] == "-"), "{connections:#?}");
    agent.stop();
}

#[test]
fn a_bad_file_leaves_the_running_configuration_alone_and_says_so() {
    let world = World::new();
    let _default = world.origin("default-svc", "127.0.0.1:9004");
    let mut agent = world.agent(SHOP);
    agent.rewrite(&world, &SHOP.replace("{cluster: default-svc}", "{cluster: defualt-svc}"));
    agent.child().signal(Signal::SIGHUP);
    eventually("it is refused", || agent.metric("waylay_server_config_reload_failure") > 0.0);
    agent.child().wait_for("did you mean");
    assert!(agent.child().stderr().contains("defualt-svc"), "{}", agent.child().stderr());
    assert_eq!(world.app("curl", &["-sS", "http://127.77.0.1:8080/x"]).success(), "default-svc GET /x HTTP/1.1\n");
    agent.stop();
}

#[test]
fn what_is_probably_not_meant_is_logged_at_the_start_and_at_a_reload() {
    let world = World::new();
    let last = "- {match: {prefix: /}, route: {cluster: default-svc}}";
    let shadowed = |path: &str| {
        SHOP.replace(
            last,
            &format!("{last}\n          - {{match: {{prefix: {path}}}, route: {{cluster: default-svc}}}}"),
        )
    };
    let mut agent = world.agent(&shadowed("/first"));
    agent.child().wait_for("(prefix /first) is shadowed by row");
    agent.rewrite(&world, &shadowed("/second"));
    agent.child().wait_for("(prefix /second) is shadowed by row");
    let log = agent.stop();
    let line = log.lines().find(|line| line.contains("/second")).expect("the line");
    assert!(line.contains("waylay.yaml:") && line.contains(": route_configs[0].virtual_hosts[0].routes["), "{line}");
}

#[test]
fn a_policy_that_the_kernel_cannot_take_changes_nothing() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let mut agent = world.agent(BYTES);
    // More port ranges than one network can carry, and another access log.
    let ports: Vec<String> = (0..40).map(|n| (20_000 + 2 * n).to_string()).collect();
    let outbound = format!("outbound: {{exclude: [{{ports: [{}]}}]}}", ports.join(", "));
    let text = std::fs::read_to_string(agent.config()).expect("the configuration");
    let text =
        text.replacen("intercept: {", &format!("intercept: {{{outbound}, "), 1).replacen("access.log", "other.log", 1);
    std::fs::write(agent.config(), text).expect("another configuration");
    agent.child().signal(Signal::SIGHUP);
    agent.child().wait_for("the interception policy cannot be put into the kernel");
    world.app("curl", &["-sS", "http://127.0.0.1:8000/"]).success();
    agent.wait_records("connection", 1);
    agent.stop();
}

#[test]
fn sigterm_lets_requests_in_flight_finish() {
    let world = World::new();
    let slow = world.spawn(
        Side::Outside,
        "python3",
        &[
            "-u",
            "-c",
            "
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print('asked', flush=True)
        time.sleep(1.5)
        self.send_response(200)
        self.send_header('content-length', '5')
        self.end_headers()
        self.wfile.write(b'slow\\n')
    def log_message(self, *args): pass
server = http.server.HTTPServer(('127.0.0.1', 9004), Handler)
print('listening', flush=True)
server.serve_forever()
",
        ],
    );
    slow.wait_for("listening");
    let agent = world.agent(SHOP);
    let mut client = world.spawn(Side::App, "curl", &["-sS", "--max-time", "20", "http://127.77.0.1:8080/"]);
    slow.wait_for("asked");
    agent.stop();
    client.wait(waylay_tests::SOON);
    assert_eq!(client.stdout(), "slow\n", "{}", client.stderr());
}

#[test]
fn a_connection_that_does_not_end_is_closed_at_the_drain_deadline() {
    let world = World::new();
    let server = world.spawn(
        Side::Outside,
        "python3",
        &["-u", "-c", "import socket, time\nl = socket.create_server(('127.0.0.1', 8000))\nprint('listening')\nc, _ = l.accept()\nc.sendall(b'hi')\ntime.sleep(600)\n"],
    );
    server.wait_for("listening");
    let agent = world.agent(&format!("drain_timeout: 1s\n{BYTES}"));
    let client = world.spawn(
        Side::App,
        "python3",
        &["-u", "-c", "import socket\ns = socket.create_connection(('127.0.0.1', 8000))\nprint(s.recv(2))\ntry:\n    print('end', s.recv(1))\nexcept OSError as error:\n    print('end', error)\n"],
    );
    client.wait_for("hi");
    let log = world.folder().join("access.log");
    agent.stop();
    client.wait_for("end");
    let text = std::fs::read_to_string(log).expect("the access log");
    assert_eq!(text.lines().count(), 1, "its record was written: {text}");
}

#[test]
fn a_port_in_use_is_said_with_its_address() {
    let world = World::new();
    let _squatter = world.origin("squatter", "127.0.0.1:15001");
    let file = world.file("config.yaml", &BYTES.replace("'@CGROUP@'", "/"));
    let mut child = world.spawn(Side::Outside, binary(), &["run", "-c", file.to_str().expect("path")]);
    assert_eq!(child.wait(waylay_tests::SOON).code(), Some(1));
    assert!(child.stderr().contains("127.0.0.1:15001") && child.stderr().contains("in use"), "{}", child.stderr());
}

#[test]
fn without_capabilities_the_start_fails_with_the_fix() {
    let world = World::new();
    let file = world.file(
        "config.yaml",
        &format!(
            "admin: {{socket: {}/a.sock, prometheus: null, readiness: null}}\n{}",
            world.folder().display(),
            BYTES.replace("'@CGROUP@'", "/")
        ),
    );
    let finished = world.run(
        Side::Outside,
        "setpriv",
        &[
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--",
            binary().to_str().expect("path"),
            "run",
            "-c",
            file.to_str().expect("path"),
        ],
    );
    let stderr = finished.failure();
    assert!(stderr.contains("CAP_BPF") && stderr.contains("sudo"), "{stderr}");
}

#[test]
fn nothing_is_left_after_the_agent() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let mut agent = world.agent(BYTES);
    world.app("curl", &["-sS", "http://127.0.0.1:8000/"]).success();
    let pid = agent.child().pid();
    let attached = || world.attached_programs();
    assert!(attached() > 0, "programs are attached while it runs");
    let socket = agent.socket().to_owned();
    agent.stop();
    eventually("no program is attached any more", || attached() == 0);
    assert!(!socket.exists(), "its admin socket is gone");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(world.pids(Side::App).is_empty());
    let agent = world.agent(BYTES);
    agent.kill();
    eventually("neither after a kill", || attached() == 0);
    std::thread::sleep(Duration::from_millis(50));
}
