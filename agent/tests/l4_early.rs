//! The connection that the agent opens while a client is silent: when it is used, when it is not, and what the client
//! learns when it fails.

mod l4_support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use waylay::telemetry::ResponseFlags;

use l4_support::*;

#[test]
fn an_early_connection_is_used_when_the_client_speaks_after_all() {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::inspected(&[origin.address]));
    let mut client = agent.connect();
    let mut server = origin.accept();
    client.write_all(b"PING\r\n").expect("write");
    assert_eq!(read_exactly(&mut server, 6), b"PING\r\n");
    assert!(origin.is_left_alone_for(Duration::from_millis(50)), "a second connection");
    server.write_all(b"PONG").expect("write");
    assert_eq!(read_exactly(&mut client, 4), b"PONG");
    drop((client, server));
    let record = agent.records.only();
    assert!(!record.server_first);
    let stats = agent.stats();
    assert_eq!((stats.detection_early_cx_total.value(), stats.detection_early_cx_unused.value()), (1, 0));
    assert_eq!(stats.detection_opaque.value(), 1);
}

#[test]
fn an_early_connection_that_failed_is_tried_again_when_the_client_speaks() {
    let origin = nobody();
    let agent = AgentUnderTest::of(Site { chains: vec![http_chain(echo(b""))], ..Site::inspected(&[origin]) });
    let mut client = agent.connect();
    let cluster = agent.running.shared().runtime.stats.cluster(&"cluster-0-default".into());
    eventually("the early connection fails", || cluster.upstream_cx_connect_fail.value() == 1);
    let listener = std::net::TcpListener::bind(origin).expect("bind");
    client.write_all(b"PING\r\n").expect("write");
    let (mut server, _) = listener.accept().expect("accept");
    assert_eq!(read_exactly(&mut server, 6), b"PING\r\n");
}

#[test]
fn an_early_connection_that_leads_elsewhere_is_closed_unused() {
    let (opaque, http) = (TcpOrigin::new(), echo(b""));
    let agent = AgentUnderTest::of(Site { chains: vec![http_chain(http)], ..Site::inspected(&[opaque.address]) });
    let mut client = agent.connect();
    let mut early = opaque.accept();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(request).expect("write");
    assert_eq!(read_exactly(&mut client, request.len()), request);
    assert_eq!(read_to_end(&mut early), b"");
    drop(client);
    let record = agent.records.only();
    assert_eq!((record.detected, record.info.filter_chain.as_deref()), (Some("http/1.1"), Some("0")));
    assert_eq!(agent.stats().detection_early_cx_unused.value(), 1);
}

#[test]
fn a_silent_client_learns_soon_that_nobody_is_there_and_one_that_speaks_is_served() {
    let with_http = || Site { chains: vec![http_chain(echo(b""))], ..Site::inspected(&[nobody()]) };
    let (none, second) = (Duration::ZERO, Duration::from_secs(1));
    for (site, earliest) in [(Site::inspected(&[nobody()]), none), (with_http(), second)] {
        let agent = AgentUnderTest::of(site);
        let begun = Instant::now();
        let mut client = agent.connect();
        assert!(client.read(&mut [0]).is_err(), "it is reset");
        let took = begun.elapsed();
        assert!(earliest <= took && took < earliest + Duration::from_millis(500), "{took:?}");
        assert!(agent.records.only().flags.contains(ResponseFlags::UPSTREAM_CONNECTION_FAILURE));
    }
    let agent = AgentUnderTest::of(with_http());
    let mut client = agent.connect();
    std::thread::sleep(Duration::from_millis(500));
    // The first piece keeps the connection, however long the rest takes.
    client.write_all(b"GET / HT").expect("write");
    std::thread::sleep(Duration::from_millis(1000));
    client.write_all(b"TP/1.1\r\n\r\n").expect("write");
    assert_eq!(read_exactly(&mut client, 18), b"GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn an_endpoint_that_resets_a_silent_client_is_not_taken_for_one_that_ends() {
    for _ in 0..20 {
        let origin = TcpOrigin::new();
        let agent = AgentUnderTest::of(Site::inspected(&[origin.address]));
        let mut client = agent.connect();
        let server = origin.accept();
        std::thread::sleep(Duration::from_millis(5));
        reset(server);
        assert!(is_reset(&mut client));
        assert!(origin.is_left_alone_for(Duration::from_millis(20)), "a second connection");
        let record = agent.records.only();
        assert!(record.flags.contains(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION), "{record:?}");
        assert_eq!(record.endpoint.map(|endpoint| endpoint.socket()), Some(origin.address));
    }
}
