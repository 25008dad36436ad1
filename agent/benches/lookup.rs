//! What a connection and a request look up in the configuration, against how much of it there is: the listener of an
//! original destination, the filter chain, the virtual host and the row.
//!
//! `cargo bench -p waylay --bench lookup`

mod common;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method};

use common::{SIZES, lines, load};
use waylay::addr::{ClientAddr, OrigDstAddr};
use waylay::http::route::RouteConfig;
use waylay::http::route::decide::{RequestFacts, decide};
use waylay::http::route::matching::RequestView;
use waylay::listener::TrafficDirection;
use waylay::listener::chain::{ConnectionFacts, FilterChains};
use waylay::snapshot::Snapshot;

const CLUSTER: &str = "clusters: [{name: c, endpoints: [127.0.0.1:1]}]\n";

/// Listeners of any address differ by their ports.
const FIRST_PORT: usize = 20_000;

/// The address that belongs to `number`.
fn address(number: usize) -> String {
    format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255)
}

fn dispatch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dispatch");
    for size in SIZES {
        let listeners = lines(size, |number| {
            let address = address(number);
            format!(
                "  - {{name: l{number}, address: \"{address}:80\", bind_to_port: false, \
                     filter_chains: [{{tcp_proxy: {{cluster: c}}}}]}}"
            )
        });
        let snapshot = load(format!("{CLUSTER}listeners:\n{listeners}"));
        let last = original_dst(&format!("{}:80", address(size - 1)));
        group.bench_function(BenchmarkId::new("exact", size), |bench| {
            bench.iter(|| snapshot.listeners.find(TrafficDirection::Outbound, black_box(last)));
        });
        let listeners = lines(size, |number| {
            format!(
                "  - {{name: l{number}, address: \"0.0.0.0:{}\", bind_to_port: false, \
                     filter_chains: [{{tcp_proxy: {{cluster: c}}}}]}}",
                FIRST_PORT + number
            )
        });
        let wildcards = load(format!("{CLUSTER}listeners:\n{listeners}"));
        let anywhere = original_dst(&format!("192.0.2.1:{}", FIRST_PORT + size - 1));
        group.bench_function(BenchmarkId::new("any address", size), |bench| {
            bench.iter(|| wildcards.listeners.find(TrafficDirection::Outbound, black_box(anywhere)));
        });
        let other = original_dst("192.0.2.1:81");
        group.bench_function(BenchmarkId::new("none", size), |bench| {
            bench.iter(|| snapshot.listeners.find(TrafficDirection::Outbound, black_box(other)));
        });
    }
    group.finish();
}

fn original_dst(text: &str) -> OrigDstAddr {
    OrigDstAddr::new(text.parse().expect("address"))
}

/// The filter chains of a listener with one chain for each number.
fn chains(size: usize, criteria: impl Fn(usize) -> String) -> Snapshot {
    let chains =
        lines(size, |number| format!("      - {{match: {{{}}}, tcp_proxy: {{cluster: c}}}}", criteria(number)));
    let listener =
        "  - name: l\n    address: 127.0.0.1:15001\n    listener_filters: [tls_inspector]\n    filter_chains:\n";
    load(format!("{CLUSTER}listeners:\n{listener}{chains}"))
}

fn find_chain(snapshot: &Snapshot) -> &FilterChains {
    &snapshot.listeners.iter().next().expect("a listener").chains
}

fn chain_match(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chain match");
    for size in SIZES {
        let last = size - 1;
        let facts = |destination: &str, server_name: Option<String>| ConnectionFacts {
            server_name,
            ..ConnectionFacts::raw(
                original_dst(destination),
                ClientAddr::new("10.9.9.9:40000".parse().expect("address")),
            )
        };
        let cases = [
            (
                "server name",
                chains(size, |number| format!("server_names: [host{number}.example]")),
                facts("10.0.0.1:443", Some(format!("host{last}.example"))),
            ),
            (
                "server name suffix",
                chains(size, |number| format!("server_names: [\"*.zone{number}.example\"]")),
                facts("10.0.0.1:443", Some(format!("a.b.zone{last}.example"))),
            ),
            (
                "destination prefix",
                chains(size, |number| format!("prefix_ranges: [{}/32]", address(number))),
                facts(&format!("{}:443", address(last)), None),
            ),
        ];
        for (name, snapshot, facts) in cases {
            let chains = find_chain(&snapshot);
            group.bench_function(BenchmarkId::new(name, size), |bench| bench.iter(|| chains.find(black_box(&facts))));
        }
    }
    group.finish();
}

fn facts<'a>(method: &'a Method, authority: &'a str, path: &'a str, headers: &'a HeaderMap) -> RequestFacts<'a> {
    RequestFacts { method, scheme: "http", authority, path_and_query: path, headers, random: 7, source_pod: None }
}

/// What a client usually sends.
fn usual_headers() -> HeaderMap {
    let pairs = [
        ("host", "shop.example"),
        ("user-agent", "bench/1.0"),
        ("accept", "*/*"),
        ("x-request-id", "00000000-0000-4000-8000-000000000000"),
        ("x-forwarded-proto", "http"),
        ("x-tenant", "none"),
    ];
    pairs.into_iter().map(|(name, value)| (name.parse().expect("name"), HeaderValue::from_static(value))).collect()
}

fn table(snapshot: &Snapshot) -> &RouteConfig {
    snapshot.route_configs.values().next().expect("a table")
}

fn host_lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("virtual host");
    for size in SIZES {
        let last = size - 1;
        let hosts = |domain: fn(usize) -> String| {
            let hosts = lines(size, |number| {
                format!("      - {{name: h{number}, domains: [\"{}\"], routes: []}}", domain(number))
            });
            load(format!("{CLUSTER}route_configs:\n  - name: t\n    virtual_hosts:\n{hosts}"))
        };
        let cases = [
            ("exact", hosts(|number| format!("host{number}.example")), format!("host{last}.example")),
            ("suffix", hosts(|number| format!("*.zone{number}.example")), format!("a.b.zone{last}.example")),
            ("prefix", hosts(|number| format!("host{number}.*")), format!("host{last}.example.com")),
            ("none", hosts(|number| format!("*.zone{number}.example")), "www.elsewhere.test".to_owned()),
        ];
        for (name, snapshot, authority) in cases {
            let table = table(&snapshot);
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                bench.iter(|| table.virtual_host(black_box(&authority)).map(|found| found.domains.len()));
            });
        }
    }
    group.finish();
}

fn row(number: usize, condition: &str) -> String {
    format!("          - {{match: {{{condition}}}, direct_response: {{status: 200, body: \"{number}\"}}}}")
}

/// The conditions of row `number`, and the request that the last of `size` rows matches.
type Kind = (&'static str, fn(usize) -> String, fn(usize) -> String);

const KINDS: [Kind; 8] = [
    ("prefix", |n| format!("prefix: /api/v1/service{n}/"), |last| format!("/api/v1/service{last}/items/7?page=2")),
    ("exact", |n| format!("path: /api/v1/items/{n}"), |last| format!("/api/v1/items/{last}?page=2")),
    ("separated", |n| format!("path_separated_prefix: /svc{n}/api"), |last| format!("/svc{last}/api/items/7")),
    (
        "prefix in any case",
        |n| format!("prefix: /Api/v1/service{n}/, case_sensitive: false"),
        |last| format!("/api/v1/service{last}/items/7"),
    ),
    ("template", |n| format!("path_template: \"/svc{n}/*/items/*\""), |last| format!("/svc{last}/a/items/7")),
    ("regex", |n| format!("safe_regex: \"/svc{n}/[0-9]+/.*\""), |last| format!("/svc{last}/12/items/7")),
    ("regexes that begin alike", |n| format!("safe_regex: \"/[a-z]+/item{n}\""), |last| format!("/api/item{last}")),
    (
        "headers on distinct prefixes",
        |n| format!("prefix: /svc{n}/, headers: [{{name: x-tenant, exact: none}}]"),
        |last| format!("/svc{last}/items"),
    ),
];

/// A prime number that divides none of the sizes, so that every row comes.
const STEP: usize = 7_919;

fn table_of(rows: &str) -> String {
    format!(
        "route_configs:\n  - name: t\n    virtual_hosts:\n      - name: h\n        domains: [\"*\"]\n        routes:\n{rows}"
    )
}

fn route_match(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route match");
    let headers = usual_headers();
    for (name, condition, path) in KINDS {
        for size in SIZES {
            let rows = lines(size, |number| row(number, &condition(number)));
            let snapshot = load(table_of(&rows));
            let (table, path) = (table(&snapshot), path(size - 1));
            let facts = facts(&Method::GET, "shop.example", &path, &headers);
            let found = decide(table, &facts, &|_| None).route.map(|route| route.index);
            assert_eq!(found, Some(size - 1), "{name}");
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                bench.iter(|| decide(table, black_box(&facts), &|_| None).route.map(|route| route.index));
            });
            // What it would cost without an index.
            let rows = &table.virtual_hosts[0].routes;
            group.bench_function(BenchmarkId::new(format!("{name}, by a walk"), size), |bench| {
                bench.iter(|| {
                    let view = RequestView::new(black_box(&facts));
                    rows.iter().position(|row| row.matches.check::<()>(&view).is_ok())
                });
            });
        }
    }
    group.finish();
}

/// The rows of all requests in turn, far from each other: neither the table nor the paths stay in the CPU's caches as they do
/// for one row.
fn any_row(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route match, of any row");
    let headers = usual_headers();
    for (name, condition, path) in KINDS.into_iter().take(2) {
        for size in SIZES {
            let rows = lines(size, |number| row(number, &condition(number)));
            let snapshot = load(table_of(&rows));
            let table = table(&snapshot);
            let paths: Vec<String> = (0..size).map(path).collect();
            let mut next = 0;
            group.bench_function(BenchmarkId::new(name, size), |bench| {
                bench.iter(|| {
                    next = (next + STEP) % size;
                    let facts = facts(&Method::GET, "shop.example", &paths[next], &headers);
                    decide(table, black_box(&facts), &|_| None).route.map(|route| route.index)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, dispatch, chain_match, host_lookup, route_match, any_row);
criterion_main!(benches);
