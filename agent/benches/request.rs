//! What is done for each connection and each request besides looking things up: the choice of an endpoint, the
//! inspection of the first bytes, and the work on headers.
//!
//! `cargo bench -p waylay --bench request`

mod common;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};

use common::{SIZES, lines, load};
use waylay::addr::EndpointAddr;
use waylay::cluster::balance::{Schedule, pick};
use waylay::cluster::endpoint::{Endpoint, EndpointSet, WeightedEndpoint};
use waylay::cluster::{ClusterSpecifier, LbPolicy};
use waylay::http::HttpConnectionManager;
use waylay::http::headers::{forward, remove_hop_by_hop, sanitize_request, sanitize_response, sign_response};
use waylay::http::route::Action;
use waylay::listener::NetworkFilter;
use waylay::listener::filter::{Verdict, http_inspector, tls_inspector};

fn endpoints(count: u16, weight: fn(u16) -> u32) -> EndpointSet {
    let member = |number| {
        let address = EndpointAddr::new(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10_000 + number));
        WeightedEndpoint { endpoint: Arc::new(Endpoint::new(address, None)), weight: weight(number) }
    };
    EndpointSet::new((0..count).map(member).collect(), 0)
}

fn pick_endpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    let equal: fn(u16) -> u32 = |_| 1;
    let unequal: fn(u16) -> u32 = |number| u32::from(number % 7) + 1;
    let policies = [
        ("round robin", LbPolicy::RoundRobin, equal),
        ("round robin by weight", LbPolicy::RoundRobin, unequal),
        ("least request", LbPolicy::LeastRequest, equal),
        ("least request by weight", LbPolicy::LeastRequest, unequal),
        ("random", LbPolicy::Random, equal),
        ("random by weight", LbPolicy::Random, unequal),
    ];
    for (name, policy, weight) in policies {
        for size in SIZES {
            let set = endpoints(u16::try_from(size).expect("small"), weight);
            let mut schedule = Schedule::default();
            schedule.follow(&set);
            let mut random = [1_u64, 2];
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                bench.iter(|| {
                    random = random.map(|number| number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                    pick(policy, &set, &mut schedule, random, &[]).map(|endpoint| endpoint.address)
                });
            });
        }
    }
    group.finish();
}

fn pick_cluster(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("weighted clusters");
    for size in [2, 10, 100, 1_000] {
        let clusters = lines(size, |n| format!("  - {{name: c{n}, endpoints: [127.0.0.1:1]}}"));
        let weights = lines(size, |n| format!("                - {{name: c{n}, weight: {}}}", n % 7 + 1));
        let row = format!(
            "          - match: {{prefix: /}}\n            route:\n              weighted_clusters:\n{weights}"
        );
        let host = format!("      - name: h\n        domains: [\"*\"]\n        routes:\n{row}");
        let snapshot = load(format!("clusters:\n{clusters}route_configs:\n  - name: t\n    virtual_hosts:\n{host}"));
        let table = snapshot.route_configs.values().next().expect("a table");
        let Action::Route(action) = &table.virtual_hosts[0].routes[0].action else { panic!("no route action") };
        let ClusterSpecifier::Weighted(weighted) = &action.cluster else { panic!("no weights") };
        let mut random = 1_u64;
        group.bench_function(BenchmarkId::new("pick", size), |bench| {
            bench.iter(|| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                weighted.pick(random >> 8).name.len()
            });
        });
    }
    group.finish();
}

/// A ClientHello with a server name, two protocols, and as many other bytes as a browser sends.
fn client_hello() -> Vec<u8> {
    let extension = |kind: u16, content: &[u8]| {
        let length = u16::try_from(content.len()).expect("short");
        [&kind.to_be_bytes(), &length.to_be_bytes(), content].concat()
    };
    let name = b"www.shop.example";
    let length = u16::try_from(name.len()).expect("short");
    let server_name = [&(length + 3).to_be_bytes()[..], &[0], &length.to_be_bytes(), name].concat();
    let alpn = b"\x00\x0c\x02h2\x08http/1.1";
    let extensions =
        [extension(0x0a0a, &[0; 4]), extension(0, &server_name), extension(16, alpn), extension(51, &[7; 1_200])]
            .concat();
    let length = u16::try_from(extensions.len()).expect("short");
    let hello = [
        &[3, 3][..],
        &[1; 32],
        &[32],
        &[2; 32],
        &32_u16.to_be_bytes(),
        &[0x13; 32],
        &[1, 0],
        &length.to_be_bytes(),
        &extensions,
    ]
    .concat();
    let length = u32::try_from(hello.len()).expect("short").to_be_bytes();
    let message = [&[1][..], &length[1..], &hello].concat();
    let length = u16::try_from(message.len()).expect("short");
    [&[22, 3, 1][..], &length.to_be_bytes(), &message].concat()
}

fn inspectors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inspector");
    let hello = client_hello();
    let Verdict::Done(found) = tls_inspector::inspect(&hello) else { panic!("no ClientHello") };
    assert_eq!(found.server_name.as_deref(), Some("www.shop.example"));
    group.bench_function("tls", |bench| bench.iter(|| tls_inspector::inspect(black_box(&hello))));
    let request = b"GET /api/v1/items/7?page=2 HTTP/1.1\r\nhost: shop.example\r\nuser-agent: bench\r\n\r\n";
    assert!(matches!(http_inspector::inspect(request), Verdict::Done(_)));
    group.bench_function("http", |bench| bench.iter(|| http_inspector::inspect(black_box(request))));
    group.bench_function("tls, of plain text", |bench| bench.iter(|| tls_inspector::inspect(black_box(request))));
    group.finish();
}

fn header_map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().expect("name"), HeaderValue::from_static(value))).collect()
}

fn manager() -> Arc<HttpConnectionManager> {
    let snapshot = load(
        "listeners: [{name: l, address: \"127.0.0.1:15001\", filter_chains: [{http: {route_config: \
         {virtual_hosts: [{name: h, domains: [\"*\"], routes: []}]}}}]}]\n"
            .to_owned(),
    );
    let listener = snapshot.listeners.iter().next().expect("a listener");
    match &listener.chains.all()[0].filter {
        NetworkFilter::Http(manager) => manager.clone(),
        NetworkFilter::Tcp(_) => panic!("no HTTP"),
    }
}

fn header_work(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("headers");
    let manager = manager();
    let request = header_map(&[
        ("host", "shop.example"),
        ("connection", "keep-alive"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
        ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en"),
        ("cookie", "session=0123456789abcdef"),
        ("referer", "http://shop.example/"),
    ]);
    let client = IpAddr::from(Ipv4Addr::new(10, 1, 2, 3));
    group.bench_function("request", |bench| {
        let work = |mut headers: HeaderMap| {
            let sound = remove_hop_by_hop(&mut headers).is_ok();
            sanitize_request(&mut headers);
            forward(&mut headers, &manager, client, || HeaderValue::from_static("7"));
            (headers, sound)
        };
        bench.iter_batched(|| request.clone(), work, BatchSize::SmallInput);
    });
    let response = header_map(&[
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("content-type", "text/html"),
        ("content-length", "1024"),
        ("etag", "\"0123456789\""),
        ("cache-control", "no-store"),
        ("server", "origin"),
    ]);
    group.bench_function("response", |bench| {
        let work = |mut headers: HeaderMap| {
            sanitize_response(&mut headers);
            sign_response(&mut headers, &manager, 3);
            headers
        };
        bench.iter_batched(|| response.clone(), work, BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, pick_endpoint, pick_cluster, inspectors, header_work);
criterion_main!(benches);
