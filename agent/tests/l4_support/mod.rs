//! An agent with hand-built snapshots and explicit listeners, and the origins behind it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

#[path = "../fixture/mod.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use waylay::cluster::{Cluster, ClusterSpecifier, WeightedClusters};
use waylay::listener::chain::{ChainMatch, FilterChain, FilterChains};
use waylay::listener::dispatch::Listeners;
use waylay::listener::{
    Binding, HandOff, Listener, ListenerFilter, NetworkFilter, OnFiltersTimeout, ReusePort, TcpProxy,
};
use waylay::server::{LoadError, Loader, Running, Server, ServerError, ServerOptions, SignalHandling};
use waylay::snapshot::{Admin, Intercept, Origin, Runtime, Snapshot};
use waylay::telemetry::record::{ConnectionRecord, Record, RecordSink};
use waylay::telemetry::stats::ListenerStats;

pub const WAIT: Duration = Duration::from_secs(5);
pub const INSPECTED: &[ListenerFilter] = &[ListenerFilter::TlsInspector, ListenerFilter::HttpInspector];

/// Keeps the records of connections.
#[derive(Default)]
pub struct Records {
    all: Mutex<Vec<ConnectionRecord>>,
    written: Condvar,
}

impl RecordSink for Records {
    fn write(&self, record: Record) {
        if let Record::Connection(record) = record {
            self.all.lock().expect("records").push(*record);
            self.written.notify_all();
        }
    }
}

impl Records {
    /// The first `n` of them, once they are there.
    pub fn first(&self, n: usize) -> Vec<ConnectionRecord> {
        let all = self.all.lock().expect("records");
        let (all, waited) = self.written.wait_timeout_while(all, WAIT, |all| all.len() < n).expect("records");
        assert!(!waited.timed_out(), "only {} of {n} records: {all:?}", all.len());
        assert_eq!(all.len(), n, "more records than connections");
        all.clone()
    }

    /// The record that `wanted` describes, once it is there.
    pub fn find(&self, wanted: impl Fn(&ConnectionRecord) -> bool) -> ConnectionRecord {
        let all = self.all.lock().expect("records");
        let (all, _) = self.written.wait_timeout_while(all, WAIT, |all| !all.iter().any(&wanted)).expect("records");
        all.iter().find(|record| wanted(record)).cloned().unwrap_or_else(|| panic!("not among {all:?}"))
    }

    pub fn only(&self) -> ConnectionRecord {
        self.first(1).remove(0)
    }
}

/// One filter chain of a [`Site`]: what it matches and the origins behind it.
#[derive(Clone, Default)]
pub struct Chain {
    pub matches: ChainMatch,
    pub endpoints: Vec<SocketAddr>,
}

/// One listener with its clusters, in the terms that tests vary.
#[derive(Clone)]
pub struct Site {
    pub address: SocketAddr,
    pub filters: &'static [ListenerFilter],
    pub filters_timeout: Duration,
    pub on_filters_timeout: OnFiltersTimeout,
    pub chains: Vec<Chain>,
    pub default: Vec<SocketAddr>,
    pub idle_timeout: Duration,
    pub max_duration: Option<Duration>,
    pub max_connect_attempts: u32,
    pub hand_off: HandOff,
    pub is_virtual: bool,
    pub weighted: bool,
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

impl Site {
    pub fn to(endpoints: &[SocketAddr]) -> Self {
        Self {
            address: address("127.0.0.1:0"),
            filters: &[],
            filters_timeout: Duration::from_secs(5),
            on_filters_timeout: OnFiltersTimeout::Continue,
            chains: Vec::new(),
            default: endpoints.to_vec(),
            idle_timeout: Duration::from_secs(3600),
            max_duration: None,
            max_connect_attempts: 1,
            hand_off: HandOff::Stay,
            is_virtual: false,
            weighted: false,
        }
    }

    pub fn inspected(endpoints: &[SocketAddr]) -> Self {
        Self { filters: INSPECTED, ..Self::to(endpoints) }
    }
}

/// What an [`AgentUnderTest`] is configured with.
#[derive(Clone)]
pub struct Setup {
    pub sites: Vec<Site>,
    pub drain_timeout: Duration,
    pub broken: Option<String>,
    pub intercept: Option<Intercept>,
}

impl Setup {
    pub fn of(site: Site) -> Self {
        Self { sites: vec![site], drain_timeout: Duration::from_secs(5), broken: None, intercept: None }
    }
}

fn cluster(runtime: &Runtime, name: &str, endpoints: &[SocketAddr]) -> Arc<Cluster> {
    let cluster = fixture::cluster(runtime, name, endpoints);
    Arc::new(Cluster { connect_timeout: Duration::from_secs(1), ..cluster })
}

fn tcp(site: &Site, cluster: Arc<Cluster>) -> NetworkFilter {
    let cluster = match site.weighted {
        true => ClusterSpecifier::Weighted(WeightedClusters::new(vec![(cluster, 1)]).expect("weights")),
        false => ClusterSpecifier::Cluster(cluster),
    };
    NetworkFilter::Tcp(TcpProxy {
        cluster,
        idle_timeout: Some(site.idle_timeout),
        max_connect_attempts: site.max_connect_attempts,
        max_downstream_connection_duration: site.max_duration,
        hash_policy: None,
    })
}

fn snapshot(setup: &Setup, runtime: &Runtime, version: u64) -> Snapshot {
    let mut clusters = BTreeMap::new();
    let mut listeners = Vec::new();
    for (i, site) in setup.sites.iter().enumerate() {
        let name: Arc<str> = format!("listener-{}", site.address).into();
        let mut filter = |label: String, endpoints: &[SocketAddr]| {
            let cluster = cluster(runtime, &format!("cluster-{i}-{label}"), endpoints);
            clusters.insert(cluster.name.clone(), cluster.clone());
            tcp(site, cluster)
        };
        let chains = site
            .chains
            .iter()
            .enumerate()
            .map(|(index, chain)| {
                let filter = filter(index.to_string(), &chain.endpoints);
                Arc::new(FilterChain { name: None, index: Some(index), matches: chain.matches.clone(), filter })
            })
            .collect();
        let default = FilterChain {
            name: None,
            index: None,
            matches: ChainMatch::default(),
            filter: filter("default".to_owned(), &site.default),
        };
        listeners.push(Arc::new(Listener {
            stats: runtime.stats.listener(&name),
            name,
            address: site.address,
            direction: waylay::listener::TrafficDirection::Outbound,
            binding: match site.is_virtual {
                true => Binding::Virtual,
                false => Binding::Socket { reuse_port: ReusePort::PerWorker, backlog: 128 },
            },
            hand_off: site.hand_off,
            listener_filters: site.filters.to_vec(),
            dispatch: waylay::listener::Dispatch::Agent,
            listener_filters_timeout: Some(site.filters_timeout),
            on_filters_timeout: site.on_filters_timeout,
            chains: FilterChains::new(chains, Some(Arc::new(default))).expect("chains"),
        }));
    }
    Snapshot {
        origin: Origin { source: "test".to_owned(), text: "".into(), version, loaded_at: SystemTime::now() },
        intercept: setup.intercept.clone(),
        dns: None,
        listeners: Listeners::new(listeners).expect("listeners"),
        route_configs: BTreeMap::new(),
        clusters,
        admin: Admin { socket: "/nonexistent".into(), prometheus: None, readiness: None },
        access_log: Vec::new(),
        drain_timeout: setup.drain_timeout,
    }
}

/// A running agent, its setup, and what it recorded.
pub struct AgentUnderTest {
    pub running: Running,
    pub records: Arc<Records>,
    pub setup: Arc<Mutex<Setup>>,
    control: tokio::runtime::Runtime,
}

impl AgentUnderTest {
    pub fn of(site: Site) -> Self {
        Self::start(Setup::of(site))
    }

    pub fn start(setup: Setup) -> Self {
        Self::try_start(setup).expect("start")
    }

    pub fn try_start(setup: Setup) -> Result<Self, ServerError> {
        let setup = Arc::new(Mutex::new(setup));
        let (records, described) = (Arc::new(Records::default()), setup.clone());
        let loader: Loader = Arc::new(move |runtime, version| {
            let setup = described.lock().expect("setup");
            match &setup.broken {
                Some(problem) => Err(LoadError(problem.clone())),
                None => Ok(snapshot(&setup, runtime, version)),
            }
        });
        let options =
            ServerOptions { concurrency: Some(2), signals: SignalHandling::Caller, ..ServerOptions::default() };
        let server = Server::with_loader(options, loader, Runtime::default(), records.clone())?;
        let control = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        Ok(Self { running: server.start()?, records, setup, control })
    }

    pub fn address(&self) -> SocketAddr {
        self.address_of(address("127.0.0.1:0"))
    }

    pub fn address_of(&self, key: SocketAddr) -> SocketAddr {
        self.running.bound(key)[0]
    }

    pub fn connect(&self) -> TcpStream {
        client(self.address())
    }

    pub fn stats(&self) -> Arc<ListenerStats> {
        self.running.shared().runtime.stats.listener(&"listener-127.0.0.1:0".into())
    }

    pub fn reload(&self) -> Result<u64, String> {
        self.control.block_on(self.running.control().reload())
    }

    pub fn change(&self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup.lock().expect("setup"));
    }
}

/// A connection whose reads do not wait for ever.
pub fn client(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("connect");
    stream.set_read_timeout(Some(WAIT)).expect("timeout");
    stream
}

/// Connections, also after a time without file descriptors: `accept` fails at once then, whether or not one is there.
fn accepted(listener: &TcpListener) -> impl Iterator<Item = TcpStream> {
    let pause = |_: &std::io::Error| std::thread::sleep(Duration::from_millis(10));
    listener.incoming().filter_map(move |accepted| accepted.inspect_err(pause).ok())
}

/// An origin that hands its connections to the test.
pub struct TcpOrigin {
    pub address: SocketAddr,
    connections: Receiver<TcpStream>,
}

impl TcpOrigin {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let (sender, connections) = channel();
        std::thread::spawn(move || {
            for stream in accepted(&listener) {
                stream.set_read_timeout(Some(WAIT)).expect("timeout");
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        Self { address, connections }
    }

    pub fn accept(&self) -> TcpStream {
        self.connections.recv_timeout(WAIT).expect("a connection at the origin")
    }

    pub fn is_left_alone_for(&self, time: Duration) -> bool {
        self.connections.recv_timeout(time).is_err()
    }
}

/// An origin that greets, then sends everything back.
pub fn echo(greeting: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    // Room for a thousand clients at once; the standard library asks for 128.
    socket2::SockRef::from(&listener).listen(1024).expect("listen");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in accepted(&listener) {
            std::thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                let _ = stream.write_all(greeting);
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

/// An address that refuses connections.
pub fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address")
}

pub fn read_exactly(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    stream.read_exact(&mut buffer).expect("read");
    buffer
}

pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("read to the end");
    all
}

pub fn is_reset(stream: &mut TcpStream) -> bool {
    let error = stream.read_to_end(&mut Vec::new()).expect_err("a reset");
    error.kind() == std::io::ErrorKind::ConnectionReset
}

/// Ends with RST.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What is HTTP goes to `endpoint`.
pub fn http_chain(endpoint: SocketAddr) -> Chain {
    let matches = ChainMatch { application_protocols: vec!["http/1.1".to_owned()], ..ChainMatch::default() };
    Chain { matches, endpoints: vec![endpoint] }
}
