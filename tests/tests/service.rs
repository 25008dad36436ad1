//! The agent under a service manager: what it tells it, as sd_notify(3) has it.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use waylay_tests::config::{BYTES, SHOP};
use waylay_tests::{Agent, SOON, World};

/// How long the service manager of these tests waits for a sign of life.
const WATCHDOG: Duration = Duration::from_millis(400);

/// A service manager as far as its notification socket goes.
struct Manager(UnixDatagram);

impl Manager {
    /// Starts the agent under it; the agent is not waited for.
    fn start(world: &World, config: &str, variables: &[String]) -> (Self, Agent) {
        let path = world.folder().join("notify");
        let socket = UnixDatagram::bind(&path).expect("binding the notification socket");
        let mut through = vec!["env".to_owned(), format!("NOTIFY_SOCKET={}", path.display())];
        through.extend_from_slice(variables);
        let through: Vec<_> = through.iter().map(String::as_str).collect();
        (Self(socket), Agent::spawn_through(world, config, &through))
    }

    /// The next message; `None` after `longest`.
    fn next_within(&self, longest: Duration) -> Option<String> {
        let mut buffer = [0; 4096];
        self.0.set_read_timeout(Some(longest)).expect("a time-out");
        match self.0.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("reading the notification socket: {error}"),
        }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.next_within(SOON).expect("a message")
    }

    /// Reads all that comes until nothing was heard for `quiet`.
    fn wait_silence(&self, quiet: Duration) {
        let deadline = Instant::now() + SOON;
        while self.next_within(quiet).is_some() {
            assert!(Instant::now() < deadline, "it does not fall silent");
        }
    }
}

#[test]
fn the_service_manager_hears_of_the_start_each_reload_and_the_end() {
    let world = World::new();
    let (manager, mut agent) = Manager::start(&world, BYTES, &[]);
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving configuration 1\n");
    // Who is told that the agent is ready may connect at once.
    assert_eq!(agent.get("/ready").expect("the admin socket").0, 200);

    agent.rewrite(&world, SHOP);
    let reloading = manager.next();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.split('\n').next());
    assert!(since.is_some_and(|usec| usec.parse::<u64>().is_ok_and(|usec| usec > 0)), "{reloading}");
    assert_eq!(manager.next(), "READY=1\nSTATUS=serving configuration 2\n");

    agent.rewrite(&world, "listeners: [nonsense]\n");
    assert!(manager.next().starts_with("RELOADING=1\n"));
    let refused = manager.next();
    assert!(refused.starts_with("READY=1\nSTATUS=the new configuration was not taken over: "), "{refused}");
    assert_eq!(refused.lines().count(), 2, "{refused}");

    agent.child().signal(Signal::SIGTERM);
    assert_eq!(manager.next(), "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=40000000\n");
    assert!(agent.child().wait(SOON).success());
    assert_eq!(manager.next_within(Duration::from_millis(50)), None, "no watchdog was asked for");
}

#[test]
fn the_watchdog_hears_nothing_while_a_worker_hangs() {
    let world = World::new();
    let (manager, mut agent) = Manager::start(&world, BYTES, &[format!("WATCHDOG_USEC={}", WATCHDOG.as_micros())]);
    assert!(manager.next().starts_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(manager.next_within(10 * WATCHDOG), Some("WATCHDOG=1\n".to_owned()));
    }
    let worker = thread_of(agent.child().pid(), "waylay-worker-1");
    ptrace::attach(worker).expect("stopping a worker");
    waitpid(worker, Some(WaitPidFlag::__WALL)).expect("a stopped worker");
    manager.wait_silence(3 * WATCHDOG);
    ptrace::detach(worker, None).expect("letting the worker go on");
    assert_eq!(manager.next(), "WATCHDOG=1\n");
    agent.stop();
}

/// The thread of that name.
fn thread_of(pid: i32, name: &str) -> Pid {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the agent's threads");
    let named = threads
        .flatten()
        .find(|thread| std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    let id = named.and_then(|thread| thread.file_name().to_string_lossy().parse().ok());
    Pid::from_raw(id.unwrap_or_else(|| panic!("no thread {name}")))
}

#[test]
fn a_service_manager_that_does_not_read_holds_nothing_up() {
    let world = World::new();
    // A quarter of a millisecond fills the socket and the agent's queue in no time.
    let (_deaf, agent) = Manager::start(&world, BYTES, &["WATCHDOG_USEC=500".to_owned()]);
    agent.wait_ready();
    std::thread::sleep(Duration::from_millis(500));
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let answer = world.app("curl", &["-sS", "--max-time", "10", "http://127.0.0.1:8000/"]).success();
    assert_eq!(answer, "the-origin GET / HTTP/1.1\n");
    agent.wait_records("connection", 1);
    agent.stop();
}
