//! Bodies and their ends: lengths, chunks, trailers, large ones, HEAD, 1xx, back-pressure.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waylay::http::route::Action;

use crate::support::*;

async fn proxy(address: std::net::SocketAddr) -> Proxy {
    let cluster = Arc::new(cluster("c", &[address]));
    Proxy::new(manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]), &[]).await
}

#[test]
fn bodies_keep_their_framing_both_ways() {
    local(async {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let (address, heads) = canned(chunked).await;
        let proxy = proxy(address).await;
        for (request, arrives) in [
            ("POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", "abc"),
            (
                "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
                "3\r\nabc\r\n0\r\n\r\n",
            ),
            // A GET may have a body too; hyper would drop one of unknown length.
            (
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                "3\r\nabc\r\n0\r\n\r\n",
            ),
        ] {
            let answer = proxy.raw(request).await;
            assert!(answer.ends_with("\r\n\r\n2\r\nok\r\n0\r\n\r\n"), "{answer}");
            let head = heads.borrow().last().cloned().unwrap();
            assert!(head.ends_with(&format!("\r\n\r\n{arrives}")), "{head}");
        }
        for record in proxy.records.wait(3).await {
            assert_eq!((record.bytes_received, record.bytes_sent, record.status), (3, 2, 200));
        }
    });
}

#[test]
fn trailers_pass_both_ways() {
    local(async {
        let address = origin(|_, mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            assert!(head.contains("te: trailers") && head.contains("trailer: x-sum"), "{head}");
            let mut body = String::new();
            while !body.ends_with("x-sum: 1\r\n\r\n") {
                body.push(char::from(stream.read_u8().await.unwrap()));
            }
            let answer = "HTTP/1.1 200 OK\r\ntrailer: x-done\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-done: 2\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let proxy = proxy(address).await;
        let answer = proxy
            .raw("POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTrailer: x-sum\r\nConnection: close, te\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")
            .await;
        assert!(answer.ends_with("\r\n\r\n2\r\nok\r\n0\r\nx-done: 2\r\n\r\n"), "{answer}");
        assert_eq!(proxy.records.one().await.flags.to_string(), "-");
    });
}

#[test]
fn a_response_without_a_body_has_none() {
    local(async {
        for (method, head) in [
            ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
            ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", "HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"),
            (
                "GET",
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            ),
        ] {
            let (address, heads) = canned(head).await;
            let proxy = proxy(address).await;
            let mut client = proxy.connect().await;
            // Twice: whatever was taken for a body would stand before the second response.
            for _ in 0..2 {
                client.write_all(format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
                let answer = read_head(&mut client).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 2") || answer.starts_with("HTTP/1.1 304"), "{answer}");
                assert_eq!(answer.contains("content-length: 5"), head.contains("content-length"), "{answer}");
            }
            let records = proxy.records.wait(2).await;
            assert!(records.iter().all(|record| record.flags.is_empty() && record.bytes_sent == 0), "{records:?}");
            assert!(heads.borrow()[1].starts_with("0 "), "one connection: {heads:?}");
        }
    });
}

#[test]
fn an_expectation_is_met_by_the_agent() {
    local(async {
        let (address, heads) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let proxy = proxy(address).await;
        let mut client = proxy.connect().await;
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(read_head(&mut client).await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"abc").await.unwrap();
        assert!(read_response(&mut client).await.ends_with("ok"));
        assert!(!heads.borrow()[0].contains("\r\nexpect:"), "{heads:?}");
    });
}

#[test]
fn large_bodies_stream_both_ways_with_back_pressure() {
    const SIZE: usize = 32 * 1024 * 1024;
    local(async {
        let written = Rc::new(Cell::new(0));
        let counter = written.clone();
        let address = origin(move |_, mut stream| {
            let counter = counter.clone();
            async move {
                let head = read_head(&mut stream).await.unwrap();
                if head.starts_with("POST") {
                    // Reads nothing for a while: the client must not be able to send it all.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    let mut rest = vec![0; 1024 * 1024];
                    let mut read = 0;
                    while read < SIZE {
                        read += stream.read(&mut rest).await.unwrap();
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    return;
                }
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                let chunk = vec![b'x'; 64 * 1024];
                for _ in 0..SIZE / chunk.len() {
                    stream.write_all(&chunk).await.unwrap();
                    counter.set(counter.get() + chunk.len());
                }
            }
        })
        .await;
        let proxy = proxy(address).await;
        let mut client = proxy.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(written.get() < SIZE * 3 / 4, "{} bytes were buffered for a client that does not read", written.get());
        read_head(&mut client).await.unwrap();
        let mut body = vec![0; SIZE];
        client.read_exact(&mut body).await.unwrap();
        assert!(body.iter().all(|byte| *byte == b'x'));

        let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {SIZE}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut sent = 0;
        let early = tokio::time::timeout(Duration::from_millis(100), async {
            while sent < SIZE {
                sent += client.write(&body[sent..]).await.unwrap();
            }
        });
        assert!(early.await.is_err(), "the whole body was buffered for an origin that does not read");
        client.write_all(&body[sent..]).await.unwrap();
        assert!(read_response(&mut client).await.starts_with("HTTP/1.1 200 "));
        let records = proxy.records.wait(2).await;
        assert_eq!((records[0].bytes_sent, records[1].bytes_received), (SIZE as u64, SIZE as u64));
    });
}

#[test]
fn an_answer_before_the_body_was_read_reaches_the_client() {
    local(async {
        let proxy = Proxy::new(manager(Vec::new()), &[]).await;
        let head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n".to_owned();
        let answer = proxy.raw(head + &"x".repeat(1_000_000)).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close"), "{answer}");
        assert_eq!(proxy.records.one().await.flags.to_string(), "NR");
    });
}
