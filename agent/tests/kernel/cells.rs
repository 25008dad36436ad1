//! The places in which connections are kept on their way to the agent: what happens when they are taken, and when a
//! connection ends before it is accepted.

use std::{collections::BTreeMap, net::SocketAddr};

use waylay::kernel::{Counter, Handover, Interception};

use crate::{
    NOBODY, addr,
    world::{self, World, counter, original_dst_v4},
};

const AT_ONCE: u16 = 600;

/// What the agent asks for, once for each connection.
fn take_over(interception: &Interception, accepted: &std::net::TcpStream, client: SocketAddr) -> Option<Handover> {
    let kernel = interception.kernel();
    kernel.take_over(accepted, (client, accepted.local_addr().unwrap()), kernel.netns_cookie()).unwrap()
}

#[test]
fn a_connection_can_be_looked_at_and_is_taken_over_once() {
    let world = World::new();
    let interception = world.attach(|_| {});
    let client = world.python("s = socket.create_connection(('127.77.0.1', 80))\nprint(s.recv(9).decode())");
    let accepted = world.accept(false);
    let look = || interception.kernel().handover(&accepted).unwrap().map(|handover| handover.original_dst);
    assert_eq!((look(), look()), (Some(addr(NOBODY)), Some(addr(NOBODY))));
    let taken = take_over(&interception, &accepted, accepted.peer_addr().unwrap()).unwrap();
    assert_eq!((taken.original_dst, taken.process.pid), (addr(NOBODY), client.pid()));
    assert_eq!(take_over(&interception, &accepted, accepted.peer_addr().unwrap()), None);
    assert_eq!(look(), None);
    World::answer(accepted, "agent");
    assert_eq!(client.output(), "agent");
}

#[test]
fn whoever_asks_for_the_original_destination_leaves_it_to_others() {
    let world = World::new();
    let interception = world.attach(|_| {});
    let client = world.python("s = socket.create_connection(('127.77.0.1', 80))\nprint(s.recv(9).decode())");
    let accepted = world.accept(false);
    for _ in 0..2 {
        assert_eq!(SocketAddr::from(original_dst_v4(&accepted)), addr(NOBODY));
    }
    let taken = take_over(&interception, &accepted, accepted.peer_addr().unwrap()).unwrap();
    assert_eq!((taken.original_dst, taken.process.pid), (addr(NOBODY), client.pid()));
    World::answer(accepted, "agent");
    client.output();
}

#[test]
fn one_that_is_reset_before_it_is_accepted_keeps_its_destination_and_the_next_of_the_same_port_gets_its_own() {
    let world = World::new();
    let interception = world.attach(|_| {});
    let dial = |port: u16, to: &str, end: &str| {
        world.python(&format!(
            "s = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
             s.bind(('127.0.0.1', {port}))\ns.connect(('{to}', 80))\nprint(s.getsockname()[1], flush=True)\n{end}"
        ))
    };
    let reset = "s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')\ns.close()";
    let mut first = dial(0, "127.77.0.1", reset);
    let port: u16 = first.line().parse().unwrap();
    first.output();
    let mut second = dial(port, "127.77.0.2", "print(s.recv(9).decode())");
    assert_eq!(second.line(), port.to_string());
    let client = SocketAddr::from(([127, 0, 0, 1], port));
    let (of_first, of_second) = (world.accept(false), world.accept(false));
    // The other way round than they came.
    let taken = take_over(&interception, &of_second, client).unwrap();
    assert_eq!(taken.original_dst, addr("127.77.0.2:80"));
    let taken = interception.kernel().take_over(&of_first, (client, world.redirect_v4()), 0).unwrap().unwrap();
    assert_eq!(taken.original_dst, addr(NOBODY));
    World::answer(of_second, "agent");
    assert_eq!(second.output(), "agent");
}

#[test]
fn many_at_once_keep_their_destinations_and_leave_nothing() {
    let mut world = World::new();
    world.listen_with_backlog(4096);
    let interception = world.attach(|_| {});
    let mut client = world.python(&format!(
        "all = [socket.create_connection(('127.77.0.1', 1000 + n)) for n in range({AT_ONCE})]\n\
         print(*(s.getsockname()[1] for s in all), flush=True)\n\
         print(sum(peer(s) == f'127.77.0.1:{{1000 + n}}' for n, s in enumerate(all)), flush=True)\ninput()"
    ));
    let ports = client.line();
    let dialled: BTreeMap<u16, u16> =
        (1000..).zip(ports.split(' ')).map(|(to, from)| (from.parse().unwrap(), to)).collect();
    assert_eq!(client.line(), AT_ONCE.to_string());
    let accepted: Vec<_> = (0..AT_ONCE).map(|_| world.accept(false)).collect();
    for stream in &accepted {
        let from = stream.peer_addr().unwrap();
        let taken = take_over(&interception, stream, from).unwrap();
        assert_eq!(taken.original_dst, SocketAddr::from(([127, 77, 0, 1], dialled[&from.port()])));
    }
    assert_eq!(counter(&interception, Counter::HandoverTaken), u64::from(AT_ONCE));
    drop(accepted);
    client.say("bye");
    client.output();
    let instance = world::instance(&interception);
    world::wait_until(|| instance.sockets().unwrap().is_empty() && instance.handover().unwrap().is_empty());
}
