//! Other programs at the connect hooks: one that rewrites the address of a service to that of an endpoint, as the load
//! balancer of a container network does.

use std::{
    net::{SocketAddrV4, TcpListener},
    path::Path,
};

use waylay::kernel::{
    Interception, Policy, Rule,
    cgroup::{Cgroup, mount_point},
    neighbours,
};

use crate::{
    addr,
    processes::Answering,
    world::{Client, World},
};

/// Nobody listens there: only the other program knows what it stands for.
const SERVICE: &str = "127.77.3.3:80";

/// Loads the program and attaches it to the cgroup that is named by its first argument, until its input ends. It replaces
/// the address and port of its arguments by those of the last.
const BALANCER: &str = r#"
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, data):
    buffer = ctypes.create_string_buffer(data, len(data))
    result = libc.syscall(321, command, buffer, len(data))
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def word(ip): return struct.unpack('=i', socket.inet_aton(ip))[0]
def insn(code, dst=0, src=0, off=0, imm=0): return struct.pack('=BBhi', code, src << 4 | dst, off, imm)
service, endpoint, port = sys.argv[2], sys.argv[3], int(sys.argv[4])
code = b''.join([
    insn(0x61, 2, 1, 4),                          # r2 = ctx->user_ip4
    insn(0x56, 2, 0, 4, word(service)),           # if w2 != service goto end
    insn(0xb4, 3, 0, 0, word(endpoint)), insn(0x63, 1, 3, 4),
    insn(0xb4, 3, 0, 0, socket.htons(port)), insn(0x63, 1, 3, 24),
    insn(0xb4, 0, 0, 0, 1), insn(0x95)])          # return 1
code_buffer = ctypes.create_string_buffer(code, len(code))
licence = ctypes.create_string_buffer(b'GPL')
program = bpf(5, struct.pack('=IIQQIIQII16sII', 18, len(code) // 8, ctypes.addressof(code_buffer),
    ctypes.addressof(licence), 0, 0, 0, 0, 0, b'test_balancer', 0, 10))
cgroup = os.open(sys.argv[1], os.O_RDONLY)
link = bpf(28, struct.pack('=IIIIIIQ', program, cgroup, 10, 0, 0, 0, 0))
print('attached', flush=True)
sys.stdin.read()
"#;

/// The other program, attached to `dir` until this is dropped.
fn balancer(dir: &Path, endpoint: SocketAddrV4) -> Client {
    let outside = mount_point().unwrap();
    let (ip, port) = (endpoint.ip().to_string(), endpoint.port().to_string());
    let service = addr(SERVICE).ip().to_string();
    let arguments = ["/usr/bin/python3", "-c", BALANCER, dir.to_str().unwrap(), &service, &ip, &port];
    let mut client = World::command_in(&outside, &arguments);
    assert_eq!(client.line(), "attached");
    client
}

fn endpoint() -> (Answering, SocketAddrV4) {
    let server = Answering::new(TcpListener::bind("127.0.0.1:0").unwrap(), "endpoint");
    let std::net::SocketAddr::V4(address) = server.address else { panic!("it is bound to an IPv4 address") };
    (server, address)
}

fn connect(dir: &Path, to: &str) -> Client {
    let (host, port) = to.rsplit_once(':').unwrap();
    let script = format!("import socket\nprint(socket.create_connection(('{host}', {port}), 5).recv(9).decode())");
    World::command_in(dir, &["/usr/bin/python3", "-c", &script])
}

/// The agent is to be told of the service, and not of the endpoint behind it.
fn check_service_is_seen(world: &World, interception: &Interception, from: &Path) {
    let client = connect(from, SERVICE);
    let accepted = world.accept(false);
    assert_eq!(interception.kernel().handover(&accepted).unwrap().unwrap().original_dst, addr(SERVICE));
    World::answer(accepted, "agent");
    assert_eq!(client.output(), "agent");
}

fn exclude_service() -> Policy {
    let rule = Rule { cidr: Some(addr(SERVICE).ip().into()), ports: vec![] };
    Policy { include: vec![], exclude: vec![rule, Rule { cidr: None, ports: vec![1024..=65535] }] }
}

#[test]
fn the_original_destination_is_the_services_wherever_the_other_program_sits() {
    let upper = World::new();
    let world = World::below(&upper);
    let child = World::below(&world);
    for (place, before) in
        [(upper.dir(), true), (upper.dir(), false), (world.dir(), true), (world.dir(), false), (child.dir(), true)]
    {
        let (_server, endpoint) = endpoint();
        let (interception, _balancer) = if before {
            let balancer = balancer(place, endpoint);
            (world.attach(|_| {}), balancer)
        } else {
            let interception = world.attach(|_| {});
            (interception, balancer(place, endpoint))
        };
        check_service_is_seen(&world, &interception, child.dir());
    }
}

#[test]
fn the_other_program_still_works_for_what_passes() {
    let world = World::new();
    let (_server, endpoint) = endpoint();
    let _balancer = balancer(world.dir(), endpoint);
    let _interception = world.attach(|options| options.policy = exclude_service());
    assert_eq!(connect(world.dir(), SERVICE).output(), "endpoint");
}

#[test]
fn what_is_found_is_told_by_name_and_place() {
    let upper = World::new();
    let world = World::below(&upper);
    let (_server, endpoint) = endpoint();
    let _above = balancer(upper.dir(), endpoint);
    let _here = balancer(world.dir(), endpoint);
    let _interception = world.attach(|_| {});
    let cgroup = Cgroup::open(world.dir()).unwrap();
    let told = |found: Vec<neighbours::Neighbour>| -> Vec<_> {
        found.into_iter().map(|found| (found.name, found.hook, found.cgroup)).collect()
    };
    let balancer = |dir: &Path| ("test_balancer".to_owned(), "connect4", dir.to_owned());
    assert_eq!(told(neighbours::before(&cgroup).unwrap()), [balancer(world.dir())]);
    assert!(told(neighbours::after(&cgroup).unwrap()).contains(&balancer(upper.dir())));
}

#[test]
fn an_instance_that_runs_before_all_others_leaves_the_nested_one_its_connections() {
    let upper = World::new();
    let nested = World::below(&upper);
    let (_server, endpoint) = endpoint();
    let _balancer = balancer(upper.dir(), endpoint);
    let above = upper.attach(|_| {});
    {
        let within = nested.attach(|_| {});
        check_service_is_seen(&nested, &within, nested.dir());
        // Beside the nested one the upper one still takes what comes.
        check_service_is_seen(&upper, &above, upper.dir());
        // And one that is nested once more wins again.
        let innermost = World::below(&nested);
        let inner = innermost.attach(|_| {});
        check_service_is_seen(&innermost, &inner, innermost.dir());
        check_service_is_seen(&nested, &within, nested.dir());
    }
    check_service_is_seen(&upper, &above, nested.dir());
}
