//! The handover from the client's socket to the accepted one, where it is hard.

use waylay_tests::config::BYTES;
use waylay_tests::world::Side;
use waylay_tests::{World, eventually, tools};

/// Dials port 8000 from a fixed source port and prints the answer's last line.
const FIXED_SOURCE: &str = "
import socket, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', 44444))
s.connect(('127.0.0.1', 8000))
print('connected', flush=True)
time.sleep(0.3)
s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
print(rest(s).decode().splitlines()[-1])
";

#[test]
fn the_same_source_port_in_two_network_namespaces_is_no_confusion() {
    let (one, two) = (World::new(), World::new());
    let _one = one.origin("one", "127.0.0.1:8000");
    let _two = two.origin("two", "127.0.0.1:8000");
    let (first, second) = (one.agent(BYTES), two.agent(BYTES));
    for _ in 0..5 {
        let children = [&one, &two].map(|world| world.spawn_python(FIXED_SOURCE, &[]));
        for (mut child, name) in children.into_iter().zip(["one", "two"]) {
            child.wait(waylay_tests::SOON);
            assert_eq!(child.stdout(), format!("connected\n{name} GET / HTTP/1.1\n"), "{}", child.stderr());
        }
    }
    for agent in [&first, &second] {
        assert!(agent.wait_records("connection", 5).iter().all(|record| record["original_dst"] == "127.0.0.1:8000"));
    }
    first.stop();
    second.stop();
}

#[test]
fn a_full_handover_map_is_counted_and_misleads_no_connection() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    // Room for one handshake. A full accept queue keeps handshakes in flight: with the agent stopped, its queue fills.
    let config = BYTES.replace("{cgroup: '@CGROUP@'}", "{cgroup: '@CGROUP@', handover_entries: 1}");
    let agent = world.agent(&config);
    let printed = world.python(
        "import asyncio
async def one(i):
    try:
        reader, writer = await asyncio.open_connection('127.0.0.1', 8000)
        writer.write(b'GET /%d HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n' % i)
        data = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        if not data: return 'refused'
        return 'served' if data.endswith(b'the-origin GET /%d HTTP/1.1\\n' % i) else 'misled'
    except (ConnectionError, OSError):
        return 'refused'
async def main():
    results = await asyncio.gather(*(one(i) for i in range(400)))
    print(results.count('served') + results.count('refused'), results.count('misled'))
asyncio.run(main())
",
    );
    assert_eq!(printed, "400 0\n");
    let served = agent.records().iter().filter(|record| record["original_dst"] == "127.0.0.1:8000").count();
    assert!(served >= 1, "one at a time still passes");
    assert_eq!(world.app("curl", &["-sS", "http://127.0.0.1:8000/"]).success(), "the-origin GET / HTTP/1.1\n");
    agent.stop();
}

#[test]
fn failures_in_the_kernel_are_in_the_agents_log_and_do_not_flood_it() {
    let world = World::new();
    // It never accepts: the first connection fills its queue, the second's handshake stays in flight for ever.
    let proxy = "import socket, sys, time
s = socket.socket()
s.bind(('127.0.0.1', 15009))
s.listen(0)
print('listening', flush=True)
time.sleep(600)";
    let proxy = world.spawn(Side::Outside, "python3", &["-c", proxy]);
    proxy.wait_for("listening");
    let intercept = "{cgroup: '@CGROUP@', handover_entries: 1, redirect_to: ['127.0.0.1:15009'], outbound: {exclude: [{cidr: '::/0'}]}}";
    let mut agent = world.agent(&format!("intercept: {intercept}\n"));
    world.python(
        "import socket, time
sockets = [socket.socket() for _ in range(50)]
for s in sockets:
    s.setblocking(False)
    s.connect_ex(('127.77.0.1', 80))
time.sleep(0.2)
",
    );
    const LINE: &str = "kernel: the handover map is full: the connection to ::ffff:127.77.0.1 port 80 will be refused";
    eventually("the failure is in the log", || agent.child().stderr().contains(LINE));
    let failures = agent.metric("waylay_kernel_handover_full");
    let log = agent.stop();
    let told = log.lines().filter(|line| line.contains(LINE)).count();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(failures >= 40.0 && told <= 2 * cpus, "{failures} failures, told of:\n{log}");
}

#[test]
fn mptcp_sockets_keep_their_destination() {
    let world = World::new();
    world.host("sysctl", &["-q", "net.mptcp.enabled=1"]).expect("MPTCP");
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    for _ in 0..3 {
        let answer = world.app("mptcpize", &["run", "curl", "-sS", "--max-time", "10", "http://127.0.0.1:8000/"]);
        assert_eq!(answer.success(), "the-origin GET / HTTP/1.1\n");
    }
    agent.stop();
}

#[test]
fn tcp_fast_open_clients_keep_their_destination() {
    let world = World::new();
    world.host("sysctl", &["-q", "net.ipv4.tcp_fastopen=1023"]).expect("TCP Fast Open");
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    for _ in 0..3 {
        let answer = world.app("curl", &["-sS", "--tcp-fastopen", "--max-time", "10", "http://127.0.0.1:8000/"]);
        assert_eq!(answer.success(), "the-origin GET / HTTP/1.1\n");
    }
    let printed = world.python(
        "import socket
for _ in range(3):
    s = socket.socket()
    s.settimeout(10)
    s.sendto(b'GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n', socket.MSG_FASTOPEN, ('127.0.0.1', 8000))
    print(rest(s).decode().splitlines()[-1])
",
    );
    assert_eq!(printed, "the-origin GET / HTTP/1.1\n".repeat(3));
    agent.stop();
}

#[test]
fn an_unmodified_envoy_routes_by_original_destination() {
    let world = World::new();
    let _one = world.origin("one", "127.0.0.1:8001");
    let _two = world.origin("two", "[::1]:8002");
    let envoy_config = world.file("envoy.yaml", &envoy_config());
    let envoy = world.spawn(
        Side::Outside,
        tools::venv("envoy"),
        &["-c", envoy_config.to_str().expect("path"), "--concurrency", "1", "--disable-hot-restart", "-l", "info"],
    );
    envoy.wait_for("starting main dispatch loop");
    let agent = world.agent("intercept: {cgroup: '@CGROUP@', redirect_to: ['127.0.0.1:15009', '[::1]:15009']}\n");
    for (url, answer) in [("http://127.0.0.1:8001/", "one"), ("http://[::1]:8002/", "two")] {
        let page = world.app("curl", &["-sS", "-i", "-g", "--max-time", "10", url]).success();
        assert!(page.contains(&format!("{answer} GET / HTTP/1.1")) && page.contains("server: envoy"), "{page}");
    }
    agent.stop();
}

/// Envoy on both families, each listener with the original destination as its endpoint.
fn envoy_config() -> String {
    let listener = |name: &str, address: &str| ENVOY_LISTENER.replace("@NAME@", name).replace("@ADDRESS@", address);
    format!(
        "static_resources:
  clusters:
  - {{name: original, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s}}
  listeners:{}{}",
        listener("v4", "127.0.0.1"),
        listener("v6", "::1")
    )
}

const ENVOY_LISTENER: &str = "
  - name: @NAME@
    address: {socket_address: {address: '@ADDRESS@', port_value: 15009}}
    listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outbound
          route_config:
            name: all
            virtual_hosts:
            - {name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: original}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
";
