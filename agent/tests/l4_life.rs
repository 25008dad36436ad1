//! The life of the server, unprivileged: taken addresses, reloads, the drain.

mod l4_support;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use waylay::server::ServerError;

use l4_support::*;

#[test]
fn a_taken_address_is_an_error_that_names_its_holder() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = holder.local_addr().expect("address");
    let setup = Setup::of(Site { address: taken, ..Site::to(&[]) });
    let Err(ServerError::Bind(error)) = AgentUnderTest::try_start(setup) else { panic!("it starts") };
    let text = error.to_string();
    assert!(text.contains(&taken.to_string()) && text.contains(&format!("pid {}", std::process::id())), "{text}");
}

#[test]
fn a_second_agent_does_not_share_the_address_of_the_first() {
    let first = AgentUnderTest::of(Site::to(&[]));
    let setup = Setup::of(Site { address: first.address(), ..Site::to(&[]) });
    assert!(matches!(AgentUnderTest::try_start(setup), Err(ServerError::Bind(_))));
}

fn says(stream: &mut TcpStream, text: &[u8]) -> bool {
    stream.write_all(text).expect("write");
    read_exactly(stream, text.len()) == text
}

#[test]
fn a_reload_changes_new_connections_and_leaves_old_ones_alone() {
    let agent = AgentUnderTest::of(Site::to(&[echo(b"one ")]));
    let mut old = agent.connect();
    assert_eq!(read_exactly(&mut old, 4), b"one ");
    let two = echo(b"two ");
    let added = address("127.0.0.2:0");
    agent.change(|setup| setup.sites = vec![Site::to(&[two]), Site { address: added, ..Site::to(&[two]) }]);
    assert_eq!(agent.reload(), Ok(2));
    assert!(says(&mut old, b"still here"));
    assert_eq!(read_exactly(&mut agent.connect(), 4), b"two ");
    let own = agent.running.shared().own_listeners.load_full();
    let new = own.addresses().iter().find(|own| own.ip() == added.ip()).expect("the added listener");
    assert_eq!(read_exactly(&mut client(*new), 4), b"two ");

    agent.change(|setup| setup.sites.truncate(1));
    assert_eq!(agent.reload(), Ok(3));
    assert!(TcpStream::connect(new).is_err(), "the removed listener still accepts");
    assert!(says(&mut old, b"and still"));
    assert_eq!(agent.running.shared().runtime.stats.server.config_reload_success.value(), 2);
}

#[test]
fn a_broken_configuration_leaves_the_running_one_alone() {
    let agent = AgentUnderTest::of(Site::to(&[echo(b"one ")]));
    agent.change(|setup| setup.broken = Some("a.yaml:1:2: listeners: unknown field".to_owned()));
    assert_eq!(agent.reload(), Err("a.yaml:1:2: listeners: unknown field".to_owned()));
    assert_eq!(read_exactly(&mut agent.connect(), 4), b"one ");
    let shared = agent.running.shared();
    assert_eq!(shared.runtime.stats.server.config_reload_failure.value(), 1);
    assert!(shared.reload_failure.load().as_ref().is_some_and(|failure| failure.message.contains("unknown field")));
    agent.change(|setup| setup.broken = None);
    assert_eq!(agent.reload(), Ok(2));
    assert!(shared.reload_failure.load().is_none());
}

#[test]
fn draining_finishes_what_is_open_and_takes_nothing_new() {
    let agent = AgentUnderTest::of(Site::to(&[echo(b"")]));
    let mut client = agent.connect();
    assert!(says(&mut client, b"before"));
    let address = agent.address();
    agent.running.control().stop();
    eventually("new connections are refused", || TcpStream::connect(address).is_err());
    assert!(says(&mut client, b"during"));
    assert_eq!(agent.running.shared().state(), waylay::worker::State::Draining);
    drop(client);
    let begun = Instant::now();
    agent.running.wait().expect("stop");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // Others may have been accepted before the sockets were closed.
    assert_eq!(agent.records.find(|record| record.bytes_received == 12).flags.to_string(), "-");
}

#[test]
fn what_the_drain_deadline_cuts_short_is_reset_at_the_endpoint_too() {
    let origin = TcpOrigin::new();
    let setup = Setup { drain_timeout: Duration::from_millis(50), ..Setup::of(Site::to(&[origin.address])) };
    let agent = AgentUnderTest::start(setup);
    let mut client = agent.connect();
    client.write_all(b"half").expect("write");
    let mut server = origin.accept();
    assert_eq!(read_exactly(&mut server, 4), b"half");
    agent.running.stop().expect("stop");
    assert!(is_reset(&mut server), "half of what the client sends looks like all of it");
    assert!(is_reset(&mut client));
}

#[test]
fn what_outlasts_the_drain_deadline_is_reset_and_recorded() {
    let setup = Setup { drain_timeout: Duration::from_millis(200), ..Setup::of(Site::to(&[echo(b"")])) };
    let agent = AgentUnderTest::start(setup);
    let mut client = agent.connect();
    assert!(says(&mut client, b"before"));
    let begun = Instant::now();
    agent.running.stop().expect("stop");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert!(is_reset(&mut client));
    let record = agent.records.only();
    assert_eq!((record.flags.to_string(), record.bytes_received), ("LR".to_owned(), 6));
}
