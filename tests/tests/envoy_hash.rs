//! Choices by hash, the agent's against Envoy's own: for the same endpoints and the same keys both go to the same endpoint.
//!
//! Served on bound listeners: nothing is intercepted. What `explain` says is compared too.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use waylay_tests::world::Side;
use waylay_tests::{Origin, World, eventually, tools};

const ENVOY: &str = "127.0.0.2";
const WAYLAY: &str = "127.0.0.3";
const HTTP: u16 = 8000;
/// One TCP proxy each.
const TCP: [(u16, &str); 2] = [(8001, "ring"), (8002, "maglev")];
/// How many keys each row is asked with.
const KEYS: usize = 60;

/// Name, policy, its settings in Envoy's words, weights of the endpoints.
fn clusters() -> Vec<(&'static str, &'static str, Value, Vec<u32>)> {
    let ring = |minimum: u32, maximum: u32| json!({"ring_hash_lb_config": {"minimum_ring_size": minimum, "maximum_ring_size": maximum}});
    let maglev = |size: u32| json!({"maglev_lb_config": {"table_size": size}});
    vec![
        ("ring", "RING_HASH", json!({}), vec![1; 7]),
        ("ring-weighted", "RING_HASH", json!({}), vec![1, 5, 2, 7, 1, 3, 128]),
        ("ring-small", "RING_HASH", ring(10, 8_388_608), vec![1; 7]),
        ("ring-cut", "RING_HASH", ring(8, 17), vec![3, 1, 2, 1, 1, 2, 5]),
        ("maglev", "MAGLEV", json!({}), vec![1; 7]),
        ("maglev-weighted", "MAGLEV", json!({}), vec![1, 5, 2, 7, 1, 3, 128]),
        ("maglev-small", "MAGLEV", maglev(11), vec![1, 2, 1, 4, 1, 1, 1]),
    ]
}

/// The hash policies, which both read as they stand.
fn policies() -> Vec<(&'static str, Value)> {
    let header = |name: &str| json!({"header": {"header_name": name}});
    let terminal = |mut policy: Value| {
        policy["terminal"] = true.into();
        policy
    };
    vec![
        ("header", json!([header("x-key")])),
        ("cookie", json!([{"cookie": {"name": "key"}}])),
        ("query", json!([{"query_parameter": {"name": "key"}}])),
        ("source", json!([{"connection_properties": {"source_ip": true}}])),
        ("path", json!([header(":path")])),
        ("authority", json!([header(":authority")])),
        ("combined", json!([header("x-key"), {"query_parameter": {"name": "key"}}, {"cookie": {"name": "key"}}])),
        ("terminal", json!([terminal(header("x-absent")), terminal(header("x-key")), header(":path")])),
        ("added", json!([header("x-added"), header("x-key")])),
    ]
}

fn rows() -> Vec<(String, &'static str, Value)> {
    let header = policies().remove(0).1;
    let of_clusters = clusters().into_iter().map(|(name, ..)| (format!("/cluster/{name}/"), name, header.clone()));
    let of_policies = policies().into_iter().map(|(name, policy)| (format!("/policy/{name}/"), "ring", policy));
    of_clusters.chain(of_policies).collect()
}

fn endpoint(index: usize) -> u16 {
    9001 + u16::try_from(index).expect("a few")
}

fn routes(of_envoy: bool) -> Vec<Value> {
    let row = |(prefix, cluster, policy): (String, &str, Value)| {
        // Hashed is the request as it is sent on.
        let key = if of_envoy {
            json!({"header": {"key": "x-added", "value": "1"}})
        } else {
            json!({"key": "x-added", "value": "1"})
        };
        json!({"match": {"prefix": prefix}, "route": {"cluster": cluster, "hash_policy": policy, "prefix_rewrite": "/x"},
            "request_headers_to_add": [key]})
    };
    rows().into_iter().map(row).collect()
}

fn waylay_config() -> String {
    let clusters: Vec<_> = clusters()
        .into_iter()
        .map(|(name, policy, mut cluster, weights)| {
            let endpoints = weights
                .iter()
                .enumerate()
                .map(|(index, weight)| json!({"address": format!("127.0.0.1:{}", endpoint(index)), "weight": weight}));
            cluster["name"] = name.into();
            cluster["lb_policy"] = policy.into();
            cluster["endpoints"] = endpoints.collect();
            cluster
        })
        .collect();
    let chain = json!({"http": {"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes(false)}]}}});
    let mut listeners =
        vec![json!({"name": "http", "address": format!("{WAYLAY}:{HTTP}"), "default_filter_chain": chain})];
    listeners.extend(TCP.map(|(port, cluster)| {
        let chain = json!({"tcp_proxy": {"cluster": cluster, "hash_policy": [{"source_ip": {}}]}});
        json!({"name": format!("tcp-{cluster}"), "address": format!("{WAYLAY}:{port}"), "default_filter_chain": chain})
    }));
    format!("listeners: {}\nclusters: {}\n", json!(listeners), json!(clusters))
}

fn envoy_config() -> Value {
    const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";
    let address = |ip: &str, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
    let clusters: Vec<_> = clusters()
        .into_iter()
        .map(|(name, policy, mut cluster, weights)| {
            let endpoints = weights.iter().enumerate().map(|(index, weight)| json!({"endpoint": {"address": address("127.0.0.1", endpoint(index))}, "load_balancing_weight": weight}));
            let endpoints: Vec<_> = endpoints.collect();
            cluster["name"] = name.into();
            cluster["type"] = "STATIC".into();
            cluster["lb_policy"] = policy.into();
            cluster["load_assignment"] = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]});
            cluster
        })
        .collect();
    let filter = |name: &str, config: Value| json!([{"filters": [{"name": name, "typed_config": config}]}]);
    let manager = json!({
        "@type": format!("{TYPES}.network.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": "http",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes(true)}]},
        "http_filters": [{"name": "envoy.filters.http.router",
            "typed_config": {"@type": format!("{TYPES}.http.router.v3.Router")}}],
    });
    let chains = filter("envoy.filters.network.http_connection_manager", manager);
    let mut listeners = vec![json!({"name": "http", "address": address(ENVOY, HTTP), "filter_chains": chains})];
    listeners.extend(TCP.map(|(port, cluster)| {
        let proxy = json!({"@type": format!("{TYPES}.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "tcp",
            "cluster": cluster, "hash_policy": [{"source_ip": {}}]});
        let chains = filter("envoy.filters.network.tcp_proxy", proxy);
        json!({"name": format!("tcp-{cluster}"), "address": address(ENVOY, port), "filter_chains": chains})
    }));
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

/// A client connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(proxy: &str, port: u16, source: Option<&str>) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        if let Some(source) = source {
            let source: SocketAddr = format!("{source}:0").parse().expect("an address");
            socket.bind(&source.into()).expect("binding the client");
        }
        let address: SocketAddr = format!("{proxy}:{port}").parse().expect("an address");
        socket.connect(&address.into()).expect("connecting to a proxy");
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a time-out");
        Self(BufReader::new(stream))
    }

    /// Which origin answers a GET for `path` with these header lines.
    fn ask(&mut self, path: &str, headers: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: shop-{}\r\n{headers}\r\n", path.len());
        self.0.get_mut().write_all(request.as_bytes()).expect("asking");
        let (mut origin, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("an answer");
            match line.trim_end().split_once(": ") {
                Some(("x-origin", name)) => origin = name.to_owned(),
                Some(("content-length", value)) => length = value.parse().expect("a length"),
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        self.0.read_exact(&mut vec![0; length]).expect("a body");
        assert!(!origin.is_empty(), "an origin answers {path}");
        origin
    }
}

fn start_envoy(world: &World) -> waylay_tests::Child {
    let config = world.file("envoy.json", &envoy_config().to_string());
    let args =
        ["-c", config.to_str().expect("a UTF-8 path"), "--concurrency", "1", "--disable-hot-restart", "-l", "info"];
    let mut envoy = world.spawn(Side::Outside, tools::venv("envoy"), &args);
    eventually("Envoy runs", || {
        assert!(envoy.is_running(), "Envoy does not take its configuration: {}", envoy.stderr());
        envoy.stderr().contains("starting main dispatch loop")
    });
    envoy
}

fn origins(world: &World) -> Vec<Arc<Origin>> {
    (0..7).map(|index| world.origin(&endpoint(index).to_string(), &format!("127.0.0.1:{}", endpoint(index)))).collect()
}

/// The key of a request in everything that is hashed.
fn request(prefix: &str, key: usize) -> (String, String) {
    let path = format!("{prefix}{}?a=b&key=q{key}&key=other", "p".repeat(key % 7));
    let twice = if key.is_multiple_of(3) { format!("x-key: second-{}\r\n", key % 5) } else { String::new() };
    let forwarded =
        if key.is_multiple_of(4) { String::new() } else { format!("x-forwarded-for: 9.9.9.9, 10.1.2.{key}\r\n") };
    (path, format!("x-key: user-{key}\r\n{twice}cookie: a=b; key=c{key}; key=other\r\n{forwarded}"))
}

#[test]
fn hashes_lead_where_envoys_lead() {
    let world = World::new();
    let _origins = origins(&world);
    let _envoy = start_envoy(&world);
    let agent = world.agent(&waylay_config());
    let mut failures = Vec::new();
    world.inside(|| {
        let [mut envoy, mut waylay] = [ENVOY, WAYLAY].map(|proxy| Client::new(proxy, HTTP, None));
        for (prefix, ..) in rows() {
            let mut seen = BTreeSet::new();
            for key in 0..KEYS {
                let (path, headers) = request(&prefix, key);
                let (theirs, ours) = (envoy.ask(&path, &headers), waylay.ask(&path, &headers));
                if theirs != ours {
                    failures.push(format!("{path} {headers:?}: Envoy {theirs}, waylay {ours}"));
                }
                seen.insert(ours);
            }
            assert!(seen.len() > 1, "{prefix} leads to {seen:?} alone");
        }
        for (port, cluster) in TCP {
            for number in 0..KEYS {
                let source = format!("127.77.{}.{}", number % 7, number + 1);
                let ask = |proxy| Client::new(proxy, port, Some(&source)).ask("/", "");
                let (theirs, ours) = (ask(ENVOY), ask(WAYLAY));
                if theirs != ours {
                    failures.push(format!("{cluster} from {source}: Envoy {theirs}, waylay {ours}"));
                }
            }
        }
    });
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
    agent.stop();
}

#[test]
fn explain_names_the_endpoint_that_a_hash_leads_to() {
    let world = World::new();
    let _origins = origins(&world);
    let agent = world.agent(&waylay_config());
    for (row, key) in [("header", 1), ("source", 2), ("combined", 3), ("cookie", 4)] {
        let (path, headers) = request(&format!("/policy/{row}/"), key);
        let answered = world.inside(|| Client::new(WAYLAY, HTTP, None).ask(&path, &headers));
        let url = format!("http://shop-{}{path}", path.len());
        let dst = format!("{WAYLAY}:{HTTP}");
        let mut args = vec!["explain", "-o", "json", "-c", agent.config().to_str().expect("UTF-8"), "--dst", &dst];
        args.extend(headers.lines().flat_map(|header| ["-H", header]));
        args.push(&url);
        let said: Value = serde_json::from_str(&agent.cli(&args).success()).expect("JSON");
        assert_eq!(said["endpoint"], format!("127.0.0.1:{answered}"), "{said:#}");
        assert!(said["hash"].as_str().is_some_and(|hash| hash.len() == 16), "{said:#}");
    }
    let said = agent
        .cli(&[
            "explain",
            "-c",
            agent.config().to_str().expect("UTF-8"),
            "--dst",
            &format!("{WAYLAY}:8001"),
            "--src",
            "127.77.1.9:0",
            "http://x/",
        ])
        .success();
    let answered = world.inside(|| Client::new(WAYLAY, 8001, Some("127.77.1.9")).ask("/", ""));
    assert!(said.contains(&format!("127.0.0.1:{answered}, where the hash leads among 7")), "{said}");
    agent.stop();
}
