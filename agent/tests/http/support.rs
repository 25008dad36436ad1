//! A worker with one HTTP listener on loopback, origins of all kinds, and what was recorded.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use waylay::addr::ClientAddr;
use waylay::cluster::{Cluster, ClusterSpecifier};
use waylay::drain::{DrainControl, channel};
use waylay::http::connection::serve;
use waylay::http::route::vhost::HostIndex;
use waylay::http::route::{
    Action, HeaderMutations, PathMatch, RequireTls, RetryPolicy, Route, RouteAction, RouteConfig, RouteMatch,
    VirtualHost,
};
use waylay::http::{CodecType, ConnectionContext, ConnectionEnd, HttpConnectionManager, ServerHeader};
use waylay::listener::dispatch::Listeners;
use waylay::place::Behalf;
use waylay::snapshot::{Admin, Origin, Runtime, Snapshot};
use waylay::telemetry::record::{ConnectionInfo, Record, RecordSink, RequestRecord};
use waylay::worker::{Shared, Worker};

use super::fixture;

/// Runs `test` on a runtime as a worker has it.
pub fn local<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, limited)
}

/// Keeps every record.
#[derive(Default)]
pub struct Records(Mutex<Vec<RequestRecord>>);

impl RecordSink for Records {
    fn write(&self, record: Record) {
        if let Record::Request(record) = record {
            self.0.lock().expect("lock").push(*record);
        }
    }
}

impl Records {
    pub fn all(&self) -> Vec<RequestRecord> {
        self.0.lock().expect("lock").clone()
    }

    /// Waits for `count` records, and sees that there are no more.
    pub async fn wait(&self, count: usize) -> Vec<RequestRecord> {
        for _ in 0..400 {
            if self.all().len() >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        let all = self.all();
        assert_eq!(all.len(), count, "{all:#?}");
        all
    }

    /// The only record.
    pub async fn one(&self) -> RequestRecord {
        self.wait(1).await.remove(0)
    }
}

/// A cluster of `endpoints`.
pub fn cluster(name: &str, endpoints: &[SocketAddr]) -> Cluster {
    let cluster = fixture::cluster(&Runtime::default(), name, endpoints);
    Cluster { idle_timeout: Some(Duration::from_secs(3600)), ..cluster }
}

/// The action that forwards to `cluster`.
pub fn to(cluster: &Arc<Cluster>) -> RouteAction {
    RouteAction {
        cluster: ClusterSpecifier::Cluster(cluster.clone()),
        cluster_not_found_response_code: StatusCode::SERVICE_UNAVAILABLE,
        path_rewrite: None,
        host_rewrite: None,
        append_x_forwarded_host: false,
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        retry_policy: None,
        hash_policy: Default::default(),
    }
}

/// A row with a prefix.
pub fn row(prefix: &str, action: Action) -> Route {
    let runtime = Runtime::default();
    Route {
        index: 0,
        name: None,
        matches: RouteMatch {
            path: PathMatch::Prefix(prefix.to_owned()),
            case_sensitive: true,
            methods: Vec::new(),
            headers: Vec::new(),
            query_parameters: Vec::new(),
            grpc: false,
            runtime_fraction_per_million: None,
            source_pod: None,
        },
        action,
        headers: HeaderMutations::default(),
        stats: runtime.stats.route(("rc".into(), "vh".into(), prefix.into())),
    }
}

/// A retry policy with short intervals.
pub fn retry(on: &[waylay::http::route::RetryOn], num_retries: u32) -> Option<Arc<RetryPolicy>> {
    Some(Arc::new(RetryPolicy {
        retry_on: on.to_vec(),
        num_retries,
        base_interval: Duration::from_millis(1),
        max_interval: Duration::from_millis(10),
        ..RetryPolicy::default()
    }))
}

/// A connection manager with `routes` for every host.
pub fn manager(mut routes: Vec<Route>) -> HttpConnectionManager {
    for (index, route) in routes.iter_mut().enumerate() {
        route.index = index;
    }
    let virtual_hosts = vec![VirtualHost {
        name: "vh".into(),
        domains: vec!["*".to_owned()],
        routes,
        require_tls: RequireTls::None,
        headers: HeaderMutations::default(),
        retry_policy: None,
    }];
    HttpConnectionManager {
        stat_prefix: "test".into(),
        route_config: Arc::new(RouteConfig {
            name: "rc".into(),
            field_path: "route_configs[0]".to_owned(),
            hosts: HostIndex::new(&virtual_hosts).expect("no conflict"),
            virtual_hosts,
            ignore_port_in_host_matching: false,
            headers: HeaderMutations::default(),
            most_specific_header_mutations_wins: false,
        }),
        codec_type: CodecType::Auto,
        idle_timeout: Some(Duration::from_secs(3600)),
        stream_idle_timeout: Some(Duration::from_secs(300)),
        request_timeout: None,
        request_headers_timeout: None,
        accept_http_10: false,
        max_request_headers_kb: 60,
        max_headers_count: 100,
        upgrades: vec!["websocket".to_owned()],
        normalize_path: false,
        merge_slashes: false,
        use_remote_address: false,
        generate_request_id: true,
        server_header: ServerHeader::Overwrite,
        server_name: HeaderValue::from_static("waylay"),
        strip_any_host_port: false,
        stats: Runtime::default().stats.http(&"test".into()),
    }
}

fn snapshot(clusters: &[Arc<Cluster>]) -> Snapshot {
    Snapshot {
        origin: Origin { source: String::new(), text: "".into(), version: 1, loaded_at: SystemTime::now() },
        intercept: None,
        dns: None,
        listeners: Listeners::default(),
        route_configs: BTreeMap::new(),
        clusters: clusters.iter().map(|cluster| (cluster.name.clone(), cluster.clone())).collect(),
        admin: Admin { socket: PathBuf::new(), prometheus: None, readiness: None },
        access_log: Vec::new(),
        drain_timeout: Duration::from_secs(30),
    }
}

/// A worker that serves `manager` on loopback.
pub struct Proxy {
    pub address: SocketAddr,
    pub records: Arc<Records>,
    pub manager: Arc<HttpConnectionManager>,
    pub worker: Rc<Worker>,
    pub ends: Rc<RefCell<Vec<ConnectionEnd>>>,
    pub drain: DrainControl,
}

impl Proxy {
    pub async fn new(manager: HttpConnectionManager, clusters: &[Arc<Cluster>]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let records = Arc::new(Records::default());
        let (control, drain) = channel();
        let snapshot = Arc::new(snapshot(clusters));
        let shared = Arc::new(Shared::new(snapshot.clone(), Runtime::default(), records.clone(), drain, 1));
        shared.set_kernel(None);
        let worker = Rc::new(Worker::new(0, shared));
        let manager = Arc::new(manager);
        let ends = Rc::new(RefCell::new(Vec::new()));
        let proxy = Self { address, records, manager, worker, ends, drain: control };
        proxy.accept(listener, snapshot);
        proxy
    }

    fn accept(&self, listener: TcpListener, snapshot: Arc<Snapshot>) {
        let (manager, worker, ends) = (self.manager.clone(), self.worker.clone(), self.ends.clone());
        tokio::task::spawn_local(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let info = ConnectionInfo {
                    connection_id: worker.shared.connection_id(),
                    client: ClientAddr::new(peer),
                    local: stream.local_addr().expect("address"),
                    original_dst: None,
                    direction: waylay::listener::TrafficDirection::Outbound,
                    pod: None,
                    source_pod: None,
                    process: None,
                    listener: None,
                    filter_chain: None,
                    server_name: None,
                };
                let context =
                    ConnectionContext { info, behalf: Behalf::agent(), snapshot: snapshot.clone(), detected: None };
                let (manager, worker, ends) = (manager.clone(), worker.clone(), ends.clone());
                tokio::task::spawn_local(async move {
                    let _open = worker.shared.drain.open();
                    let end = serve(stream, context, manager, worker.clone()).await;
                    ends.borrow_mut().push(end);
                });
            }
        });
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connect")
    }

    /// Sends raw bytes and reads until the agent closes.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.expect("write");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The end of the only connection.
    pub async fn end(&self) -> ConnectionEnd {
        for _ in 0..400 {
            if let Some(end) = self.ends.borrow().first() {
                return end.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the connection does not end");
    }
}

/// An origin: `serve` gets each connection with its number.
pub async fn origin<F: Future<Output = ()> + 'static>(serve: impl Fn(usize, TcpStream) -> F + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::task::spawn_local(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(serve(number, stream));
            number += 1;
        }
    });
    address
}

/// Reads until a whole request head is there; the head and what follows.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads the body that `head` announces, as it is on the wire.
pub async fn read_body(stream: &mut TcpStream, head: &str) -> String {
    let head = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()) {
        body.resize(length, 0);
        stream.read_exact(&mut body).await.expect("a body");
    } else if head.contains("transfer-encoding: chunked") {
        while !(body == b"0\r\n\r\n" || body.ends_with(b"\r\n0\r\n\r\n")) {
            body.push(stream.read_u8().await.expect("a chunk"));
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// An origin that answers every request on a connection with `answer`, and keeps what it was sent.
pub async fn canned(answer: &'static str) -> (SocketAddr, Rc<RefCell<Vec<String>>>) {
    let heads = Rc::new(RefCell::new(Vec::new()));
    let kept = heads.clone();
    let address = origin(move |number, mut stream| {
        let kept = kept.clone();
        async move {
            while let Some(mut head) = read_head(&mut stream).await {
                head.push_str(&read_body(&mut stream, &head).await);
                kept.borrow_mut().push(format!("{number} {head}"));
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, heads)
}

/// Reads one response with a Content-Length, or without a body.
pub async fn read_response(stream: &mut TcpStream) -> String {
    let mut response = read_head(stream).await.expect("a response");
    let length =
        response.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.expect("a body");
    response.push_str(&String::from_utf8_lossy(&body));
    response
}

/// A loopback port that nobody listens on.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    listener.local_addr().expect("address")
}
