//! The life of an instance: loss of the agent, pins, drain, policy changes, other instances, and reading it all.

use std::{net::TcpListener, time::Duration};

use waylay::kernel::{
    Counter, HEARTBEAT_LOSS, Interception, KernelError, OnAgentLoss, Policy, Rule, Verdict, inspect, leftovers,
};

use crate::{
    NOBODY, addr, exclude,
    world::{self, World, counter},
};

#[test]
fn a_lost_agent_lets_connections_pass_and_catches_them_again_when_it_is_back() {
    let world = World::new();
    let (server, server_addr) = world::greeter("direct");
    let interception = world.attach(|options| options.heartbeat_loss = HEARTBEAT_LOSS);
    let connect =
        format!("s = socket.create_connection(('127.0.0.1', {}))\nprint(s.recv(9).decode())", server_addr.port());
    std::thread::sleep(HEARTBEAT_LOSS + Duration::from_millis(50));
    assert_eq!(world.python(&connect).output(), "direct");
    server.join().unwrap();
    assert_eq!(counter(&interception, Counter::PassedAgentLost), 1);
    interception.heartbeat().unwrap();
    let client = world.python(&connect);
    World::answer(world.accept(false), "agent");
    assert_eq!(client.output(), "agent");
}

#[test]
fn under_refuse_the_hooks_outlive_the_agent_until_another_takes_over() {
    let world = World::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!(
        "try:\n\x20   s = socket.create_connection(('127.0.0.1', {}))\n\x20   print(s.recv(9).decode())\n\
         except OSError as e:\n\x20   print(e.errno)",
        server.local_addr().unwrap().port()
    );
    let interception = world.attach(|options| {
        options.on_agent_loss = OnAgentLoss::Refuse;
        options.heartbeat_loss = HEARTBEAT_LOSS;
    });
    let first = interception.kernel().instance();
    std::thread::sleep(HEARTBEAT_LOSS + Duration::from_millis(50));
    assert_eq!(world.python(&connect).output(), "111");
    assert_eq!(counter(&interception, Counter::RefusedAgentLost), 1);

    drop(interception);
    world::wait_until(|| inspect::instances().unwrap().iter().any(|i| i.id() == first && !i.is_held()));
    assert_eq!(world.python(&connect).output(), "111", "the pins outlive the process");

    let interception = world.attach(|options| options.on_agent_loss = OnAgentLoss::Refuse);
    assert!(!world.has_pins_of(first), "the successor has taken the old pins away");
    let client = world.python(&connect);
    World::answer(world.accept(false), "agent");
    assert_eq!(client.output(), "agent");
    interception.detach().unwrap();
    assert!(world.pins().is_empty());
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err(), "nothing has passed the hooks so far");
    let client = world.python(&connect);
    World::answer(world::accept_from(&server), "direct");
    assert_eq!(client.output(), "direct");
}

#[test]
fn detach_removes_what_a_refusing_agent_has_left_and_leaves_living_ones_alone() {
    let world = World::new();
    let living = World::new();
    let alive = living.attach(|options| options.on_agent_loss = OnAgentLoss::Refuse);
    let dead = world.attach(|options| options.on_agent_loss = OnAgentLoss::Refuse);
    let instance = dead.kernel().instance();
    drop(dead);
    world::wait_until(|| inspect::instances().unwrap().iter().any(|i| i.id() == instance && !i.is_held()));
    let found = leftovers::detach(None).unwrap();
    assert!(
        found.iter().any(|leftover| matches!(leftover,
            leftovers::Leftover::Removed { instance: removed, .. } if *removed == instance)),
        "{found:?}"
    );
    assert!(
        found.iter().any(|leftover| matches!(leftover,
            leftovers::Leftover::InUse { instance, .. } if *instance == alive.kernel().instance())),
        "{found:?}"
    );
    assert!(world.pins().is_empty());
    assert!(!living.pins().is_empty());
    alive.detach().unwrap();
}

#[test]
fn a_replaced_policy_is_in_force_for_the_next_connection() {
    let world = World::new();
    let (server, server_addr) = world::greeter("direct");
    let mut interception = world.attach(|_| {});
    let connect =
        format!("s = socket.create_connection(('127.0.0.1', {}))\nprint(s.recv(9).decode())", server_addr.port());
    let client = world.python(&connect);
    World::answer(world.accept(false), "agent");
    assert_eq!(client.output(), "agent");
    interception.replace_policy(&exclude(server_addr)).unwrap();
    assert_eq!(world.python(&connect).output(), "direct");
    server.join().unwrap();
    for _ in 0..5 {
        interception.replace_policy(&Policy::default()).unwrap();
    }
    let client = world.python(&connect);
    World::answer(world.accept(false), "agent");
    assert_eq!(client.output(), "agent");
}

#[test]
fn a_draining_agent_takes_no_new_connections() {
    let world = World::new();
    let (server, server_addr) = world::greeter("direct");
    let interception = world.attach(|_| {});
    interception.stop_redirecting().unwrap();
    let client = world.python(&format!(
        "s = socket.create_connection(('127.0.0.1', {}))\nprint(s.recv(9).decode())",
        server_addr.port()
    ));
    assert_eq!(client.output(), "direct");
    server.join().unwrap();
    assert_eq!(counter(&interception, Counter::PassedDraining), 1);
}

#[test]
fn an_instance_in_a_child_cgroup_is_not_redirected_again_by_the_one_above() {
    for inner_first in [true, false] {
        let outer = World::new();
        let inner = World::below(&outer);
        let (above, below);
        if inner_first {
            below = inner.attach(|_| {});
            above = outer.attach(|_| {});
        } else {
            above = outer.attach(|_| {});
            below = inner.attach(|_| {});
        }
        let client = inner.python("s = socket.create_connection(('127.77.0.1', 80))\nprint(s.recv(9).decode())");
        let accepted = inner.accept(false);
        let handover = below.kernel().handover(&accepted).unwrap().unwrap();
        assert_eq!(handover.original_dst, addr(NOBODY));
        World::answer(accepted, "inner");
        assert_eq!(client.output(), "inner");
        assert_eq!(counter(&above, Counter::PassedOwnListener), 1);

        let exempt = |of: &Interception| {
            let instances = inspect::instances().unwrap();
            let instance = instances.iter().find(|i| i.id() == of.kernel().instance()).unwrap();
            instance.exempt().unwrap()
        };
        let id = below.kernel().instance();
        assert!(exempt(&above).iter().any(|row| row.instance == id));
        below.detach().unwrap();
        assert!(exempt(&above).iter().all(|row| row.instance != id));
    }
}

#[test]
fn decisions_are_told_only_while_somebody_traces() {
    let world = World::new();
    let interception = world.attach(|_| {});
    let dial = || {
        let client = world.python("s = socket.create_connection(('127.77.0.1', 80))\nprint(s.recv(9).decode())");
        World::answer(world.accept(false), "agent");
        let pid = client.pid();
        client.output();
        pid
    };
    dial();
    let kernel = interception.kernel();
    let mut trace = kernel.trace().unwrap();
    assert!(matches!(kernel.trace(), Err(KernelError::TraceBusy)));
    assert_eq!(trace.next(), None);
    let pid = dial();
    let event = trace.next().unwrap();
    assert_eq!(trace.next(), None);
    assert_eq!((event.destination, event.process.pid), (addr(NOBODY), pid));
    assert_eq!((event.verdict, event.reason), (Verdict::Redirected, Counter::RedirectedV4));
    drop(trace);
    dial();
    assert_eq!(kernel.trace().unwrap().next(), None);
}

#[test]
fn an_intercepted_family_without_a_listener_is_a_startup_error() {
    let world = World::new();
    let Err(error) = world.try_attach(|options| options.redirect_v6 = None) else { panic!("attached") };
    assert_eq!(
        error.to_string(),
        "IPv6 connections would be intercepted, but no IPv6 address is there to receive them: \
         listen on an IPv6 address as well, or exclude ::/0"
    );
    let all_of_ipv6 = Rule { cidr: Some("::/0".parse().unwrap()), ports: vec![] };
    world
        .try_attach(|options| {
            options.redirect_v6 = None;
            options.policy.exclude.push(all_of_ipv6);
        })
        .unwrap();
}

#[test]
fn an_instance_can_be_read_without_its_agent() {
    let world = World::new();
    let interception = world.attach(|options| options.policy = exclude(addr("10.0.0.0:22")));
    let instances = inspect::instances().unwrap();
    let instance = instances.iter().find(|i| i.id() == interception.kernel().instance()).unwrap();
    let status = instance.status().unwrap();
    assert_eq!(status.agent_pid, std::process::id());
    assert_eq!(status.cgroup_id, world.cgroup_id());
    assert_eq!(status.redirect_v4, Some(world.redirect_v4()));
    assert_eq!((status.agent_lost, status.redirecting, status.tracing), (false, true, false));
    assert_eq!(status.programs.len(), 6, "{status:?}");
    let policy = instance.policy().unwrap();
    let row = policy.iter().find(|row| row.prefix == "10.0.0.0/32").unwrap();
    assert_eq!((row.include.as_slice(), row.exclude.as_slice()), (&["all".to_owned()][..], &["22".to_owned()][..]));
    assert_eq!(policy.len(), 3);
    let netns = instance.netns().unwrap();
    assert_eq!(netns.len(), 1);
    assert_eq!(netns[0].netns_cookie, interception.kernel().netns_cookie());
    assert_eq!((netns[0].outbound, netns[0].inbound), (Some(policy[0].policy), None));
    assert_eq!(instance.counters().unwrap().len(), Counter::ALL.len());
}

#[test]
fn what_sockets_remember_can_be_listed() {
    let world = World::new();
    let interception = world.attach(|_| {});
    let mut client = world.python(
        "a = socket.create_connection(('127.77.0.1', 80))\n\
         b = socket.socket(socket.AF_INET6)\nb.connect(('::1', 7))\nprint('there', flush=True)\ninput()",
    );
    assert_eq!(client.line(), "there");
    let accepted = [world.accept(false), world.accept(true)];
    let instances = inspect::instances().unwrap();
    let instance = instances.iter().find(|i| i.id() == interception.kernel().instance()).unwrap();
    let rows = instance.sockets().unwrap();
    for (accepted, dialled) in accepted.iter().zip([NOBODY, "[::1]:7"]) {
        let (ours, theirs) = (accepted.local_addr().unwrap(), accepted.peer_addr().unwrap());
        for (role, local, remote) in [("client", theirs, ours), ("accepted", ours, theirs)] {
            let row = rows.iter().find(|row| row.local == local && row.remote == remote).unwrap();
            assert_eq!((row.role, row.original_dst), (role, Some(addr(dialled))));
            assert_eq!(row.process.as_ref().unwrap().pid, client.pid());
        }
    }
    assert_eq!(rows.len(), 4, "{rows:?}");
    client.say("bye");
    client.output();
}
