//! Every kind of destination address and of `connect(2)` is taken, and the application notices nothing.

use waylay_tests::World;
use waylay_tests::config::BYTES;

/// Dials `target` with a socket of `family` and prints the answer's first line and the peer it sees.
fn dial(family: &str, target: &str, port: u16) -> String {
    format!(
        "import socket
s = socket.socket(socket.{family}, socket.SOCK_STREAM)
s.settimeout(10)
s.connect(('{target}', {port}))
s.sendall(b'GET /hello HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
print(rest(s).decode().splitlines()[-1])
print(s.getpeername()[0], s.getpeername()[1])
"
    )
}

fn check(family: &str, origin: &str, target: &str, original_dst: &str) {
    let world = World::new();
    let _origin = world.origin("the-origin", origin);
    let agent = world.agent(BYTES);
    let port = original_dst.rsplit_once(':').expect("port").1.parse().expect("port");
    let printed = world.python(&dial(family, target, port));
    assert_eq!(
        printed.lines().collect::<Vec<_>>(),
        ["the-origin GET /hello HTTP/1.1", &format!("{target} {port}")],
        "the origin's answer, and getpeername as it was dialled"
    );
    let record = &agent.wait_records("connection", 1)[0];
    assert_eq!(record["original_dst"], original_dst);
    assert_eq!(record["comm"], "python3");
    assert!(record["pid"].as_u64().is_some_and(|pid| pid > 1), "{record:#}");
    assert_eq!(record["response_flags"], "-");
    agent.stop();
}

#[test]
fn ipv4_is_taken() {
    check("AF_INET", "127.0.0.1:8000", "127.0.0.1", "127.0.0.1:8000");
}

#[test]
fn ipv4_to_another_loopback_address_is_taken() {
    check("AF_INET", "127.9.9.9:8000", "127.9.9.9", "127.9.9.9:8000");
}

#[test]
fn ipv6_is_taken() {
    check("AF_INET6", "[::1]:8000", "::1", "[::1]:8000");
}

#[test]
fn ipv4_mapped_ipv6_takes_the_ipv4_path() {
    check("AF_INET6", "127.0.0.1:8000", "::ffff:127.0.0.1", "127.0.0.1:8000");
}

#[test]
fn a_non_blocking_connect_is_taken() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    let printed = world.python(
        "import asyncio
async def main():
    reader, writer = await asyncio.open_connection('127.0.0.1', 8000)
    writer.write(b'GET /async HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
    print((await reader.read()).decode().splitlines()[-1])
    print(writer.get_extra_info('peername')[1])
asyncio.run(main())
",
    );
    assert_eq!(printed, "the-origin GET /async HTTP/1.1\n8000\n");
    assert_eq!(agent.wait_records("connection", 1)[0]["original_dst"], "127.0.0.1:8000");
    agent.stop();
}

#[test]
fn a_second_connect_on_the_same_socket_goes_to_the_second_destination() {
    let world = World::new();
    let _one = world.origin("one", "127.0.0.1:8001");
    let _two = world.origin("two", "127.0.0.1:8002");
    let agent = world.agent(BYTES);
    // connect(AF_UNSPEC) dissolves the first association; the socket, and its storage, stay.
    let printed = world.python(
        "import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket()
for port in (8001, 8002):
    s.connect(('127.0.0.1', port))
    s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')
    data = b''
    while b'\\n' not in data.partition(b'\\r\\n\\r\\n')[2]:
        data += s.recv(65536)
    print(data.decode().splitlines()[-1], s.getpeername()[1])
    unspec = struct.pack('H14x', socket.AF_UNSPEC)
    assert libc.connect(s.fileno(), unspec, 16) == 0
",
    );
    assert_eq!(printed, "one GET / HTTP/1.1 8001\ntwo GET / HTTP/1.1 8002\n");
    let mut destinations: Vec<_> =
        agent.wait_records("connection", 2).iter().map(|record| record["original_dst"].to_string()).collect();
    destinations.sort();
    assert_eq!(destinations, ["\"127.0.0.1:8001\"", "\"127.0.0.1:8002\""]);
    agent.stop();
}

#[test]
fn udp_is_left_alone() {
    let world = World::new();
    let agent = world.agent(BYTES);
    let printed = world.python(
        "import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 5353))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(('127.0.0.1', 5353))
client.send(b'ping')
print(server.recv(10).decode(), client.getpeername()[1])
",
    );
    assert_eq!(printed, "ping 5353\n");
    assert!(agent.records().is_empty());
    agent.stop();
}
