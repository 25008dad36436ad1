//! What a request costs the allocator: held to a bound, because nothing shows sooner that a copy has crept in.
//!
//! Client, agent and origin are in this process, and on one thread; client and origin allocate nothing for a request.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "fixture/mod.rs"]
mod fixture;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "http/support.rs"]
mod support;

use std::alloc::System;
use std::sync::Arc;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waylay::http::route::Action;

use support::{Proxy, cluster, local, manager, origin, row, to};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const REQUEST: &[u8] = b"GET /catalog/1?page=2 HTTP/1.1\r\nhost: shop.local\r\nuser-agent: test\r\naccept: */*\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nserver: origin\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    content-type: text/plain\r\ncontent-length: 24\r\n\r\nC-backend-ok-0123456789\n";

const REQUESTS: usize = 200;

/// Allocations of one request on connections that have served before: the bytes of the two heads, the futures of the
/// request and of its try, the exchange, its record, and the headers that the agent adds. Counted: 12.1.
const MAX_PER_REQUEST: usize = 13;

#[test]
fn a_request_on_warm_connections_allocates_no_more_than_it_must() {
    local(async {
        let endpoint = origin(|_, mut stream| async move {
            let mut buffer = [0; 2048];
            while read_until(&mut stream, &mut buffer, |head| head.ends_with(b"\r\n\r\n")).await {
                stream.write_all(RESPONSE).await.unwrap();
            }
        })
        .await;
        let cluster = Arc::new(cluster("c", &[endpoint]));
        let routes = vec![row("/", Action::Route(Box::new(to(&cluster))))];
        let proxy = Proxy::new(manager(routes), &[cluster]).await;
        let mut client = proxy.connect().await;
        exchange(&mut client, REQUESTS).await;

        let region = Region::new(ALLOCATOR);
        exchange(&mut client, REQUESTS).await;
        let change = region.change();

        let each = (change.allocations + change.reallocations) as f64 / REQUESTS as f64;
        let bytes = change.bytes_allocated / REQUESTS;
        println!("{each} allocations of {bytes} bytes in all for a request");
        assert!(each <= MAX_PER_REQUEST as f64, "{each} allocations for a request, of {bytes} bytes in all");
        proxy.records.wait(2 * REQUESTS).await;
    });
}

async fn exchange(client: &mut TcpStream, requests: usize) {
    let mut buffer = [0; 2048];
    for _ in 0..requests {
        client.write_all(REQUEST).await.unwrap();
        assert!(read_until(client, &mut buffer, |response| response.ends_with(b"0123456789\n")).await);
    }
}

/// Reads until `done` says so; `false` when the other side closed.
async fn read_until(stream: &mut TcpStream, buffer: &mut [u8], done: impl Fn(&[u8]) -> bool) -> bool {
    let mut filled = 0;
    while !done(&buffer[..filled]) {
        match stream.read(&mut buffer[filled..]).await {
            Ok(read) if read > 0 => filled += read,
            _ => return false,
        }
    }
    true
}
