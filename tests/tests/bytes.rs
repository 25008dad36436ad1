//! Connections that are passed on as bytes end as they would have without the agent.

use waylay_tests::World;
use waylay_tests::config::BYTES;
use waylay_tests::world::Side;

/// A Python server on port 8000 that runs `handler(conn)` for one connection, started outside the interception.
fn server(world: &World, handler: &str) -> waylay_tests::Child {
    let program = format!(
        "import socket, struct, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('127.0.0.1', 8000))
listener.listen()
print('listening', flush=True)
conn, _ = listener.accept()
def everything(s):
    data = b''
    while True:
        got = s.recv(65536)
        if not got: return data
        data += got
def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.close()
{handler}
"
    );
    let child = world.spawn(Side::Outside, "python3", &["-u", "-c", &program]);
    child.wait_for("listening");
    child
}

#[test]
fn the_client_may_end_its_side_first() {
    let world = World::new();
    let _server = server(&world, "data = everything(conn)\nconn.sendall(b'got %d' % len(data))\nconn.close()");
    let agent = world.agent(BYTES);
    let printed = world.python(
        "import socket
s = socket.create_connection(('127.0.0.1', 8000))
s.sendall(b'x' * 1000000)
s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode(), s.recv(100))
",
    );
    assert_eq!(printed, "got 1000000 b''\n");
    let record = &agent.wait_records("connection", 1)[0];
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&1_000_000.into(), &11.into()));
    assert_eq!(record["response_flags"], "-");
    agent.stop();
}

#[test]
fn the_server_may_end_its_side_first() {
    let world = World::new();
    let server = server(
        &world,
        "conn.sendall(b'bye')\nconn.shutdown(socket.SHUT_WR)\nprint('got', len(everything(conn)), flush=True)",
    );
    let agent = world.agent(BYTES);
    let printed = world.python(
        "import socket
s = socket.create_connection(('127.0.0.1', 8000))
data = rest(s)
s.sendall(b'y' * 500000)
s.close()
print(data.decode())
",
    );
    assert_eq!(printed, "bye\n");
    server.wait_for("got 500000");
    let record = &agent.wait_records("connection", 1)[0];
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&500_000.into(), &3.into()));
    agent.stop();
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    let world = World::new();
    let _server = server(&world, "conn.recv(1)\nreset(conn)");
    let agent = world.agent(BYTES);
    let printed = world.python(
        "import socket
s = socket.create_connection(('127.0.0.1', 8000))
s.sendall(b'x')
try:
    print('received', s.recv(10))
except ConnectionResetError:
    print('reset')
",
    );
    assert_eq!(printed, "reset\n");
    agent.wait_records("connection", 1);
    agent.stop();
}

#[test]
fn a_reset_by_the_client_reaches_the_server_as_a_reset() {
    let world = World::new();
    let server = server(
        &world,
        "try:\n    conn.sendall(b'hello')\n    everything(conn)\n    print('end', flush=True)\nexcept ConnectionResetError:\n    print('reset', flush=True)",
    );
    let agent = world.agent(BYTES);
    world.python(
        "import socket, struct
s = socket.create_connection(('127.0.0.1', 8000))
s.recv(5)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()
",
    );
    server.wait_for("reset");
    agent.wait_records("connection", 1);
    agent.stop();
}

#[test]
fn a_refused_upstream_ends_the_connection_with_flag_uf() {
    let world = World::new();
    let agent = world.agent(BYTES);
    let printed = world.python(
        "import socket
s = socket.create_connection(('127.0.0.1', 8999))
try:
    print(s.recv(10))
except ConnectionResetError:
    print(b'')
",
    );
    assert_eq!(printed, "b''\n");
    let record = &agent.wait_records("connection", 1)[0];
    assert!(record["response_flags"].as_str().is_some_and(|flags| flags.contains("UF")), "{record:#}");
    assert_eq!(record["original_dst"], "127.0.0.1:8999");
    agent.stop();
}

#[test]
fn a_thousand_connections_at_once_are_all_served() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    let printed = world.python(
        "import asyncio
async def one(i):
    reader, writer = await asyncio.open_connection('127.0.0.1', 8000)
    writer.write(b'GET /%d HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n' % i)
    data = await reader.read()
    writer.close()
    return data.endswith(b'the-origin GET /%d HTTP/1.1\\n' % i)
async def main():
    print(sum(await asyncio.gather(*(one(i) for i in range(1000)))))
asyncio.run(main())
",
    );
    assert_eq!(printed, "1000\n");
    let records = agent.wait_records("connection", 1000);
    assert!(records.iter().all(|record| record["original_dst"] == "127.0.0.1:8000"));
    agent.stop();
}
