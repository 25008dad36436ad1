//! How endpoints speak HTTP/1: in pieces, of an older version, until they close, beyond all limits.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use waylay::cluster::Cluster;
use waylay::http::route::Action;

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

async fn proxy(address: std::net::SocketAddr) -> (Proxy, Arc<Cluster>) {
    let cluster = Arc::new(cluster("c", &[address]));
    (Proxy::new(manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]), &[]).await, cluster)
}

/// An origin that writes `answer` in pieces of `step` bytes to every request on a connection, and then closes it if told.
async fn dripping(answer: String, step: usize, closes: bool) -> std::net::SocketAddr {
    origin(move |_, mut stream| {
        let answer = answer.clone();
        async move {
            stream.set_nodelay(true).unwrap();
            while read_head(&mut stream).await.is_some() {
                for piece in answer.as_bytes().chunks(step) {
                    if stream.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                if closes {
                    return;
                }
            }
        }
    })
    .await
}

#[test]
fn a_response_is_the_same_however_it_arrives() {
    local(async {
        let answer = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nx-a: 1\r\ntrailer: x-t\r\ntransfer-encoding: chunked\r\n\r\n5;e\r\nhello\r\n7\r\n, world\r\n0\r\nx-t: 2\r\n\r\n";
        for step in [1, 7, 1000] {
            let (proxy, cluster) = proxy(dripping(answer.to_owned(), step, false).await).await;
            for count in 1..=2 {
                let response = proxy.raw(GET.replace("h\r\n", "h\r\nTE: trailers\r\n")).await;
                assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.contains("x-a: 1\r\n"), "{response}");
                assert!(response.ends_with("0\r\nx-t: 2\r\n\r\n"), "{response}");
                let record = proxy.records.wait(count).await.pop().unwrap();
                assert_eq!((record.bytes_sent, record.flags.to_string().as_str()), (12, "-"), "steps of {step}");
            }
            assert_eq!(cluster.stats.upstream_cx_total.value(), 1, "the connection was used again");
            assert_eq!(cluster.stats.upstream_cx_rx_bytes_total.value(), 2 * answer.len() as u64);
        }
    });
}

#[test]
fn an_endpoint_of_http_10_ends_its_response_with_the_connection_unless_it_says_otherwise() {
    local(async {
        let (until_close, _) = proxy(dripping("HTTP/1.0 200 OK\r\n\r\nhello".to_owned(), 9, true).await).await;
        for count in 1..=2 {
            assert!(until_close.raw(GET).await.contains("hello"));
            let record = until_close.records.wait(count).await.pop().unwrap();
            assert_eq!((record.bytes_sent, record.flags.to_string().as_str()), (5, "-"));
        }
        for (head, connections) in [("", 2), ("connection: keep-alive\r\n", 1)] {
            let answer = format!("HTTP/1.0 200 OK\r\n{head}content-length: 2\r\n\r\nok");
            let (proxy, cluster) = proxy(dripping(answer, 100, false).await).await;
            for _ in 0..2 {
                assert!(proxy.raw(GET).await.ends_with("ok"));
            }
            assert_eq!(cluster.stats.upstream_cx_total.value(), connections, "{head}");
        }
    });
}

#[test]
fn a_connection_that_the_endpoint_closes_is_not_used_again() {
    local(async {
        let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_owned();
        let (proxy, cluster) = proxy(dripping(answer, 100, false).await).await;
        for count in 1..=2 {
            assert!(proxy.raw(GET).await.ends_with("ok"));
            proxy.records.wait(count).await;
            assert_eq!(cluster.stats.upstream_cx_active.value(), 0);
        }
        assert!(proxy.worker.pools.is_empty());
    });
}

#[test]
fn a_response_beyond_the_limits_or_with_two_meanings_is_refused() {
    local(async {
        let ok = "HTTP/1.1 200 OK\r\n";
        for answer in [
            format!("{ok}x: {}\r\n\r\n", "y".repeat(500_000)),
            format!("{ok}{}\r\n", "a: b\r\n".repeat(101)),
            format!("{ok}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            format!("{ok}content-length: 1\r\ncontent-length: 2\r\n\r\nok"),
            format!("{ok}a: b\r\n c\r\n\r\n"),
            format!("{}HALLO\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n".repeat(3)),
        ] {
            let (proxy, cluster) = proxy(dripping(answer, 100_000, false).await).await;
            let response = proxy.raw(GET).await;
            assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
            assert_eq!(proxy.records.one().await.flags.to_string(), "UPE");
            assert_eq!(cluster.stats.upstream_cx_active.value(), 0);
        }
    });
}

#[test]
fn a_large_head_in_small_pieces_is_read_within_the_limits() {
    local(async {
        let value = "y".repeat(200_000);
        let answer = format!("HTTP/1.1 200 OK\r\nx: {value}\r\ncontent-length: 2\r\n\r\nok");
        let (proxy, _) = proxy(dripping(answer, 1000, false).await).await;
        let response = proxy.raw(GET).await;
        assert!(response.contains(&value) && response.ends_with("ok"), "{}", response.len());
    });
}

#[test]
fn an_answer_and_the_rest_of_the_request_pass_each_other() {
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n").await.unwrap();
            // Every byte of the answer waits for one of the request.
            for _ in 0..3 {
                let byte = tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap();
                stream.write_all(&[byte.to_ascii_uppercase()]).await.unwrap();
            }
            let _ = read_head(&mut stream).await;
        })
        .await;
        let (proxy, _) = proxy(address).await;
        let mut client = proxy.connect().await;
        client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 200 "));
        for (sent, answered) in [(b'a', b'A'), (b'b', b'B'), (b'c', b'C')] {
            client.write_all(&[sent]).await.unwrap();
            assert_eq!(tokio::io::AsyncReadExt::read_u8(&mut client).await.unwrap(), answered);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(proxy.records.one().await.flags.to_string(), "-");
        assert_eq!(proxy.worker.pools.len(), 1, "both were complete");
    });
}
