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

#[test]
fn who_asked_is_said_on() {
    local(async {
        let (address, heads) = canned("HTTP/1.1 204 No Content\r\nserver: theirs\r\n\r\n").await;
        let cluster = Arc::new(cluster("c", &[address]));
        let ours = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Request-Id: mine\r\nX-Forwarded-For: 9.9.9.9\r\nX-Envoy-Max-Retries: 9\r\n\r\n";
        let mut edge = manager(forwards(&cluster));
        edge.use_remote_address = true;
        edge.server_header = waylay::http::ServerHeader::PassThrough;
        let proxy = Proxy::new(edge, &[]).await;
        let answer = proxy.raw(ours).await;
        assert!(answer.contains("server: theirs"), "{answer}");
        let head = heads.borrow()[0].clone();
        assert!(head.contains("x-forwarded-for: 9.9.9.9,127.0.0.1\r\n"), "{head}");
        assert!(!head.contains("x-envoy-max-retries"), "{head}");
        let record = proxy.records.one().await;
        assert_eq!(record.forwarded_for.as_deref(), Some("9.9.9.9,127.0.0.1"));
        let id = record.request_id.as_deref().expect("an id");
        assert!(
            id != "mine" && head.contains(&format!("x-request-id: {id}\r\n")),
            "an edge makes its own: {id} {head}"
        );

        let proxy = Proxy::new(manager(forwards(&cluster)), &[]).await;
        proxy.raw(ours).await;
        let head = heads.borrow()[1].clone();
        assert!(head.contains("x-forwarded-for: 9.9.9.9\r\n") && head.contains("x-request-id: mine\r\n"), "{head}");
        assert!(!head.contains("x-envoy-max-retries"), "no client counts as internal: {head}");
    });
}

#[test]
fn a_cluster_that_a_header_names_is_looked_up() {
    local(async {
        let (address, _) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let cluster = Arc::new(cluster("c", &[address]));
        let mut action = to(&cluster);
        action.cluster = waylay::cluster::ClusterSpecifier::Header(http::HeaderName::from_static("x-to"));
        let proxy = Proxy::new(manager(vec![row("/", Action::Route(Box::new(action)))]), &[cluster]).await;
        let request = |name| format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-To: {name}\r\n\r\n");
        assert!(proxy.raw(request("c")).await.ends_with("ok"));
        assert!(proxy.raw(request("d")).await.starts_with("HTTP/1.1 503 "));
        let record = proxy.records.wait(2).await.pop().unwrap();
        assert_eq!((record.flags.to_string().as_str(), record.details), ("NC", "cluster_not_found"));
        assert_eq!(proxy.manager.stats.no_cluster.value(), 1);
    });
}

#[test]
fn many_clients_at_once_each_get_their_own_answer() {
    const CLIENTS: usize = 64;
    const REQUESTS: usize = 20;
    local(async {
        let address = origin(|_, mut stream| async move {
            while let Some(head) = read_head(&mut stream).await {
                let path = head.split(' ').nth(1).unwrap();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = Proxy::new(manager(forwards(&cluster)), &[]).await;
        let clients = (0..CLIENTS).map(|client| {
            let proxy = &proxy;
            async move {
                let mut stream = proxy.connect().await;
                for request in 0..REQUESTS {
                    let path = format!("/{client}/{request}");
                    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
                    assert!(read_response(&mut stream).await.ends_with(&path));
                }
            }
        });
        futures_util::future::join_all(clients).await;
        let records = proxy.records.wait(CLIENTS * REQUESTS).await;
        assert!(records.iter().all(|record| record.status == 200 && record.flags.is_empty()));
        assert!(cluster.stats.upstream_cx_total.value() <= CLIENTS as u64);
        assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
    });
}
