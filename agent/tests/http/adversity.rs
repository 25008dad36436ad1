//! Clients that do not read, say nothing, or go on before they are answered; and endpoints that say too much.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use waylay::cluster::Cluster;
use waylay::http::route::Action;
use waylay::http::{CodecType, HttpConnectionManager};

use crate::support::*;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SHORT: Option<Duration> = Some(Duration::from_millis(100));

/// More than the sockets' buffers between an origin and a client hold.
const MUCH: usize = 8 * 1024 * 1024;

/// An origin that answers `/big` with `length` bytes, `/ws` with an ordinary response or, if it `switches`, a 101.
async fn big(length: usize, switches: bool) -> std::net::SocketAddr {
    origin(move |_, mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let answer = match head.contains(" /big ") {
                true => format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length)),
                false if switches => {
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi".to_owned()
                }
                false => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno".to_owned(),
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn proxy(address: std::net::SocketAddr, change: impl Fn(&mut HttpConnectionManager)) -> (Proxy, Arc<Cluster>) {
    let cluster = Arc::new(cluster("c", &[address]));
    let mut manager = manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]);
    change(&mut manager);
    (Proxy::new(manager, &[]).await, cluster)
}

/// A client that takes in little before it reads.
async fn narrow(proxy: &Proxy) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(proxy.address).await.unwrap()
}

async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    all
}

#[test]
fn a_late_reader_gets_all_of_the_last_response_after_an_upgrade_was_declined() {
    local(async {
        for length in [100_000, 3_000_000, MUCH] {
            let (proxy, _) = proxy(big(length, false).await, |_| {}).await;
            let mut client = narrow(&proxy).await;
            client.write_all(UPGRADE.as_bytes()).await.unwrap();
            assert!(read_response(&mut client).await.ends_with("no"));
            client.write_all(b"GET /big HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let answer = rest(&mut client).await;
            let body = answer.iter().filter(|byte| **byte == b'x').count();
            assert!(body >= length, "{body} of {length}");
        }
    });
}

#[test]
fn a_late_reader_gets_all_of_an_early_answer_after_an_upgrade_was_declined() {
    local(async {
        for length in (2_000_000..5_000_000).step_by(150_000) {
            let (proxy, _) = proxy(big(length, false).await, |_| {}).await;
            let mut client = narrow(&proxy).await;
            client.write_all(UPGRADE.as_bytes()).await.unwrap();
            assert!(read_response(&mut client).await.ends_with("no"));
            client.write_all(b"POST /big HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nabc").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            let answer = rest(&mut client).await;
            let body = answer.iter().filter(|byte| **byte == b'x').count();
            assert!(body >= length, "{body} of {length}");
        }
    });
}

#[test]
fn a_late_reader_gets_what_was_answered_before_a_request_that_ends_the_connection() {
    local(async {
        let length = 3_000_000;
        for last in ["CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", &UPGRADE.replace("websocket", "other")] {
            let (proxy, _) = proxy(big(length, false).await, |_| {}).await;
            let mut client = narrow(&proxy).await;
            client.write_all(format!("GET /big HTTP/1.1\r\nHost: h\r\n\r\n{last}").as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let answer = rest(&mut client).await;
            let text = String::from_utf8_lossy(&answer[answer.len().min(length)..]);
            assert!(answer.len() > length && text.contains("HTTP/1.1 403"), "{} {last}", answer.len());
        }
    });
}

#[test]
fn a_late_reader_gets_what_was_answered_before_a_tunnel_and_the_tunnel() {
    local(async {
        let length = 3_000_000;
        let (proxy, _) = proxy(big(length, true).await, |_| {}).await;
        let mut client = narrow(&proxy).await;
        client.write_all(format!("GET /big HTTP/1.1\r\nHost: h\r\n\r\n{UPGRADE}").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(read_response(&mut client).await.len() > length);
        assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 101 "));
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, b"hi");
    });
}

#[test]
fn a_client_that_stops_reading_holds_nothing_for_longer_than_the_idle_timeout() {
    local(async {
        let (proxy, cluster) =
            proxy(big(64 * MUCH / 8, false).await, |manager| manager.stream_idle_timeout = SHORT).await;
        let mut client = narrow(&proxy).await;
        client.write_all(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let record = proxy.records.one().await;
        assert_eq!(record.flags.to_string(), "SI");
        assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
        proxy.end().await;
    });
}

/// Asks for `/big` on `client` and takes nothing of it. How the stream ended, by the reason that it was reset with.
async fn take_nothing(client: &mut h2::client::SendRequest<bytes::Bytes>) -> Option<h2::Reason> {
    let request = http::Request::get("http://h/big").body(()).unwrap();
    let mut body = client.send_request(request, true).unwrap().0.await.unwrap().into_body();
    // What the window had room for comes first; without its release nothing more does.
    while let Some(data) = body.data().await {
        if let Err(error) = data {
            return error.reason();
        }
    }
    None
}

#[test]
fn an_http2_client_that_grants_a_stream_no_window_holds_it_no_longer_than_its_timeouts() {
    type Change = fn(&mut HttpConnectionManager);
    let idle: Change = |manager| manager.stream_idle_timeout = SHORT;
    let route: Change = |manager| manager.stream_idle_timeout = None;
    for (change, route_timeout, flags) in [(idle, None, "SI"), (route, SHORT, "UT")] {
        local(async {
            let cluster = Arc::new(cluster("c", &[big(MUCH, false).await]));
            let mut action = to(&cluster);
            action.timeout = route_timeout;
            let mut manager = manager(vec![row("/", Action::Route(Box::new(action)))]);
            change(&mut manager);
            let proxy = Proxy::new(manager, &[]).await;
            let (mut client, connection) = h2::client::handshake(proxy.connect().await).await.unwrap();
            tokio::task::spawn_local(connection);
            assert_eq!(take_nothing(&mut client).await, Some(h2::Reason::INTERNAL_ERROR));
            let record = proxy.records.one().await;
            assert_eq!((record.status, record.flags.to_string().as_str()), (200, flags));
            assert!(record.bytes_sent < MUCH as u64);
            assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
            let request = http::Request::get("http://h/other").body(()).unwrap();
            let other = client.send_request(request, true).unwrap().0.await.unwrap();
            assert_eq!(other.status(), 200, "the connection goes on");
        });
    }
}

#[test]
fn a_client_that_says_nothing_is_closed_when_only_http2_is_spoken() {
    local(async {
        for begin in ["", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let (proxy, _) = proxy(nobody().await, |manager| {
                manager.codec_type = CodecType::Http2;
                manager.idle_timeout = SHORT;
            })
            .await;
            let mut client = proxy.connect().await;
            client.write_all(begin.as_bytes()).await.unwrap();
            proxy.end().await;
        }
    });
}

#[test]
fn what_an_endpoint_says_beyond_its_response_answers_nobody() {
    local(async {
        let evil = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL";
        for (method, first) in [
            ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
            ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
            ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        ] {
            let address = origin(move |number, mut stream| async move {
                while read_head(&mut stream).await.is_some() {
                    let answer = match number {
                        0 => format!("{first}{evil}"),
                        _ => "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood".to_owned(),
                    };
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            })
            .await;
            let (proxy, _) = proxy(address, |_| {}).await;
            let both =
                format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            let answer = proxy.raw(both).await;
            assert!(answer.ends_with("good") && !answer.contains("EVIL"), "{answer}");
        }
    });
}

#[test]
fn what_follows_an_upgrade_behind_another_request_goes_into_the_tunnel_as_it_is() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (proxy, _) = proxy(address, |_| {}).await;
        let mut client = proxy.connect().await;
        client
            .write_all(format!("GET / HTTP/1.1\r\nHost: h\r\n\r\n{UPGRADE}\u{1}\u{2} not http\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let (mut endpoint, _) = listener.accept().await.unwrap();
        read_head(&mut endpoint).await.unwrap();
        endpoint.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        read_head(&mut endpoint).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        endpoint
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await
            .unwrap();
        assert!(read_response(&mut client).await.ends_with("ok"));
        read_head(&mut client).await.unwrap();
        client.shutdown().await.unwrap();
        let sent = rest(&mut endpoint).await;
        assert_eq!(String::from_utf8_lossy(&sent), "\u{1}\u{2} not http\r\n\r\n");
    });
}

/// Writes an HTTP/2 frame.
async fn frame(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(id.to_be_bytes());
    bytes.extend(payload);
    let _ = stream.write_all(&bytes).await;
}

#[test]
fn a_request_that_an_endpoint_going_away_did_not_look_at_is_sent_again() {
    local(async {
        let address = origin(|number, mut stream| async move {
            stream.read_exact(&mut [0; 24]).await.unwrap();
            frame(&mut stream, 4, 0, 0, &[]).await;
            let mut head = [0; 9];
            while stream.read_exact(&mut head).await.is_ok() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                match (head[3], number, id) {
                    // GOAWAY: the last stream that was looked at is the first one.
                    (1, 0, 3..) => frame(&mut stream, 7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]).await,
                    // HEADERS, the last of the stream: `:status: 200`.
                    (1, _, _) => frame(&mut stream, 1, 5, id, &[0x88]).await,
                    _ => {}
                }
            }
        })
        .await;
        let mut spoken = cluster("c", &[address]);
        spoken.protocol = waylay::cluster::UpstreamProtocol::Http2;
        let proxy = Proxy::new(manager(vec![row("/", Action::Route(Box::new(to(&Arc::new(spoken)))))]), &[]).await;
        for method in ["GET", "POST", "GET"] {
            let answer = proxy.raw(format!("{method} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    });
}
