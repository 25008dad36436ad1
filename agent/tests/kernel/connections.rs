//! One connection through the hooks: every family, every kind of socket, and what both sides see of it.

use std::{io::Read as _, net::SocketAddr};

use waylay::kernel::{Counter, Handover, Interception, inspect};

use crate::{
    NOBODY, addr, exclude,
    world::{self, World, counter, original_dst_v4, original_dst_v6},
};

/// Connects to `dst` from within the cgroup and checks everything both sides can see of it.
fn check_redirected(world: &World, interception: &Interception, family: &str, dst: &str, expected: &str) {
    let client = world.python(&format!(
        "s = socket.socket(socket.{family})\ns.connect({})\nprint(peer(s))\nprint(s.recv(9).decode())",
        world::py_addr(dst)
    ));
    let accepted = world.accept(addr(expected).is_ipv6());
    let Handover { original_dst, process } = interception.kernel().handover(&accepted).unwrap().unwrap();
    assert_eq!(original_dst, addr(expected));
    assert_eq!(process.pid, client.pid());
    assert_eq!(process.uid, 0);
    assert!(process.comm.starts_with("python"), "{process:?}");
    assert_eq!(process.cgroup_id, world.cgroup_id());
    assert_eq!(process.netns_cookie, interception.kernel().netns_cookie());
    match addr(expected) {
        SocketAddr::V4(expected) => assert_eq!(original_dst_v4(&accepted), expected),
        SocketAddr::V6(expected) => assert_eq!(original_dst_v6(&accepted), expected),
    }
    World::answer(accepted, "hello");
    assert_eq!(client.output(), format!("{dst}\nhello"));
}

#[test]
fn a_connection_brings_its_original_destination_in_every_address_family() {
    let world = World::new();
    let interception = world.attach(|_| {});
    check_redirected(&world, &interception, "AF_INET", NOBODY, NOBODY);
    check_redirected(&world, &interception, "AF_INET6", "[::1]:7", "[::1]:7");
    check_redirected(&world, &interception, "AF_INET6", "[::ffff:127.77.0.1]:80", NOBODY);
    check_redirected(&world, &interception, "AF_INET", "127.77.0.1:65535", "127.77.0.1:65535");
    assert_eq!(counter(&interception, Counter::RedirectedV4), 2);
    assert_eq!(counter(&interception, Counter::RedirectedV6), 1);
    assert_eq!(counter(&interception, Counter::RedirectedV4Mapped), 1);
    assert_eq!(counter(&interception, Counter::HandoverTaken), 4);
    assert_eq!(counter(&interception, Counter::OriginalDstAnswered), 4);
    // Python may ask once more when it throws the socket away.
    assert!(counter(&interception, Counter::PeernameAnswered) >= 4);
    interception.detach().unwrap();
}

#[test]
fn an_unspecified_destination_is_the_loopback() {
    let world = World::new();
    let interception = world.attach(|_| {});
    let client = world.python("s = socket.socket()\ns.connect(('0.0.0.0', 81))\nprint(peer(s))");
    let accepted = world.accept(false);
    let handover = interception.kernel().handover(&accepted).unwrap().unwrap();
    assert_eq!(handover.original_dst, addr("127.0.0.1:81"));
    assert_eq!(client.output(), "127.0.0.1:81");
}

#[test]
fn one_socket_that_connects_three_times_never_keeps_an_old_destination() {
    let world = World::new();
    let (server, server_addr) = world::greeter("direct");
    let interception = world.attach(|options| options.policy = exclude(server_addr));
    let client = world.python(&format!(
        "s = socket.socket()\n\
         for dst in [('127.77.0.1', 80), ('127.0.0.1', {}), ('127.77.0.2', 81)]:\n\
         \x20   s.connect(dst)\n\
         \x20   print(peer(s), s.recv(9).decode())\n\
         \x20   disconnect(s)",
        server_addr.port()
    ));
    for expected in [NOBODY, "127.77.0.2:81"] {
        let accepted = world.accept(false);
        let handover = interception.kernel().handover(&accepted).unwrap().unwrap();
        assert_eq!(handover.original_dst, addr(expected));
        World::answer(accepted, "agent");
    }
    assert_eq!(client.output(), format!("127.77.0.1:80 agent\n{server_addr} direct\n127.77.0.2:81 agent"));
    server.join().unwrap();
    assert_eq!(counter(&interception, Counter::PassedExcluded), 1);
}

#[test]
fn a_stray_client_of_the_agents_listener_has_no_destination() {
    let world = World::new();
    let interception = world.attach(|_| {});
    let address = world.redirect_v4();
    let client = world.python(&format!("s = socket.create_connection(('127.0.0.1', {}))", address.port()));
    let accepted = world.accept(false);
    assert_eq!(interception.kernel().handover(&accepted).unwrap(), None);
    client.output();
    assert_eq!(counter(&interception, Counter::PassedOwnListener), 1);
}

#[test]
fn udp_and_the_agents_own_sockets_are_left_alone() {
    let world = World::new();
    let interception = world.attach(|_| {});
    world.python("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 53))").output();
    assert_eq!(counter(&interception, Counter::PassedNotTcp), 1);

    let multipath = 262;
    for protocol in [0, multipath] {
        let (server, server_addr) = world::greeter("direct");
        let mut client = world.python(&format!(
            "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, {protocol})\n\
             print(s.fileno(), flush=True)\n\
             input()\n\
             s.connect(('127.0.0.1', {}))\n\
             print(s.recv(9).decode())",
            server_addr.port()
        ));
        let fd: i32 = client.line().parse().unwrap();
        interception.kernel().stamp(&client.descriptor(fd), waylay::listener::TrafficDirection::Outbound).unwrap();
        client.say("go");
        assert_eq!(client.output(), "direct");
        server.join().unwrap();
    }
    assert_eq!(counter(&interception, Counter::PassedBypass), 2);
}

#[test]
fn a_full_handover_map_is_counted_and_never_gives_a_wrong_destination() {
    let mut world = World::new();
    world.listen_with_backlog(0);
    let interception = world.attach(|options| options.handover_entries = 1);
    let dial = |n: u8| {
        let client = world.python(&format!(
            "s = socket.socket()\ns.settimeout(30)\ns.connect(('127.77.0.{n}', 80))\nprint(s.recv(9).decode())"
        ));
        let count = |wanted| counter(&interception, wanted);
        world::wait_until(|| count(Counter::HandoverPublished) + count(Counter::HandoverFull) == u64::from(n));
        client
    };
    // The first fills the accept queue, the second's SYN is dropped and its entry stays, the third's finds no room.
    let clients = [dial(1), dial(2), dial(3)];
    assert_eq!(counter(&interception, Counter::HandoverFull), 1);
    let mut destinations: Vec<_> = (0..3)
        .map(|_| {
            let accepted = world.accept(false);
            let handover = interception.kernel().handover(&accepted).unwrap();
            World::answer(accepted, "agent");
            handover.map(|handover| handover.original_dst)
        })
        .collect();
    destinations.sort();
    assert_eq!(destinations, [None, Some(addr(NOBODY)), Some(addr("127.77.0.2:80"))]);
    for client in clients {
        client.output();
    }
}

#[test]
fn a_connect_that_fails_takes_its_entry_back() {
    let mut world = World::new();
    world.listen_with_backlog(0);
    let interception = world.attach(|_| {});
    let filler = world.python("s = socket.create_connection(('127.77.0.1', 80))\ninput()");
    world::wait_until(|| counter(&interception, Counter::HandoverTaken) == 1);
    let client = world.python(
        "s = socket.socket()\ns.settimeout(0.3)\n\
         try:\n\x20   s.connect(('127.77.0.2', 80))\nexcept TimeoutError:\n\x20   print('timeout')\ns.close()",
    );
    assert_eq!(client.output(), "timeout");
    assert_eq!(counter(&interception, Counter::HandoverAbandoned), 1);
    let instances = inspect::instances().unwrap();
    let instance = instances.iter().find(|i| i.id() == interception.kernel().instance()).unwrap();
    assert_eq!(instance.handover().unwrap(), []);
    drop(filler);
}

/// A multipath socket, TCP Fast Open in both its forms: the destination is never lost.
#[test]
fn multipath_and_fast_open_clients_keep_their_destination() {
    let dials = [
        (
            "multipath",
            "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\ns.connect(('127.77.0.1', 80))\ns.send(b'hi')",
        ),
        ("MSG_FASTOPEN", "s = socket.socket()\ns.sendto(b'hi', 0x20000000, ('127.77.0.1', 80))"),
        (
            "TCP_FASTOPEN_CONNECT",
            "s = socket.socket()\ns.setsockopt(6, 30, 1)\ns.connect(('127.77.0.1', 80))\ns.send(b'hi')",
        ),
    ];
    for (name, dial) in dials {
        let world = World::new();
        let interception = world.attach(|_| {});
        // Twice: the second time a fast open client holds a cookie and sends its data in the SYN.
        for _ in 0..2 {
            let client = world.python(&format!("{dial}\nprint(s.recv(9).decode())\nprint(peer(s))"));
            let mut accepted = world.accept(false);
            let handover = interception.kernel().handover(&accepted).unwrap();
            assert_eq!(handover.map(|handover| handover.original_dst), Some(addr(NOBODY)), "{name}");
            accepted.read_exact(&mut [0; 2]).unwrap();
            World::answer(accepted, "agent");
            assert_eq!(client.output(), format!("agent\n{NOBODY}"), "{name}");
        }
        assert_eq!(counter(&interception, Counter::RedirectedV4), 2, "{name}");
    }
}

#[test]
fn a_socket_bound_to_a_device_is_left_alone() {
    let world = World::new();
    let (server, server_addr) = world::greeter("direct");
    let interception = world.attach(|_| {});
    let client = world.python(&format!(
        "s = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo')\n\
         s.connect(('127.0.0.1', {}))\nprint(s.recv(9).decode())",
        server_addr.port()
    ));
    assert_eq!(client.output(), "direct");
    server.join().unwrap();
    assert_eq!(counter(&interception, Counter::PassedBoundDevice), 1);
}

#[test]
fn a_wildcard_listener_is_exempt_on_every_address_of_this_machine() {
    let world = World::new();
    let (server, server_addr) = world::greeter("direct");
    let wildcard = SocketAddr::from(([0, 0, 0, 0], server_addr.port()));
    let interception = world.attach(|options| options.own_listeners.push(wildcard));
    let client = world.python(&format!(
        "s = socket.create_connection(('127.0.0.1', {}))\nprint(s.recv(9).decode())",
        server_addr.port()
    ));
    assert_eq!(client.output(), "direct");
    server.join().unwrap();
    assert_eq!(counter(&interception, Counter::PassedOwnListener), 1);
}

/// The handover and SO_ORIGINAL_DST belong to the agent's cgroup, and must run once however the two cgroups lie.
#[test]
fn the_agent_may_live_beside_or_below_the_intercepted_cgroup() {
    if let Ok(placement) = std::env::var(world::PLACEMENT) {
        let world = World::for_an_agent_placed(&placement);
        let interception = world.attach(|_| {});
        check_redirected(&world, &interception, "AF_INET", NOBODY, NOBODY);
        check_redirected(&world, &interception, "AF_INET6", "[::1]:7", "[::1]:7");
        assert_eq!(counter(&interception, Counter::HandoverPublished), 2);
        assert_eq!(counter(&interception, Counter::HandoverTaken), 2);
        assert_eq!(counter(&interception, Counter::OriginalDstAnswered), 2);
        return;
    }
    for placement in ["beside", "below"] {
        world::run_again_as("connections::the_agent_may_live_beside_or_below_the_intercepted_cgroup", placement);
    }
}
