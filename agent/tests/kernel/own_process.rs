//! What the agent's own process connects passes without a stamp, and what anybody else connects does not pass by that.

use std::{fs, io::Read as _, net::TcpStream, thread, time::Duration};

use socket2::{Domain, Socket, Type};
use waylay::{
    kernel::{Counter, Interception, OnAgentLoss},
    listener::TrafficDirection,
};

use crate::{
    NOBODY,
    world::{self, Client, World, counter, py_addr},
};

/// Connects from this process, on the calling thread.
fn hears(word: &'static str) {
    let (server, address) = world::greeter(word);
    let mut heard = String::new();
    TcpStream::connect(address).unwrap().read_to_string(&mut heard).unwrap();
    assert_eq!(heard, word);
    server.join().unwrap();
}

fn dial(world: &World, starter: &[&str]) -> Client {
    let script = format!("import socket\nprint(socket.create_connection({}).recv(9).decode())", py_addr(NOBODY));
    world.command(&[starter, &["/usr/bin/python3", "-c", &script]].concat())
}

fn is_taken(world: &World, interception: &Interception, client: Client) {
    let accepted = world.accept(false);
    let handover = interception.kernel().handover(&accepted).unwrap().unwrap();
    assert_eq!(handover.original_dst.to_string(), NOBODY);
    World::answer(accepted, "agent");
    assert_eq!(client.output(), "agent");
}

/// The number counts that the kernel knows a process by, not the one that it has in a pid namespace.
#[test]
fn all_that_the_agent_connects_passes_and_nothing_of_its_children_does() {
    let Ok(placement) = std::env::var(world::PLACEMENT) else {
        let test = "own_process::all_that_the_agent_connects_passes_and_nothing_of_its_children_does";
        world::run_again_as(test, "below");
        world::run_again_as(test, "beside");
        world::run_again_by(&["unshare", "--pid", "--fork", "--kill-child"], test, "below");
        world::run_again_by(&["unshare", "--pid", "--fork", "--kill-child"], test, "beside");
        return;
    };
    let world = World::for_an_agent_placed(&placement);
    let interception = world.attach(|options| options.known_by_process = true);
    if placement == "beside" {
        // It may be moved later.
        fs::write(world.dir().join("cgroup.procs"), "0").unwrap();
    }
    hears("direct");
    thread::spawn(|| hears("thread")).join().unwrap();
    assert_eq!(counter(&interception, Counter::PassedBypass), 2);
    assert_eq!(counter(&interception, Counter::PassedNotTcp), 0);

    is_taken(&world, &interception, dial(&world, &[]));
    // In its own eyes number 1, as the agent may be.
    is_taken(&world, &interception, dial(&world, &["unshare", "--pid", "--fork", "--kill-child"]));
    assert_eq!(counter(&interception, Counter::PassedBypass), 2);
}

#[test]
fn an_agent_without_signs_of_life_is_not_known_any_more() {
    if std::env::var(world::PLACEMENT).is_err() {
        world::run_again_as("own_process::an_agent_without_signs_of_life_is_not_known_any_more", "below");
        return;
    }
    let world = World::for_an_agent_placed("below");
    let interception = world.attach(|options| {
        options.known_by_process = true;
        options.heartbeat_loss = Duration::from_millis(50);
    });
    thread::sleep(Duration::from_millis(100));
    hears("direct");
    let count = |wanted| counter(&interception, wanted);
    assert_eq!((count(Counter::PassedBypass), count(Counter::PassedAgentLost)), (0, 1));
    interception.heartbeat().unwrap();
}

/// The hooks may be there without the agent, and its number may be another process's.
#[test]
fn where_hooks_outlive_the_agent_only_a_stamp_lets_pass() {
    if std::env::var(world::PLACEMENT).is_err() {
        world::run_again_as("own_process::where_hooks_outlive_the_agent_only_a_stamp_lets_pass", "below");
        return;
    }
    let world = World::for_an_agent_placed("below");
    let interception = world.attach(|options| {
        options.known_by_process = true;
        options.on_agent_loss = OnAgentLoss::Refuse;
    });
    let taken = TcpStream::connect(NOBODY).unwrap();
    assert!(interception.kernel().handover(&world.accept(false)).unwrap().is_some());
    drop(taken);

    let (server, address) = world::greeter("direct");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    interception.kernel().let_pass(&socket, TrafficDirection::Outbound).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut heard = String::new();
    TcpStream::from(socket).read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "direct");
    server.join().unwrap();
    assert_eq!(counter(&interception, Counter::PassedBypass), 1);
    interception.detach().unwrap();
}

/// Only a holder of the maps can mark the socket on which the hook is asked who somebody is.
#[test]
fn nobody_else_can_have_itself_known() {
    let world = World::new();
    let interception = world.attach(|options| options.known_by_process = true);
    let client = world.python(&format!(
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         u.bind(('127.0.0.1', 0))\n\
         u.connect(u.getsockname())\n\
         u.getpeername()\n\
         s = socket.create_connection({})\n\
         print(s.recv(9).decode())",
        py_addr(NOBODY)
    ));
    is_taken(&world, &interception, client);
    assert_eq!(counter(&interception, Counter::PassedBypass), 0);
}
