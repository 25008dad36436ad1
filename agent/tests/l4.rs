//! The connection pipeline, unprivileged: explicit listeners, real loopback sockets, and after each connection its record
//! and its statistics.

mod l4_support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use waylay::listener::OnFiltersTimeout;
use waylay::listener::chain::ChainMatch;

use l4_support::*;

#[test]
fn bytes_go_both_ways_and_are_counted_exactly() {
    let agent = AgentUnderTest::of(Site::to(&[echo(b"")]));
    let mut client = agent.connect();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| i as u8).collect();
    let mut writer = client.try_clone().expect("clone");
    let body = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&body).expect("write");
        writer.shutdown(Shutdown::Write).expect("shutdown");
    });
    assert!(read_to_end(&mut client) == sent, "the echo differs");
    writing.join().expect("writer");
    let record = agent.records.only();
    assert_eq!((record.bytes_received, record.bytes_sent), (3_000_000, 3_000_000));
    assert_eq!((record.flags.to_string(), record.details), ("-".to_owned(), None));
    assert_eq!(record.info.filter_chain.as_deref(), Some("default"));
    assert!(record.endpoint.is_some() && record.duration > Duration::ZERO);
    let stats = agent.stats();
    assert_eq!(stats.downstream_cx_total.value(), 1);
    assert_eq!(stats.downstream_cx_rx_bytes_total.value(), 3_000_000);
    eventually("no connection is open", || stats.downstream_cx_active.value() == 0);
    agent.running.stop().expect("stop");
}

#[test]
fn a_client_that_has_nothing_more_to_send_still_gets_its_answer() {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let mut client = agent.connect();
    client.write_all(b"question").expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    let mut server = origin.accept();
    assert_eq!(read_to_end(&mut server), b"question");
    std::thread::sleep(Duration::from_millis(50));
    server.write_all(b"answer").expect("write");
    drop(server);
    assert_eq!(read_to_end(&mut client), b"answer");
    assert_eq!(agent.records.only().flags.to_string(), "-");
}

#[test]
fn a_server_that_has_nothing_more_to_send_still_gets_everything() {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let mut client = agent.connect();
    let mut server = origin.accept();
    server.write_all(b"bye").expect("write");
    server.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_to_end(&mut client), b"bye");
    client.write_all(b"not yet").expect("write");
    drop(client);
    assert_eq!(read_to_end(&mut server), b"not yet");
    let record = agent.records.only();
    assert_eq!((record.bytes_received, record.bytes_sent), (7, 3));
}

#[test]
fn a_reset_by_the_client_resets_the_endpoint() {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let client = agent.connect();
    let mut server = origin.accept();
    reset(client);
    assert!(is_reset(&mut server));
    assert_eq!(agent.records.only().flags.to_string(), "DC");
}

#[test]
fn a_reset_by_the_endpoint_reaches_the_client_after_the_bytes_before_it() {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let mut client = agent.connect();
    let mut server = origin.accept();
    server.write_all(b"last words").expect("write");
    assert_eq!(read_exactly(&mut client, 10), b"last words");
    reset(server);
    assert!(is_reset(&mut client));
    assert_eq!(agent.records.only().flags.to_string(), "UC");
}

#[test]
fn a_client_that_resets_after_its_end_is_noticed() {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let client = agent.connect();
    client.shutdown(Shutdown::Write).expect("shutdown");
    let mut server = origin.accept();
    assert_eq!(server.read(&mut [0; 1]).expect("end"), 0);
    reset(client);
    assert_eq!(agent.records.only().flags.to_string(), "DC");
    assert!(server.write_all(b"x").and_then(|()| server.write_all(b"x")).is_err(), "the endpoint can still send");
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let mut client = agent.connect();
    let mut server = origin.accept();
    client.set_write_timeout(Some(Duration::from_millis(300))).expect("timeout");
    let chunk = vec![1; 64 * 1024];
    let mut sent: u64 = 0;
    while let Ok(n) = client.write(&chunk) {
        sent += n as u64;
        assert!(sent < 1 << 30, "the agent buffers without a bound");
    }
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_to_end(&mut server).len() as u64, sent);
    drop(server);
    drop(client);
    assert_eq!(agent.records.only().bytes_received, sent);
}

#[test]
fn an_endpoint_that_refuses_means_a_reset_and_uf() {
    let agent = AgentUnderTest::of(Site::to(&[nobody()]));
    assert!(is_reset(&mut agent.connect()));
    let record = agent.records.only();
    assert_eq!(record.flags.to_string(), "UF,URX");
    assert!(record.endpoint.is_some() && record.details.is_some());
}

#[test]
fn another_endpoint_is_tried_when_there_is_one_and_attempts_are_left() {
    let agent = AgentUnderTest::of(Site { max_connect_attempts: 2, ..Site::to(&[nobody(), echo(b"")]) });
    for _ in 0..4 {
        let mut client = agent.connect();
        client.write_all(b"hello").expect("write");
        assert_eq!(read_exactly(&mut client, 5), b"hello");
    }
}

#[test]
fn a_cluster_without_endpoints_means_uh() {
    let agent = AgentUnderTest::of(Site { weighted: true, ..Site::to(&[]) });
    assert!(is_reset(&mut agent.connect()));
    let record = agent.records.only();
    assert_eq!(record.flags.to_string(), "UH");
    assert!(record.cluster.is_some(), "the record names the cluster that had no endpoint");
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let agent = AgentUnderTest::of(Site { idle_timeout: Duration::from_millis(300), ..Site::to(&[echo(b"")]) });
    let mut client = agent.connect();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(100));
        client.write_all(b"x").expect("write");
        assert_eq!(read_exactly(&mut client, 1), b"x");
    }
    let idle = Instant::now();
    assert_eq!(read_to_end(&mut client), b"");
    assert!(idle.elapsed() > Duration::from_millis(250), "{:?}", idle.elapsed());
    assert_eq!(agent.records.only().flags.to_string(), "SI");
}

#[test]
fn no_connection_outlasts_its_longest_duration() {
    let site = Site { max_duration: Some(Duration::from_millis(200)), ..Site::to(&[echo(b"")]) };
    let agent = AgentUnderTest::of(site);
    let mut client = agent.connect();
    let begun = Instant::now();
    let mut byte = [0];
    while client.write_all(b"x").is_ok() && matches!(client.read(&mut byte), Ok(1)) {
        assert!(begun.elapsed() < WAIT, "still open");
    }
    assert_eq!(agent.records.only().flags.to_string(), "DT");
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_behind_inspectors() {
    let agent = AgentUnderTest::of(Site::inspected(&[echo(b"5.5.5-MariaDB\n")]));
    let begun = Instant::now();
    let mut client = agent.connect();
    assert_eq!(read_exactly(&mut client, 14), b"5.5.5-MariaDB\n");
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    client.write_all(b"select 1").expect("write");
    assert_eq!(read_exactly(&mut client, 8), b"select 1");
    drop(client);
    let record = agent.records.only();
    assert!(record.server_first);
    assert_eq!((record.detected, record.bytes_sent), (None, 22));
    let stats = agent.stats();
    assert_eq!(stats.detection_server_first.value(), 1);
    assert_eq!(stats.detection_early_cx_unused.value(), 0);
    assert_eq!(stats.detection_time.value().count, 1);
}

#[test]
fn a_client_that_ends_without_a_word_still_hears_the_server() {
    let agent = AgentUnderTest::of(Site::inspected(&[echo(b"Sat Nov 21\n")]));
    let mut client = agent.connect();
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_to_end(&mut client), b"Sat Nov 21\n");
}

#[test]
fn a_client_that_ends_before_anything_can_be_decided_is_served_as_bytes() {
    let agent = AgentUnderTest::of(Site::inspected(&[echo(b"")]));
    let mut client = agent.connect();
    client.write_all(b"GE").expect("write");
    std::thread::sleep(Duration::from_millis(30));
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_to_end(&mut client), b"GE");
    assert_eq!(agent.records.only().flags.to_string(), "-");
}

fn tls_client_hello(name: &str) -> Vec<u8> {
    let sized = |content: &[u8]| [&(content.len() as u16).to_be_bytes()[..], content].concat();
    let entry = [&[0][..], &sized(name.as_bytes())].concat();
    let server_name = [&[0, 0][..], &sized(&sized(&entry))].concat();
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(sized(&server_name));
    let message = [&[1, 0][..], &sized(&body)].concat();
    // Two records, cut within the name.
    let (one, two) = message.split_at(message.len() - 4);
    [&[22, 3, 1][..], &sized(one), &[22, 3, 1], &sized(two)].concat()
}

#[test]
fn tls_is_recognised_by_its_client_hello_in_pieces_and_goes_by_its_server_name() {
    let (api, other) = (TcpOrigin::new(), TcpOrigin::new());
    let matches = ChainMatch { server_names: vec!["api.example.com".to_owned()], ..ChainMatch::default() };
    let chains = vec![Chain { matches, endpoints: vec![api.address] }];
    let agent = AgentUnderTest::of(Site { chains, ..Site::inspected(&[other.address]) });
    let hello = tls_client_hello("API.example.com");
    let mut client = agent.connect();
    client.set_nodelay(true).expect("nodelay");
    for piece in hello.chunks(20) {
        client.write_all(piece).expect("write");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(read_exactly(&mut api.accept(), hello.len()), hello);
    drop(client);
    let record = agent.records.only();
    assert_eq!((record.detected, record.info.server_name.as_deref()), (Some("tls"), Some("api.example.com")));
    assert_eq!(record.info.filter_chain.as_deref(), Some("0"));
    assert_eq!(agent.stats().detection_tls.value(), 1);
}

#[test]
fn after_the_detection_timeout_the_connection_goes_on_as_bytes() {
    let site = Site { filters_timeout: Duration::from_millis(150), ..Site::inspected(&[echo(b"")]) };
    let agent = AgentUnderTest::of(site);
    let mut client = agent.connect();
    client.write_all(b"GE").expect("write");
    assert_eq!(read_exactly(&mut client, 2), b"GE");
    drop(client);
    assert_eq!(agent.records.only().detected, None);
    let stats = agent.stats();
    assert_eq!((stats.downstream_pre_cx_timeout.value(), stats.detection_opaque.value()), (1, 1));
}

#[test]
fn after_the_detection_timeout_the_connection_is_closed_where_that_is_configured() {
    let site = Site {
        filters_timeout: Duration::from_millis(100),
        on_filters_timeout: OnFiltersTimeout::Close,
        ..Site::inspected(&[echo(b"")])
    };
    let agent = AgentUnderTest::of(site);
    let mut client = agent.connect();
    client.write_all(b"GE").expect("write");
    assert!(is_reset(&mut client));
    assert_eq!(agent.records.only().details.as_deref(), Some("listener filters timed out"));
}

#[test]
fn a_client_that_resets_during_detection_is_recorded() {
    let agent = AgentUnderTest::of(Site::inspected(&[echo(b"")]));
    let mut client = agent.connect();
    client.write_all(b"GE").expect("write");
    std::thread::sleep(Duration::from_millis(30));
    reset(client);
    assert_eq!(agent.records.only().flags.to_string(), "DC");
    assert_eq!(agent.stats().downstream_listener_filter_remote_close.value(), 1);
}

#[test]
fn a_connection_that_the_kernel_did_not_redirect_is_refused() {
    let site = Site { hand_off: waylay::listener::HandOff::ByOriginalDst, ..Site::to(&[echo(b"")]) };
    let agent = AgentUnderTest::of(site);
    let addresses = agent.running.bound(address("127.0.0.1:0"));
    assert_eq!(addresses.len(), 2, "both families: {addresses:?}");
    for address in addresses {
        assert!(is_reset(&mut client(*address)), "{address}");
    }
    assert_eq!(agent.stats().downstream_cx_no_original_dst.value(), 2);
    assert_eq!(agent.records.first(2)[0].endpoint, None);
}

#[test]
fn a_thousand_connections_at_once_are_all_served() {
    let agent = AgentUnderTest::of(Site::inspected(&[echo(b"")]));
    let mut clients: Vec<_> = (0..1000).map(|_| agent.connect()).collect();
    for client in &mut clients {
        client.write_all(b"*1\r\n").expect("write");
    }
    for client in &mut clients {
        let mut answer = [0; 4];
        if let Err(error) = client.read_exact(&mut answer) {
            let failed = agent.records.find(|record| !record.flags.is_empty());
            panic!("{error}: {failed:?}");
        }
        assert_eq!(&answer, b"*1\r\n");
    }
    drop(clients);
    assert!(agent.records.first(1000).iter().all(|record| record.flags.is_empty()));
}
