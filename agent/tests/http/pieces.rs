//! However a client's bytes are cut into pieces, the answers, the records and what the origin gets are the same.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waylay::http::route::{Action, DirectResponse};

use crate::support::*;

const REQUESTS: [&str; 8] = [
    "GET /direct HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /a?b HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n",
    "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nGET / HTTP",
    "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4;x\r\nGET \r\n1\r\n/\r\n0\r\n\r\n",
    "\r\nHEAD /d HTTP/1.1\nHost: h\n\n",
    "GET /e HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
    "GET http://other/f HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n\r\n",
    "POST /direct HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
];

/// Each ends the connection.
const LAST: [&str; 6] = [
    "GET /direct HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "GET /g HTTP/1.0\r\nHost: h\r\n\r\n",
    "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "NONSENSE\r\n\r\nGET /behind HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET / HTTP/1.1\r\nA: b\r\nConnection: close\r\n\r\n",
    "GET /x#y HTTP/1.1\r\nHost: h\r\n\r\nGET /behind HTTP/1.1\r\nHost: h\r\n\r\n",
];

/// What the client got, what was recorded, and what the origin got.
type Seen = (String, Vec<String>, Vec<String>);

async fn send(stream: &str, lengths: impl Fn() -> usize) -> Seen {
    let (address, heads) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let cluster = Arc::new(cluster("c", &[address]));
    let direct = DirectResponse { status: http::StatusCode::OK, body: Bytes::from_static(b"direct") };
    let mut manager =
        manager(vec![row("/direct", Action::DirectResponse(direct)), row("/", Action::Route(Box::new(to(&cluster))))]);
    manager.accept_http_10 = true;
    manager.generate_request_id = false;
    let proxy = Proxy::new(manager, &[]).await;
    let mut client = proxy.connect().await;
    client.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = client.split();
    let write = async {
        let mut rest = stream.as_bytes();
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(lengths().min(rest.len()));
            if writer.write_all(piece).await.is_err() {
                return;
            }
            rest = others;
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    let mut answer = Vec::new();
    let read = async {
        let _ = reader.read_to_end(&mut answer).await;
    };
    tokio::join!(write, read);
    proxy.end().await;
    let varies = |line: &&str| !line.starts_with("date: ") && !line.starts_with("x-envoy-upstream-service-time: ");
    let answer = String::from_utf8_lossy(&answer).split("\r\n").filter(varies).collect::<Vec<_>>().join("\n");
    let records = proxy.records.all();
    let records = records.iter().map(|record| {
        format!(
            "{} {} {} {} {}",
            record.method.as_str(),
            record.path.as_str(),
            record.status,
            record.details,
            record.bytes_received
        )
    });
    let heads = heads.borrow().iter().map(|head| without_chunks(head.split_once(' ').expect("a number").1)).collect();
    (answer, records.collect(), heads)
}

/// Where one chunk ends and the next begins is nobody's business.
fn without_chunks(request: &str) -> String {
    match request.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains("transfer-encoding: chunked") => {
            let data = body.split("\r\n").skip(1).step_by(2);
            format!("{head}\r\n\r\n{}", data.collect::<String>())
        }
        _ => request.to_owned(),
    }
}

#[test]
fn the_same_bytes_are_served_alike_however_they_arrive() {
    for seed in 0..24 {
        local(async {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut stream = String::new();
            for _ in 0..random.random_range(0..5) {
                stream.push_str(REQUESTS[random.random_range(0..REQUESTS.len())]);
            }
            stream.push_str(LAST[random.random_range(0..LAST.len())]);
            let whole = send(&stream, || usize::MAX).await;
            assert!(!whole.1.is_empty(), "{stream:?}");
            let random = std::cell::RefCell::new(random);
            let cut = send(&stream, || random.borrow_mut().random_range(1..30)).await;
            assert_eq!(cut, whole, "{seed}: {stream:?}");
        });
    }
}
