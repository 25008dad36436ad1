//! HTTP/2 on either side, and the bridges between it and HTTP/1.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use waylay::cluster::UpstreamProtocol;
use waylay::http::route::{Action, RetryOn};

use crate::support::*;

#[derive(Clone)]
struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

type Pieces = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// A body of `data`, and `trailers` behind it.
fn body(data: &'static str, trailers: &[(&'static str, &'static str)]) -> Pieces {
    let mut frames = vec![Ok(Frame::data(Bytes::from_static(data.as_bytes())))];
    if !trailers.is_empty() {
        let trailers = trailers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        frames.push(Ok(Frame::trailers(trailers.collect::<HeaderMap>())));
    }
    StreamBody::new(futures_util::stream::iter(frames))
}

async fn connect(address: SocketAddr) -> SendRequest<Pieces> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake(Local, TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

fn request(method: &str, path: &str, body: Pieces) -> Request<Pieces> {
    Request::builder().method(method).uri(format!("http://h{path}")).header("te", "trailers").body(body).unwrap()
}

/// What an HTTP/2 origin saw: the request's head, its body, and its trailers.
type Seen = Rc<RefCell<Vec<(http::request::Parts, Bytes, Option<HeaderMap>)>>>;

async fn http2_origin() -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let kept = seen.clone();
    let address = origin(move |_, stream| {
        let kept = kept.clone();
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let kept = kept.clone();
                async move {
                    let (head, incoming) = request.into_parts();
                    let collected = incoming.collect().await.unwrap();
                    let trailers = collected.trailers().cloned();
                    kept.borrow_mut().push((head, collected.to_bytes(), trailers));
                    Ok::<_, Infallible>(Response::new(body("ok", &[("grpc-status", "0")])))
                }
            });
            let _ =
                hyper::server::conn::http2::Builder::new(Local).serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await;
    (address, seen)
}

async fn proxy(address: SocketAddr, protocol: UpstreamProtocol) -> (Proxy, Arc<waylay::cluster::Cluster>) {
    let mut cluster = cluster("c", &[address]);
    cluster.protocol = protocol;
    let cluster = Arc::new(cluster);
    (Proxy::new(manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]), &[]).await, cluster)
}

#[test]
fn http2_passes_through_with_trailers_both_ways() {
    local(async {
        let (address, seen) = http2_origin().await;
        let (proxy, cluster) = proxy(address, UpstreamProtocol::Downstream).await;
        let mut client = connect(proxy.address).await;
        let response = client.send_request(request("POST", "/s/m?q", body("abc", &[("x-sum", "1")]))).await.unwrap();
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        assert_eq!(response.headers()["server"], "waylay");
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "ok");
        let (head, data, trailers) = seen.borrow_mut().remove(0);
        assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("POST", "http://h/s/m?q"));
        assert_eq!((head.headers["te"].to_str().unwrap(), head.headers.get("host")), ("trailers", None));
        assert_eq!((&data[..], trailers.unwrap()["x-sum"].as_bytes()), (&b"abc"[..], &b"1"[..]));
        let record = proxy.records.one().await;
        assert_eq!((record.protocol, record.authority.as_deref()), ("HTTP/2", Some("h")));
        assert_eq!((record.bytes_received, record.bytes_sent, record.status), (3, 2, 200));
        assert!(record.flags.is_empty());
        let stats = &proxy.manager.stats;
        assert_eq!((stats.downstream_cx_http2_total.value(), stats.downstream_rq_http2_total.value()), (1, 1));
        assert_eq!(cluster.stats.upstream_cx_http2_total.value(), 1);
    });
}

#[test]
fn many_streams_share_one_connection_to_the_endpoint() {
    local(async {
        let (address, seen) = http2_origin().await;
        let (proxy, cluster) = proxy(address, UpstreamProtocol::Http2).await;
        let client = connect(proxy.address).await;
        let requests = (0..50).map(|_| {
            let mut client = client.clone();
            async move {
                client.send_request(request("POST", "/", body("abc", &[]))).await.unwrap().collect().await.unwrap()
            }
        });
        for response in futures_util::future::join_all(requests).await {
            assert_eq!(response.to_bytes(), "ok");
        }
        assert_eq!(seen.borrow().len(), 50);
        proxy.records.wait(50).await;
        assert_eq!(cluster.stats.upstream_cx_total.value(), 1);
        assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
        assert_eq!(proxy.worker.pools.len(), 1);
    });
}

#[test]
fn an_http2_client_is_served_by_an_http1_endpoint() {
    local(async {
        let answer = "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nkeep-alive: timeout=5\r\ntrailer: x-done\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-done: 1\r\n\r\n";
        let (address, heads) = canned(answer).await;
        let (proxy, _) = proxy(address, UpstreamProtocol::Http1).await;
        let mut client = connect(proxy.address).await;
        for _ in 0..2 {
            let response = client.send_request(request("POST", "/a", body("abc", &[]))).await.unwrap();
            assert_eq!(response.headers().get("keep-alive"), None);
            let collected = response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["x-done"], "1");
            assert_eq!(collected.to_bytes(), "ok");
        }
        let head = heads.borrow()[1].clone();
        assert!(head.starts_with("0 POST /a HTTP/1.1\r\n") && head.contains("host: h\r\n"), "{head}");
        assert!(
            head.contains("transfer-encoding: chunked") && head.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            "{head}"
        );
        proxy.records.wait(2).await;
    });
}

#[test]
fn an_http1_client_is_served_by_an_http2_endpoint() {
    local(async {
        let (address, seen) = http2_origin().await;
        let (proxy, _) = proxy(address, UpstreamProtocol::Http2).await;
        let request = "POST /a HTTP/1.1\r\nHost: h:8080\r\nConnection: close, x-gone\r\nX-Gone: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let answer = proxy.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("2\r\nok\r\n0\r\n\r\n"), "{answer}");
        let (head, data, _) = seen.borrow_mut().remove(0);
        assert_eq!((head.uri.to_string().as_str(), &data[..]), ("http://h:8080/a", &b"abc"[..]));
        assert_eq!((head.headers.get("x-gone"), head.headers.get("connection")), (None, None));
        let record = proxy.records.one().await;
        assert_eq!((record.protocol, record.bytes_received, record.bytes_sent), ("HTTP/1.1", 3, 2));
    });
}

/// An origin that speaks HTTP/2 frame by frame.
async fn resetting(reason: h2::Reason, after_headers: bool) -> SocketAddr {
    origin(move |_, stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if after_headers {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    stream.send_reset(reason);
                });
            } else {
                respond.send_reset(reason);
            }
        }
    })
    .await
}

#[test]
fn resets_travel_both_ways() {
    local(async {
        let address = resetting(h2::Reason::INTERNAL_ERROR, false).await;
        let (proxy, _) = proxy(address, UpstreamProtocol::Http2).await;
        let answer = proxy.raw("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("reset reason: remote reset"), "{answer}");
        assert_eq!(proxy.records.one().await.flags.to_string(), "UR");
    });
    local(async {
        let address = resetting(h2::Reason::CANCEL, true).await;
        let (proxy, _) = proxy(address, UpstreamProtocol::Http2).await;
        let response = connect(proxy.address).await.send_request(request("GET", "/", body("", &[]))).await.unwrap();
        assert!(response.into_body().collect().await.is_err(), "the response looked complete");
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str(), record.bytes_sent), (200, "UR", 5));
    });
    local(async {
        let address = origin(|_, mut stream| async move {
            read_head(&mut stream).await;
            std::future::pending().await
        })
        .await;
        let (proxy, cluster) = proxy(address, UpstreamProtocol::Http1).await;
        let mut client = connect(proxy.address).await;
        let _ = tokio::time::timeout(
            Duration::from_millis(50),
            client.send_request(request("POST", "/", body("abc", &[]))),
        )
        .await;
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str()), (0, "DC"));
        assert_eq!(cluster.stats.upstream_rq_active.value(), 0);
    });
}

#[test]
fn a_refused_stream_is_tried_again_by_policy() {
    local(async {
        let address = resetting(h2::Reason::REFUSED_STREAM, false).await;
        let mut two = cluster("c", &[address]);
        two.protocol = UpstreamProtocol::Http2;
        let cluster = Arc::new(two);
        let mut action = to(&cluster);
        action.retry_policy = retry(&[RetryOn::RefusedStream], 2);
        let proxy = Proxy::new(manager(vec![row("/", Action::Route(Box::new(action)))]), &[]).await;
        let answer = proxy.raw("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains("retried and the latest reset reason: remote refused stream reset"), "{answer}");
        let record = proxy.records.one().await;
        assert_eq!((record.attempts, record.flags.to_string().as_str()), (3, "UR,URX"));
    });
}

#[test]
fn local_answers_and_draining_over_http2() {
    local(async {
        let proxy = Proxy::new(manager(Vec::new()), &[]).await;
        let mut client = connect(proxy.address).await;
        let mut odd = request("GET", "/", body("", &[]));
        odd.headers_mut().insert("host", HeaderValue::from_static("other"));
        assert_eq!(client.send_request(odd).await.unwrap().status(), StatusCode::BAD_REQUEST);
        let response = client.send_request(request("POST", "/", body("abc", &[]))).await.unwrap();
        assert_eq!((response.status(), response.headers().get("connection")), (StatusCode::NOT_FOUND, None));
        let mut large = request("GET", "/", body("", &[]));
        large.headers_mut().insert("x", HeaderValue::from_maybe_shared("x".repeat(61 * 1024)).unwrap());
        assert_eq!(client.send_request(large).await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        let records = proxy.records.wait(3).await;
        let details: Vec<_> = records.iter().map(|record| record.details).collect();
        assert_eq!(details, ["http2.authority_mismatch", "route_not_found", "http2.headers_too_large"]);
        let Proxy { drain, ends, .. } = proxy;
        assert_eq!(drain.drain(Duration::from_secs(5)).await, 0, "the idle connection ends at once");
        assert_eq!(ends.borrow()[0].requests, 3);
        assert!(client.ready().await.is_err());
    });
}

#[test]
fn what_is_no_http2_ends_the_connection() {
    local(async {
        let proxy = Proxy::new(manager(Vec::new()), &[]).await;
        let mut client = proxy.connect().await;
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
            .await
            .unwrap();
        let end = proxy.end().await;
        assert_eq!((end.flags.to_string().as_str(), end.requests), ("DPE", 0));
        assert_eq!(proxy.manager.stats.downstream_cx_protocol_error.value(), 1);
    });
}
