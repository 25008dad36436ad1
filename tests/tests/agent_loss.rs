//! A dead agent intercepts nothing; a hung one does what `on_agent_loss` says.

use std::time::Duration;

use nix::sys::signal::Signal;
use waylay_tests::config::BYTES;
use waylay_tests::world::Side;
use waylay_tests::{World, eventually};

/// Connects again and again for as long as the file `stop` is absent, then prints how many answers and which errors
/// it had.
const LOAD: &str = "
import os, socket, sys
good, bad = 0, {}
while not os.path.exists(sys.argv[1]):
    try:
        s = socket.create_connection(('127.0.0.1', 8000), timeout=10)
        s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
        data = rest(s)
        s.close()
        if not data.endswith(b'HTTP/1.1\\n'): raise EOFError()
        good += 1
    except Exception as error:
        bad[type(error).__name__] = bad.get(type(error).__name__, 0) + 1
    if (good + sum(bad.values())) % 50 == 0: print('progress', good, flush=True)
print('good', good, 'bad', sum(bad.values()), bad, flush=True)
";

fn load(world: &World) -> (waylay_tests::Child, std::path::PathBuf) {
    let stop = world.folder().join("stop");
    let child = world.spawn_python(LOAD, &[stop.to_str().expect("path")]);
    child.wait_for("progress");
    (child, stop)
}

fn finish(mut child: waylay_tests::Child, stop: &std::path::Path) -> (u64, u64, String) {
    std::fs::write(stop, "").expect("stop file");
    child.wait(waylay_tests::SOON);
    let text = child.stdout();
    let last = text.lines().last().expect("a summary").to_owned();
    let words: Vec<_> = last.split(' ').collect();
    (words[1].parse().expect("good"), words[3].parse().expect("bad"), last)
}

#[test]
fn after_kill_9_connections_go_straight_to_their_destination() {
    let world = World::new();
    let origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    let (child, stop) = load(&world);
    agent.kill();
    let at_death = origin.connections();
    eventually("the origin is reached directly", || origin.connections() > at_death + 200);
    let (good, bad, summary) = finish(child, &stop);
    // The client makes one connection at a time: only the one in flight at that moment may be lost.
    assert!(bad <= 1 && good > 200, "{summary}");
}

#[test]
fn hooks_have_the_highest_descriptors_so_that_they_are_released_first() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    for config in [BYTES, &loss("refuse")] {
        let agent = world.agent(config);
        let (child, stop) = load(&world);
        let (links, others) = agent.links_and_others();
        assert!(links.len() >= 6, "connect, getpeername, sock_ops and getsockopt: {links:?}");
        assert!(links.iter().min() > others.iter().max(), "links {links:?}, others {others:?}");
        finish(child, &stop);
        std::fs::remove_file(stop).expect("stop file");
        agent.stop();
    }
}

#[test]
fn an_agent_killed_and_restarted_under_load_takes_over_again() {
    let world = World::new();
    let origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    let (child, stop) = load(&world);
    agent.kill();
    let agent = world.agent(BYTES);
    let before = agent.records().len();
    eventually("the new agent serves", || agent.records().len() > before + 100);
    let (good, bad, summary) = finish(child, &stop);
    assert!(bad <= 1 && good > 100, "{summary}");
    assert!(origin.connections() > 100);
    agent.stop();
}

#[test]
fn sigterm_under_load_loses_no_connection() {
    let world = World::new();
    let origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    let (child, stop) = load(&world);
    agent.stop();
    let at_end = origin.connections();
    eventually("the origin is reached directly", || origin.connections() > at_end + 100);
    let (good, bad, summary) = finish(child, &stop);
    assert!(bad == 0 && good > 100, "{summary}");
}

const CONNECT: &str = "
import socket
try:
    s = socket.create_connection(('127.0.0.1', 8000), timeout=5)
    s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
    print(s.recv(1000).decode().splitlines()[-1])
except Exception as error:
    print(type(error).__name__)
";

fn loss(policy: &str) -> String {
    BYTES.replace("{cgroup: '@CGROUP@'}", &format!("{{cgroup: '@CGROUP@', on_agent_loss: {policy}}}"))
}

#[test]
fn a_hung_agent_is_bypassed_when_loss_is_allowed() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let mut agent = world.agent(&loss("allow"));
    assert_eq!(world.python(CONNECT), "the-origin GET / HTTP/1.1\n");
    agent.wait_records("connection", 1);
    agent.child().signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(world.python(CONNECT), "the-origin GET / HTTP/1.1\n");
    agent.child().signal(Signal::SIGCONT);
    eventually("the agent takes over again", || {
        assert_eq!(world.python(CONNECT), "the-origin GET / HTTP/1.1\n");
        agent.records().len() > 1
    });
    agent.stop();
}

#[test]
fn a_hung_agent_means_refused_connections_when_loss_is_refused() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let mut agent = world.agent(&loss("refuse"));
    assert_eq!(world.python(CONNECT), "the-origin GET / HTTP/1.1\n");
    agent.child().signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(2500));
    let error = world.python(CONNECT);
    assert!(["ConnectionRefusedError\n", "PermissionError\n"].contains(&error.as_str()), "{error}");
    agent.child().signal(Signal::SIGCONT);
    eventually("the agent serves again", || world.python(CONNECT) == "the-origin GET / HTTP/1.1\n");
    agent.stop();
    assert_eq!(world.python(CONNECT), "the-origin GET / HTTP/1.1\n", "an orderly stop takes the pins away");
}

#[test]
fn a_dead_agent_means_refused_connections_until_it_is_back_or_detached() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    world.agent(&loss("refuse")).kill();
    let refused = || ["ConnectionRefusedError\n", "PermissionError\n"].contains(&world.python(CONNECT).as_str());
    eventually("connections are refused", refused);
    let agent = world.agent(&loss("refuse"));
    assert_eq!(world.python(CONNECT), "the-origin GET / HTTP/1.1\n");
    agent.kill();
    eventually("connections are refused again", refused);
    let found = world
        .run(
            Side::Outside,
            waylay_tests::agent::binary().to_str().expect("path"),
            &["detach", "--cgroup", &world.cgroup_name(Side::App)],
        )
        .success();
    assert!(!found.is_empty());
    assert_eq!(world.python(CONNECT), "the-origin GET / HTTP/1.1\n");
}
