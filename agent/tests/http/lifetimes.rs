//! Time-outs, idle connections, draining, and upgraded connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waylay::http::HttpConnectionManager;
use waylay::http::route::{Action, RouteAction};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SHORT: Option<Duration> = Some(Duration::from_millis(50));

/// An origin that reads and stays silent.
async fn silent() -> std::net::SocketAddr {
    origin(|_, mut stream| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await
}

async fn proxy(
    address: std::net::SocketAddr,
    change: impl Fn(&mut HttpConnectionManager),
    act: impl Fn(&mut RouteAction),
) -> (Proxy, Arc<waylay::cluster::Cluster>) {
    let cluster = Arc::new(cluster("c", &[address]));
    let mut action = to(&cluster);
    act(&mut action);
    let mut manager = manager(vec![row("/", Action::Route(Box::new(action)))]);
    change(&mut manager);
    (Proxy::new(manager, &[]).await, cluster)
}

#[test]
fn each_timeout_has_its_answer() {
    local(async {
        type Change = fn(&mut HttpConnectionManager);
        type Act = fn(&mut RouteAction);
        let nothing: Act = |_| {};
        let unchanged: Change = |_| {};
        let slow = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc";
        let idle: Change = |manager| manager.stream_idle_timeout = SHORT;
        let cases: [(&str, Change, Act, u16, &str, &str, &str); 6] = [
            (
                GET,
                unchanged,
                |action| action.timeout = SHORT,
                504,
                "UT",
                "upstream_response_timeout",
                "upstream request timeout",
            ),
            (GET, idle, nothing, 504, "SI", "stream_idle_timeout", "stream timeout"),
            (slow, idle, nothing, 408, "SI", "stream_idle_timeout", "stream timeout"),
            (
                GET,
                unchanged,
                |action| action.idle_timeout = Some(SHORT),
                504,
                "SI",
                "stream_idle_timeout",
                "stream timeout",
            ),
            (
                slow,
                |manager| manager.request_timeout = SHORT,
                nothing,
                408,
                "-",
                "request_overall_timeout",
                "request timeout",
            ),
            (
                "GET / HT",
                |manager| manager.request_headers_timeout = SHORT,
                nothing,
                408,
                "-",
                "request_header_timeout",
                "request header timeout",
            ),
        ];
        for (request, change, act, status, flags, details, text) in cases {
            let (proxy, cluster) = proxy(silent().await, change, act).await;
            let mut client = proxy.connect().await;
            client.write_all(request.as_bytes()).await.unwrap();
            let answer = read_response(&mut client).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{details}: {answer}");
            assert!(answer.ends_with(text), "{answer}");
            let record = proxy.records.one().await;
            assert_eq!((record.status, record.flags.to_string().as_str(), record.details), (status, flags, details));
            assert!(record.duration < Duration::from_secs(2));
            assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
            assert_eq!(cluster.stats.upstream_rq_timeout.value(), u64::from(flags == "UT"));
        }
    });
}

#[test]
fn a_response_that_takes_too_long_is_cut_off() {
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await.unwrap();
            let _ = stream.read(&mut [0]).await;
        })
        .await;
        let (proxy, cluster) = proxy(address, |_| {}, |action| action.timeout = SHORT).await;
        let answer = proxy.raw(GET).await;
        assert!(answer.ends_with("hello"), "{answer}");
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str(), record.bytes_sent), (200, "UT", 5));
        assert_eq!(cluster.stats.upstream_rq_timeout.value(), 1);
    });
}

#[test]
fn idle_connections_are_closed_on_both_sides() {
    local(async {
        let (address, _) = canned(OK).await;
        let mut short = cluster("c", &[address]);
        short.idle_timeout = SHORT;
        let cluster = Arc::new(short);
        let mut manager = manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]);
        manager.idle_timeout = SHORT;
        let proxy = Proxy::new(manager, &[]).await;
        let answer = proxy.raw(GET).await;
        assert!(answer.ends_with("ok") && !answer.contains("close"), "{answer}");
        assert_eq!(proxy.end().await.requests, 1);
        assert_eq!(proxy.worker.pools.len(), 1);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(proxy.worker.pools.is_empty());
        assert_eq!(cluster.stats.upstream_cx_idle_timeout.value(), 1);
        assert_eq!(cluster.stats.upstream_cx_active.value(), 0);
    });
}

#[test]
fn draining_ends_connections_after_the_request_in_flight() {
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
            let _ = stream.read(&mut [0]).await;
        })
        .await;
        let (proxy, _) = proxy(address, |_| {}, |_| {}).await;
        let (mut busy, mut idle) = (proxy.connect().await, proxy.connect().await);
        busy.write_all(GET.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        proxy.drain.drain(Duration::ZERO).await;
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
        let mut answer = Vec::new();
        let _ = busy.read_to_end(&mut answer).await;
        let record = proxy.records.one().await;
        assert_eq!((record.flags.to_string().as_str(), record.details), ("LR", "drain_timeout"));
    });
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
        })
        .await;
        let (proxy, _) = proxy(address, |_| {}, |_| {}).await;
        let mut busy = proxy.connect().await;
        busy.write_all(GET.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        let Proxy { drain, records, .. } = proxy;
        let open = tokio::task::spawn_local(async move { drain.drain(Duration::from_secs(5)).await });
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("connection: close") && answer.ends_with("ok"), "{answer}");
        assert_eq!(records.one().await.flags.to_string(), "-");
        open.abort();
    });
}

#[test]
fn a_websocket_becomes_a_tunnel_with_half_close() {
    local(async {
        let address = origin(|_, mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            assert!(head.contains("upgrade: WebSocket") && head.contains("connection: upgrade"), "{head}");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nfirst";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            stream.write_all(format!("<{all}>").as_bytes()).await.unwrap();
        })
        .await;
        let (proxy, cluster) = proxy(address, |_| {}, |_| {}).await;
        let mut client = proxy.connect().await;
        // The bytes behind the head are no request, whatever they look like.
        let request = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\nGET \0 early";
        client.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
        assert!(head.contains("connection: upgrade\r\n") && head.contains("sec-websocket-accept: x"), "{head}");
        client.write_all(b" late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "first<GET \0 early late>");
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str()), (101, "-"));
        assert_eq!((record.bytes_received, record.bytes_sent), (16, 23));
        assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
        assert_eq!(cluster.stats.upstream_cx_active.value(), 0);
        assert_eq!(proxy.manager.stats.downstream_cx_upgrades_total.value(), 1);
        assert!(proxy.worker.pools.is_empty());
    });
}

#[test]
fn an_upgrade_that_is_declined_is_an_ordinary_response() {
    local(async {
        let (address, heads) = canned("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno").await;
        let (proxy, _) = proxy(address, |_| {}, |_| {}).await;
        let mut client = proxy.connect().await;
        let upgrade = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(upgrade.as_bytes()).await.unwrap();
        assert!(read_response(&mut client).await.starts_with("HTTP/1.1 400 "));
        // An offer that may be ignored is ignored, and the connection goes on.
        let offer = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n";
        client.write_all(offer.as_bytes()).await.unwrap();
        assert!(read_response(&mut client).await.starts_with("HTTP/1.1 400 "));
        let head = heads.borrow()[1].clone();
        assert!(!head.contains("upgrade") && !head.contains("settings") && !head.contains("x-wl"), "{head}");
        proxy.records.wait(2).await;
    });
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends() {
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .await
                .unwrap();
            let _ = stream.read(&mut [0]).await;
        })
        .await;
        let (proxy, _) = proxy(address, |manager| manager.stream_idle_timeout = SHORT, |_| {}).await;
        let answer = proxy.raw("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert_eq!(proxy.records.one().await.flags.to_string(), "SI");
    });
}
