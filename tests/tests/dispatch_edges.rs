//! `dispatch: kernel` where more happens than the ring has room for, and where endpoints come from names.

use nix::sys::signal::Signal;
use serde_json::Value;
use waylay_tests::world::Side;
use waylay_tests::{Agent, World, eventually};

fn config(cluster: &str) -> String {
    format!(
        "
intercept: {{cgroup: '@CGROUP@'}}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - {{name: web, address: '0.0.0.0:8080', bind_to_port: false, dispatch: kernel,
      default_filter_chain: {{tcp_proxy: {{cluster: web}}}}}}
clusters:
  - {{name: passthrough, type: original_dst}}
  - {{name: web, {cluster}}}
"
    )
}

/// Accepts whatever comes and keeps it.
const SERVER: &str = "
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('127.0.0.1', 9001))
listener.listen(4096)
print('listening', flush=True)
kept = []
while True: kept.append(listener.accept())
";

/// More connections than the ring has room for events, then their ends all at once, on a signal.
const CLIENT: &str = "
import resource, signal, socket, struct
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
kept = [socket.create_connection(('127.77.0.1', 8080)) for i in range(6500)]
print('connected', flush=True)
signal.sigwait([signal.SIGUSR1])
for s in kept:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.close()
print('closed', flush=True)
";

const CONNECTIONS: usize = 6_500;

#[test]
fn ends_that_find_no_room_in_the_ring_are_told_all_the_same_and_once_each() {
    let world = World::new();
    let server = world.spawn(Side::Outside, "python3", &["-u", "-c", SERVER]);
    server.wait_for("listening");
    let mut agent = world.agent(&config("endpoints: ['127.0.0.1:9001']"));
    let client = world.spawn_python(CLIENT, &[]);
    client.wait_for("connected");
    let active = |agent: &Agent| agent.metric("waylay_listener_downstream_cx_active{listener=\"web\"}");
    eventually("all are counted as open", || active(&agent) == CONNECTIONS as f64);

    // While it stands still, it takes nothing out of the ring.
    agent.child().signal(Signal::SIGSTOP);
    client.signal(Signal::SIGUSR1);
    client.wait_for("closed");
    agent.child().signal(Signal::SIGCONT);

    let records = agent.wait_records("connection", CONNECTIONS);
    let no_room = |record: &&Value| {
        let details = record["connection_termination_details"].as_str();
        details.is_some_and(|details| details.contains("no room in the kernel's ring"))
    };
    let untold = records.iter().filter(no_room).count();
    assert!(untold > 0 && untold < CONNECTIONS, "{untold} of {CONNECTIONS}: the ring was full, and was used");
    assert_eq!(agent.metric("waylay_kernel_dispatch_end_lost"), untold as f64);
    let mut clients: Vec<_> = records.iter().map(|record| record["downstream_remote_address"].to_string()).collect();
    clients.sort();
    clients.dedup();
    assert_eq!(clients.len(), CONNECTIONS, "a record for each connection");
    assert_eq!(active(&agent), 0.0);
    assert_eq!(agent.metric("waylay_cluster_upstream_cx_active{cluster=\"web\"}"), 0.0);
    agent.stop();
}

/// Says which address it was dispatched to: the server's name is in its answer.
const ASK: &str = "
import socket
s = socket.create_connection(('127.77.0.1', 8080))
s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
print(rest(s).decode().splitlines()[-1].split()[0])
";

#[test]
fn endpoints_follow_the_addresses_of_their_name() {
    let world = World::new();
    let (_one, _two) = (world.origin("one", "127.0.0.1:9001"), world.origin("two", "127.0.0.2:9001"));
    let hosts = world.file("hosts", "127.0.0.1 web.test\n");
    // In a mount namespace of its own, the agent has this file for /etc/hosts.
    let through = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$0\" /etc/hosts && exec \"$@\"",
        hosts.to_str().expect("UTF-8"),
    ];
    let agent = Agent::spawn_through(
        &world,
        &config("type: strict_dns, endpoints: ['web.test:9001'], dns_refresh_rate: 200ms"),
        &through,
    );
    agent.wait_ready();
    eventually("the name's address is in the kernel's table", || world.python(ASK) == "one\n");
    // In place: what is mounted is the file, not its name.
    std::fs::write(&hosts, "127.0.0.2 web.test\n").expect("hosts");
    eventually("the kernel dispatches to the new address", || world.python(ASK) == "two\n");
    assert!(agent.metric("waylay_kernel_dispatched_v4") >= 2.0);
    agent.stop();
}
