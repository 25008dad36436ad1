//! Requests and responses that go well.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use waylay::http::route::{Action, DirectResponse};

use crate::support::*;

fn forwards(cluster: &Arc<waylay::cluster::Cluster>) -> Vec<waylay::http::route::Route> {
    vec![row("/", Action::Route(Box::new(to(cluster))))]
}

#[test]
fn a_request_is_forwarded_and_recorded_once() {
    local(async {
        let (address, heads) =
            canned("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: b\r\nkeep-alive: timeout=5\r\n\r\nhello").await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = Proxy::new(manager(forwards(&cluster)), &[]).await;
        let mut client = proxy.connect().await;
        client
            .write_all(b"GET /a?b HTTP/1.1\r\nHost: h\r\nConnection: x-gone\r\nX-Gone: 1\r\nX-Kept: 2\r\n\r\n")
            .await
            .unwrap();
        let response = read_response(&mut client).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\nhello"), "{response}");
        for line in ["x-a: b\r\n", "server: waylay\r\n", "date: ", "x-envoy-upstream-service-time: "] {
            assert!(response.contains(line), "{line} in {response}");
        }
        assert!(!response.contains("keep-alive"), "{response}");
        let head = heads.borrow()[0].clone();
        assert!(head.starts_with("0 GET /a?b HTTP/1.1\r\n"), "{head}");
        assert!(
            head.contains("host: h\r\n") && head.contains("x-kept: 2") && head.contains("x-request-id: "),
            "{head}"
        );
        assert!(head.contains("x-forwarded-proto: http") && !head.contains("x-gone"), "{head}");

        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str(), record.details), (200, "-", "via_upstream"));
        assert_eq!((record.bytes_received, record.bytes_sent, record.attempts), (0, 5, 1));
        assert_eq!(
            (record.method.as_str(), record.path.as_str(), record.authority.as_deref()),
            ("GET", "/a?b", Some("h"))
        );
        assert_eq!((record.cluster.as_deref(), record.route), (Some("c"), Some(0)));
        assert!(record.upstream_service_time.is_some() && record.request_id.is_some());
        let stats = &proxy.manager.stats;
        assert_eq!((stats.downstream_rq_total.value(), stats.downstream_rq_2xx.value()), (1, 1));
        assert_eq!((stats.downstream_rq_active.value(), cluster.stats.upstream_rq_active.value()), (0, 0));
        assert_eq!((cluster.stats.upstream_rq_total.value(), cluster.stats.upstream_rq_2xx.value()), (1, 1));
    });
}

#[test]
fn connections_are_kept_alive_on_both_sides() {
    local(async {
        let (address, heads) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = Proxy::new(manager(forwards(&cluster)), &[]).await;
        let mut client = proxy.connect().await;
        for _ in 0..5 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            assert!(read_response(&mut client).await.ends_with("ok"));
        }
        assert_eq!(heads.borrow().len(), 5);
        assert!(heads.borrow().iter().all(|head| head.starts_with("0 ")), "one connection");
        assert_eq!(proxy.worker.pools.len(), 1);
        proxy.records.wait(5).await;
        drop(client);
        assert_eq!(proxy.end().await.requests, 5);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    local(async {
        let (address, heads) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let cluster = Arc::new(cluster("c", &[address]));
        let direct = DirectResponse { status: http::StatusCode::OK, body: Bytes::from_static(b"direct") };
        let mut routes = vec![row("/direct", Action::DirectResponse(direct))];
        routes.extend(forwards(&cluster));
        let proxy = Proxy::new(manager(routes), &[]).await;
        let answer = proxy
            .raw("POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /direct HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /bad HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
            .await;
        let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
        assert_eq!(statuses, ["200", "200", "200", "400"], "{answer}");
        assert!(answer.contains("direct"), "{answer}");
        let records = proxy.records.wait(4).await;
        assert_eq!(records[3].details, "http1.content_length_and_chunked_not_allowed");
        assert_eq!((records[3].flags.to_string().as_str(), records[3].path.as_str()), ("DPE", "/bad"));
        assert_eq!(heads.borrow().len(), 2);
        assert_eq!(proxy.end().await.flags.to_string(), "DPE");
    });
}
