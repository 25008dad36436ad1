//! Endpoints that fail at each stage, clients that leave, retries.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waylay::cluster::{CircuitBreakers, Cluster};
use waylay::http::route::{Action, RetryOn, RouteAction};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn proxy(action: RouteAction) -> Proxy {
    Proxy::new(manager(vec![row("/", Action::Route(Box::new(action)))]), &[]).await
}

async fn refused(cluster: Cluster, status: u16, flags: &str, text: &str) -> (Proxy, Arc<Cluster>) {
    let cluster = Arc::new(cluster);
    let proxy = proxy(to(&cluster)).await;
    let answer = proxy.raw(GET).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.ends_with(&format!("\r\n\r\n{text}")), "{answer}");
    let record = proxy.records.one().await;
    assert_eq!((record.status, record.flags.to_string().as_str()), (status, flags), "{record:?}");
    assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
    assert_eq!(cluster.stats.upstream_rq_pending_active.value(), 0);
    (proxy, cluster)
}

const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

#[test]
fn each_failure_before_the_response_has_its_answer() {
    local(async {
        refused(cluster("c", &[]), 503, "UH", "no healthy upstream").await;
        let (_, failed) =
            refused(cluster("c", &[nobody().await]), 503, "UF", &format!("{RESET}remote connection failure")).await;
        assert_eq!((failed.stats.upstream_cx_connect_fail.value(), failed.stats.upstream_rq_5xx.value()), (1, 0));
        let closes = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
        })
        .await;
        let (_, closed) = refused(cluster("c", &[closes]), 503, "UC", &format!("{RESET}connection termination")).await;
        assert_eq!(closed.stats.upstream_rq_rx_reset.value(), 1);
        let (babbles, _) = canned("HALLO\r\n\r\n").await;
        refused(cluster("c", &[babbles]), 502, "UPE", &format!("{RESET}protocol error")).await;
        let (ambiguous, _) =
            canned("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
        refused(cluster("c", &[ambiguous]), 502, "UPE", &format!("{RESET}protocol error")).await;
        let (switches, _) = canned("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n").await;
        refused(cluster("c", &[switches]), 502, "UPE", &format!("{RESET}protocol error")).await;
        let (good, _) = canned(OK).await;
        let mut full = cluster("c", &[good]);
        full.circuit_breakers = CircuitBreakers { max_requests: 0, ..CircuitBreakers::default() };
        let (proxy, full) = refused(full, 503, "UO", &format!("{RESET}overflow")).await;
        assert_eq!(full.stats.upstream_rq_pending_overflow.value(), 1);
        assert!(proxy.raw(GET).await.contains("x-envoy-overloaded: true"));
    });
}

#[test]
fn a_connection_that_cannot_be_opened_sends_the_request_to_another_endpoint() {
    local(async {
        let (good, heads) = canned(OK).await;
        let cluster = Arc::new(cluster("c", &[nobody().await, good]));
        let proxy = proxy(to(&cluster)).await;
        for count in 1..=4 {
            let answer =
                proxy.raw("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc").await;
            assert!(answer.ends_with("ok"), "{answer}");
            let record = proxy.records.wait(count).await.pop().unwrap();
            assert_eq!(record.endpoint.map(|endpoint| endpoint.socket()), Some(good));
            assert_eq!((record.flags.to_string().as_str(), record.bytes_received), ("-", 3));
        }
        assert!(cluster.stats.upstream_cx_connect_fail.value() > 0);
        assert!(heads.borrow().iter().all(|head| head.ends_with("abc")), "{heads:?}");
    });
}

#[test]
fn the_keep_alive_race_costs_the_client_nothing() {
    local(async {
        // Serves one request on each connection, then closes it only when the next request is already there.
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
            read_head(&mut stream).await;
        })
        .await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = proxy(to(&cluster)).await;
        for count in 1..=3 {
            assert!(proxy.raw(GET).await.ends_with("ok"));
            let record = proxy.records.wait(count).await.pop().unwrap();
            assert_eq!((record.flags.to_string().as_str(), record.attempts), ("-", if count == 1 { 1 } else { 2 }));
        }
        // A POST may have been acted upon: its client has to know.
        let answer = proxy.raw("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let record = proxy.records.wait(4).await.pop().unwrap();
        assert_eq!((record.flags.to_string().as_str(), record.attempts), ("UC", 1));
    });
}

#[test]
fn a_connection_that_died_while_idle_is_noticed() {
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
        })
        .await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = proxy(to(&cluster)).await;
        for count in 1..=3 {
            let answer =
                proxy.raw("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            assert!(answer.ends_with("ok"), "{answer}");
            assert_eq!(proxy.records.wait(count).await.pop().unwrap().attempts, 1);
        }
        assert_eq!(cluster.stats.upstream_cx_total.value(), 3);
    });
}

#[test]
fn a_response_that_breaks_off_never_looks_complete() {
    local(async {
        for (head, client) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", "HTTP/1.1"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "HTTP/1.1"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", "HTTP/1.0"),
        ] {
            let address = origin(move |_, mut stream| async move {
                read_head(&mut stream).await;
                stream.write_all(head.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            })
            .await;
            let cluster = Arc::new(cluster("c", &[address]));
            let mut manager = manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]);
            manager.accept_http_10 = true;
            let proxy = Proxy::new(manager, &[]).await;
            let mut stream = proxy.connect().await;
            stream.write_all(format!("GET / {client}\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let end = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.contains("hello") || end.is_err(), "{answer}");
            assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
            assert_eq!(end.is_err(), client == "HTTP/1.0", "without a length only a reset says it: {answer}");
            let record = proxy.records.one().await;
            assert_eq!((record.status, record.flags.to_string().as_str(), record.bytes_sent), (200, "UC", 5));
            assert_eq!(proxy.manager.stats.downstream_rq_tx_reset.value(), 1);
        }
    });
}

#[test]
fn a_client_that_leaves_is_recorded_and_its_request_given_up() {
    local(async {
        let (left, leaves) = tokio::sync::oneshot::channel();
        let left = std::cell::RefCell::new(Some(left));
        let address = origin(move |_, mut stream| {
            let left = left.borrow_mut().take();
            async move {
                read_head(&mut stream).await;
                let _ = stream.read(&mut [0]).await;
                let _ = left.unwrap().send(());
            }
        })
        .await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = proxy(to(&cluster)).await;
        let mut client = proxy.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(client);
        leaves.await.unwrap();
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str()), (0, "DC"));
        assert_eq!(record.details, "downstream_remote_disconnect");
        assert_eq!(proxy.manager.stats.downstream_rq_rx_reset.value(), 1);
        assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
        assert_eq!(proxy.end().await.flags.to_string(), "DC");
    });
}

#[test]
fn retries_follow_the_policy_and_end() {
    local(async {
        let address = origin(|number, mut stream| async move {
            let head = read_head(&mut stream).await.unwrap_or_default();
            assert_eq!(read_body(&mut stream, &head).await, "abc");
            let status = if number % 3 == 2 { "200" } else { "503" };
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        for (retries, status, flags, attempts) in [(2, 200, "-", 3), (1, 503, "URX", 2)] {
            let cluster = Arc::new(cluster("c", &[address]));
            let mut action = to(&cluster);
            action.retry_policy = retry(&[RetryOn::GatewayError], retries);
            let proxy = proxy(action).await;
            let answer = proxy.raw(post).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            let record = proxy.records.one().await;
            assert_eq!((record.flags.to_string().as_str(), record.attempts), (flags, attempts));
            assert_eq!(record.bytes_received, 3);
            assert_eq!(cluster.stats.upstream_rq_retry.value(), u64::from(retries));
            assert_eq!(cluster.stats.upstream_rq_retry_success.value(), u64::from(status == 200));
            assert_eq!(cluster.stats.upstream_rq_retry_active.value(), 0);
        }
    });
}

#[test]
fn a_broken_chunk_is_a_bad_request() {
    local(async {
        let address = origin(|_, mut stream| async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
        })
        .await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = proxy(to(&cluster)).await;
        let answer =
            proxy.raw("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX\r\n0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str()), (400, "DPE"));
    });
}

#[test]
fn an_answer_before_the_endpoint_read_the_request_reaches_the_client() {
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            let answer = "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Reads on, so that the answer is not lost to a reset.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await;
        let cluster = Arc::new(cluster("c", &[address]));
        let proxy = proxy(to(&cluster)).await;
        let head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n".to_owned();
        let answer = proxy.raw(head + &"x".repeat(500_000)).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("no"), "{answer}");
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str()), (413, "-"));
        assert!(proxy.worker.pools.is_empty(), "a connection with half a request on it is not used again");
    });
}

#[test]
fn idle_connections_make_room_for_others() {
    local(async {
        let ((one, _), (two, _)) = (canned(OK).await, canned(OK).await);
        let mut narrow = cluster("c", &[one, two]);
        narrow.circuit_breakers.max_connections = 1;
        let cluster = Arc::new(narrow);
        let proxy = proxy(to(&cluster)).await;
        for count in 1..=4 {
            assert!(proxy.raw(GET).await.ends_with("ok"));
            assert!(proxy.records.wait(count).await[count - 1].flags.is_empty());
            assert_eq!(cluster.stats.upstream_cx_active.value(), 1);
        }
    });
}

#[test]
fn retries_stop_at_the_circuit_breaker() {
    local(async {
        let (address, heads) = canned("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await;
        let mut narrow = cluster("c", &[address]);
        narrow.circuit_breakers.max_retries = 0;
        let cluster = Arc::new(narrow);
        let mut action = to(&cluster);
        action.retry_policy = retry(&[RetryOn::FiveXx], 3);
        let proxy = proxy(action).await;
        assert!(proxy.raw(GET).await.starts_with("HTTP/1.1 503 "));
        assert_eq!(proxy.records.one().await.flags.to_string(), "UO");
        assert_eq!((heads.borrow().len(), cluster.stats.upstream_rq_retry_overflow.value()), (1, 1));
    });
}

#[test]
fn a_try_that_takes_too_long_is_given_up_for_another() {
    local(async {
        let address = origin(|number, mut stream| async move {
            read_head(&mut stream).await;
            if number > 0 {
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
            let _ = stream.read(&mut [0]).await;
        })
        .await;
        let cluster = Arc::new(cluster("c", &[address]));
        let mut action = to(&cluster);
        let mut policy = Arc::unwrap_or_clone(retry(&[RetryOn::Reset], 1).unwrap());
        policy.per_try_timeout = Some(Duration::from_millis(50));
        action.retry_policy = Some(Arc::new(policy));
        let proxy = proxy(action).await;
        assert!(proxy.raw(GET).await.ends_with("ok"));
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.attempts, record.flags.to_string().as_str()), (200, 2, "-"));
        assert_eq!(cluster.stats.upstream_rq_per_try_timeout.value(), 1);
        let endpoint = cluster.endpoints.load().all()[0].endpoint.clone();
        assert_eq!((endpoint.stats.rq_total.value(), endpoint.stats.rq_timeout.value()), (2, 1));
        assert_eq!((endpoint.stats.rq_success.value(), endpoint.stats.rq_active.value()), (1, 0));
    });
}
