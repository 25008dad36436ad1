//! What the agent does when there is nothing to do, and when file descriptors run out. These measure the process, so
//! they have one of their own and run one at a time.

mod l4_support;

use std::io::Write;
use std::net::Shutdown;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use socket2::{Domain, Socket, Type};

use l4_support::*;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(us.unsigned_abs())
}

fn cpu_time_of(what: impl FnOnce()) -> Duration {
    let before = cpu_time();
    what();
    cpu_time() - before
}

fn a_second() {
    std::thread::sleep(Duration::from_secs(1));
}

#[test]
fn connections_that_wait_cost_no_time() {
    let _alone = alone();
    let agent = AgentUnderTest::of(Site::inspected(&[echo(b"")]));
    let mut clients: Vec<_> = (0..100).map(|_| agent.connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        match i % 4 {
            // Silent, with an early connection; undecidable; through; through and half closed.
            0 => {}
            1 => client.write_all(b"GE").expect("write"),
            2 => client.write_all(b"x").expect("write"),
            _ => {
                client.write_all(b"x").expect("write");
                client.shutdown(Shutdown::Write).expect("shutdown");
            }
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let busy = cpu_time_of(a_second);
    assert!(busy < Duration::from_millis(100), "{busy:?} of a second");
}

#[test]
fn without_file_descriptors_the_agent_waits_and_goes_on_when_there_are_some() {
    let _alone = alone();
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let clients: Vec<Socket> =
        (0..20).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket")).collect();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    // Standard input, output and error are there: no number below is free for a new one.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("limit");
    for client in &clients {
        client.set_nonblocking(true).expect("nonblocking");
        // In progress, or already done.
        let _ = client.connect(&agent.address().into());
    }
    let stats = agent.stats();
    let busy = cpu_time_of(a_second);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("limit");
    assert!(stats.downstream_cx_accept_error.value() > 0, "nothing ran out");
    assert!(busy < Duration::from_millis(200), "{busy:?} of a second");
    drop(clients);
    let mut client = agent.connect();
    client.write_all(b"here again").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    while read_to_end(&mut origin.accept()) != b"here again" {}
}
