//! Checks of real servers on loopback.

use super::*;
use crate::cluster::HealthCheckKind;
use crate::cluster::endpoint::WeightedEndpoint;
use crate::cluster::fixture::{cluster_of, shared, snapshot, until};
use crate::cluster::manager::ClusterManager;
use crate::worker::Worker;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

fn every_10_ms(kind: HealthCheckKind) -> HealthCheck {
    HealthCheck {
        timeout: Duration::from_secs(2),
        interval: Duration::from_millis(10),
        interval_jitter: Duration::from_millis(1),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
        kind,
    }
}

fn http_check() -> HealthCheck {
    every_10_ms(HealthCheckKind::Http {
        path: "/healthz".to_owned(),
        host: None,
        expected_statuses: Vec::new(),
        retriable_statuses: vec![(429, 430)],
    })
}

fn tcp_check(send: Option<&str>, receive: &[&str]) -> HealthCheck {
    let bytes = |text: &&str| text.as_bytes().to_vec();
    every_10_ms(HealthCheckKind::Tcp { send: send.as_ref().map(bytes), receive: receive.iter().map(bytes).collect() })
}

/// A cluster of `addresses` under `check`, and what runs the check.
async fn checked(
    addresses: &[SocketAddr],
    check: HealthCheck,
    protocol: UpstreamProtocol,
) -> (Arc<Cluster>, ClusterManager) {
    let member = |address: &SocketAddr| {
        let endpoint = Arc::new(Endpoint::new(EndpointAddr::new(*address), None));
        WeightedEndpoint { endpoint, weight: 1 }
    };
    let members = addresses.iter().map(member).collect();
    let cluster = Cluster { health_checks: vec![check], protocol, ..cluster_of("shop", members) };
    let cluster = Arc::new(cluster);
    let shared = shared(vec![cluster.clone()]);
    let mut manager = ClusterManager::new(&shared);
    manager.adopt(&snapshot(1, vec![cluster.clone()])).await;
    (cluster, manager)
}

fn health(cluster: &Cluster, index: usize) -> Health {
    cluster.endpoints.load().all()[index].endpoint.health()
}

fn listen(address: &str) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.set_reuseaddr(true).expect("option");
    socket.bind(address.parse().expect("address")).expect("bind");
    socket.listen(64).expect("listen")
}

/// Answers each request with the status that `status` holds, after a look at its path and host.
fn serve_http(listener: TcpListener, status: Arc<AtomicU16>, protocol: UpstreamProtocol) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let status = status.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let host = request.headers().get("host").map(|host| host.as_bytes().to_vec());
                let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes().to_vec());
                let asked_well = request.uri().path() == "/healthz" && host.or(authority).as_deref() == Some(b"shop");
                let status = if asked_well { status.load(SeqCst) } else { 400 };
                let response = Response::builder().status(status).body(Empty::<bytes::Bytes>::new());
                async move { Ok::<_, Infallible>(response.expect("response")) }
            });
            let io = TokioIo::new(stream);
            tokio::spawn(async move {
                let _ = match protocol {
                    UpstreamProtocol::Http2 => {
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service)
                            .await
                    }
                    _ => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await,
                };
            });
        }
    })
}

#[test]
fn a_change_of_health_is_told_with_its_reason() {
    let address = EndpointAddr::new("127.0.0.1:9001".parse().expect("address"));
    let refused = || std::io::Error::from_raw_os_error(111);
    for (results, failure, told) in [
        (&[Verdict::Pass][..], None, "healthy (first check)"),
        (&[Verdict::Fail], Some(Failure::Timeout), "unhealthy: timeout (first check)"),
        (
            &[Verdict::Pass, Verdict::FailAtOnce],
            Some(Failure::Status(http::StatusCode::SERVICE_UNAVAILABLE)),
            "unhealthy: status 503 (at once)",
        ),
        (&[Verdict::Fail, Verdict::Pass, Verdict::Pass], None, "healthy (2 of 2)"),
        (
            &[Verdict::Pass, Verdict::Fail, Verdict::Fail, Verdict::Fail],
            Some(Failure::Network(refused())),
            "unhealthy: connection refused (3 of 3)",
        ),
    ] {
        let mut state = State::resume(Health::Unknown);
        let last = results.iter().map(|verdict| state.observe(*verdict, 2, 3)).last();
        let transition = last.flatten().expect("the last result changes it");
        let told_so = announcement(address, "shop", &transition, failure.as_ref());
        assert_eq!(told_so, format!("endpoint 127.0.0.1:9001 of cluster shop is {told}"));
    }
}

#[tokio::test]
async fn an_endpoint_that_dies_takes_no_traffic_until_it_is_back() {
    // At an address of its own, so that no other test is given the port meanwhile.
    let listener = listen("127.77.0.3:0");
    let other = listen("127.0.0.1:0");
    let address = listener.local_addr().expect("address");
    let addresses = [address, other.local_addr().expect("address")];
    let (cluster, _manager) = checked(&addresses, tcp_check(None, &[]), UpstreamProtocol::Http1).await;
    let worker = Worker::new(0, shared(vec![cluster.clone()]));
    let first = |cluster: &Arc<Cluster>| crate::cluster::select::select(&worker, cluster, None, &[]);
    until("both are healthy", || (0..2).all(|index| health(&cluster, index) == Health::Healthy)).await;
    assert_eq!(cluster.stats.membership_healthy.value(), 2);

    drop(listener);
    until("the first is unhealthy", || health(&cluster, 0) == Health::Unhealthy).await;
    until("it takes no traffic", || cluster.endpoints.load().usable().len() == 1).await;
    for _ in 0..3 {
        assert_eq!(first(&cluster).expect("endpoint").address.socket(), addresses[1]);
    }
    assert_eq!((cluster.stats.membership_total.value(), cluster.stats.membership_healthy.value()), (2, 1));
    let stats = &cluster.stats;
    assert!(stats.health_check_network_failure.value() >= 3);
    assert!(stats.health_check_failure.value() >= stats.health_check_network_failure.value());
    assert!(stats.health_check_attempt.value() > stats.health_check_failure.value());

    let _back = listen(&address.to_string());
    until("it takes traffic again", || cluster.endpoints.load().usable().len() == 2).await;
    assert_eq!(health(&cluster, 0), Health::Healthy);
}

#[tokio::test]
async fn an_http_status_decides_in_both_versions() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let listener = listen("127.0.0.1:0");
        let address = listener.local_addr().expect("address");
        let status = Arc::new(AtomicU16::new(200));
        let server = serve_http(listener, status.clone(), protocol);
        let (cluster, _manager) = checked(&[address], http_check(), protocol).await;
        until("200 is healthy", || health(&cluster, 0) == Health::Healthy).await;

        // A retriable status counts: three in a row are needed, and there is time for more than one.
        let before = cluster.stats.health_check_failure.value();
        status.store(429, SeqCst);
        until("429 is unhealthy", || health(&cluster, 0) == Health::Unhealthy).await;
        assert!(cluster.stats.health_check_failure.value() >= before + 3);
        status.store(200, SeqCst);
        until("200 is healthy again", || health(&cluster, 0) == Health::Healthy).await;

        status.store(503, SeqCst);
        until("503 is unhealthy", || health(&cluster, 0) == Health::Unhealthy).await;
        assert_eq!(cluster.stats.health_check_network_failure.value(), 0, "the network was well");
        server.abort();
    }
}

#[tokio::test]
async fn a_tcp_check_wants_its_bytes_back_and_a_silent_endpoint_holds_up_nobody() {
    let redis = listen("127.0.0.1:0");
    let silent = listen("127.0.0.1:0");
    let addresses = [silent.local_addr().expect("address"), redis.local_addr().expect("address")];
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = redis.accept().await {
            let mut asked = [0; 6];
            if stream.read_exact(&mut asked).await.is_ok() && &asked == b"PING\r\n" {
                let _ = stream.write_all(b"+PONG\r\n").await;
            }
        }
    });
    let check = HealthCheck { timeout: Duration::from_millis(300), ..tcp_check(Some("PING\r\n"), &["+PO", "NG"]) };
    let (cluster, _manager) = checked(&addresses, check, UpstreamProtocol::Http1).await;
    until("the talkative one is healthy", || health(&cluster, 1) == Health::Healthy).await;
    assert_eq!(health(&cluster, 0), Health::Unknown, "still within the timeout of its first check");
    until("the silent one is unhealthy", || health(&cluster, 0) == Health::Unhealthy).await;
    assert_eq!(health(&cluster, 1), Health::Healthy);
    server.abort();
}

#[tokio::test]
async fn the_worst_of_several_checks_counts() {
    let listener = listen("127.0.0.1:0");
    let address = listener.local_addr().expect("address");
    let endpoint = Arc::new(Endpoint::new(EndpointAddr::new(address), None));
    let status = Arc::new(AtomicU16::new(503));
    let server = serve_http(listener, status.clone(), UpstreamProtocol::Http1);
    let members = vec![WeightedEndpoint { endpoint, weight: 1 }];
    let checks = vec![tcp_check(None, &[]), http_check()];
    let cluster = Arc::new(Cluster { health_checks: checks, ..cluster_of("shop", members) });
    let mut manager = ClusterManager::new(&shared(vec![]));
    manager.adopt(&snapshot(1, vec![cluster.clone()])).await;
    until("it is unhealthy", || health(&cluster, 0) == Health::Unhealthy).await;
    status.store(200, SeqCst);
    until("it is healthy", || health(&cluster, 0) == Health::Healthy).await;
    server.abort();
}
