//! Names of the hosts file, and of a name server on loopback.

use super::*;
use crate::cluster::fixture::{cluster, shared, snapshot, until};
use crate::cluster::manager::ClusterManager;
use crate::cluster::{Cluster, DnsLookupFamily};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use std::collections::HashMap;
use std::io::Write;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Answers by name; a name that is not in there is answered with SERVFAIL.
type Zone = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

/// A name server for `zone`, with a time to live of `ttl_s` seconds, and the configuration that asks it.
async fn name_server(zone: &Zone, ttl_s: u32) -> (JoinHandle<()>, ResolverConfig) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("address");
    let zone = zone.clone();
    let server = tokio::spawn(async move {
        let mut packet = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut packet).await {
            let Ok(question) = Message::from_vec(&packet[..length]) else { continue };
            let answer = answer(&question, &zone, ttl_s);
            let _ = socket.send_to(&answer.to_vec().expect("encode"), client).await;
        }
    });
    let mut connection = ConnectionConfig::udp();
    connection.port = address.port();
    let servers = vec![NameServerConfig::new(address.ip(), true, vec![connection])];
    (server, ResolverConfig::from_parts(None, Vec::new(), servers))
}

fn answer(question: &Message, zone: &Zone, ttl_s: u32) -> Message {
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    let query = question.queries[0].clone();
    let name = query.name().clone();
    match zone.lock().expect("lock").get(name.to_ascii().trim_end_matches('.')) {
        Some(addresses) => {
            let of_family = |address: &&IpAddr| address.is_ipv4() == (query.query_type() == RecordType::A);
            let record = |address: &IpAddr| Record::from_rdata(name.clone(), ttl_s, RData::from(*address));
            answer.add_answers(addresses.iter().filter(of_family).map(record).collect::<Vec<_>>());
        }
        None => answer.metadata.response_code = ResponseCode::ServFail,
    }
    answer.add_query(query);
    answer
}

fn zone(entries: &[(&str, &[&str])]) -> Zone {
    let parse = |addresses: &[&str]| addresses.iter().map(|address| address.parse().expect("address")).collect();
    Arc::new(Mutex::new(entries.iter().map(|(name, addresses)| ((*name).to_owned(), parse(addresses))).collect()))
}

fn strict_dns(names: &[(&str, u32)]) -> Arc<Cluster> {
    let name = |(host, weight): &(&str, u32)| DnsName { host: (*host).to_owned(), port: 80, weight: *weight };
    let discovery = Discovery::StrictDns {
        names: names.iter().map(name).collect(),
        refresh_rate: Duration::from_millis(20),
        respect_dns_ttl: false,
        lookup_family: DnsLookupFamily::All,
    };
    Arc::new(Cluster { discovery, ..cluster("shop") })
}

/// Addresses and weights, in order.
fn members(cluster: &Cluster) -> Vec<String> {
    let set = cluster.endpoints.load();
    set.all().iter().map(|member| format!("{}*{}", member.endpoint.address, member.weight)).collect()
}

/// A hosts file.
fn hosts(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(text.as_bytes()).expect("write");
    file
}

#[tokio::test]
async fn every_address_of_every_name_is_an_endpoint_and_the_set_follows_the_answers() {
    let zone = zone(&[("a.test", &["10.0.0.2", "10.0.0.1", "fd00::1"]), ("b.test", &["10.0.0.3", "10.0.0.1"])]);
    let (server, config) = name_server(&zone, 60).await;
    let shared = shared(vec![]);
    let names = Names::with_servers(hosts("").path().into(), config, &shared);
    let mut manager = ClusterManager::with_names(&shared, names);
    let cluster = strict_dns(&[("a.test", 2), ("b.test", 1)]);
    manager.adopt(&snapshot(1, vec![cluster.clone()])).await;
    let first = ["10.0.0.1:80*2", "10.0.0.2:80*2", "[fd00::1]:80*2", "10.0.0.3:80*1"];
    assert_eq!(members(&cluster), first);
    assert_eq!(cluster.endpoints.load().all()[3].endpoint.hostname.as_deref(), Some("b.test"));
    let changes = cluster.stats.membership_change.value();
    let kept = cluster.endpoints.load().all()[0].endpoint.clone();

    zone.lock().expect("lock").insert("a.test".to_owned(), vec!["10.0.0.1".parse().expect("address")]);
    until("the set follows", || members(&cluster) == ["10.0.0.1:80*2", "10.0.0.3:80*1"]).await;
    assert!(Arc::ptr_eq(&kept, &cluster.endpoints.load().all()[0].endpoint));
    assert_eq!(cluster.stats.membership_change.value(), changes + 1);

    zone.lock().expect("lock").clear();
    let failures = cluster.stats.update_failure.value();
    until("it fails", || cluster.stats.update_failure.value() > failures + 2).await;
    assert_eq!(members(&cluster), ["10.0.0.1:80*2", "10.0.0.3:80*1"], "the last good set stays");

    // A reload with the same names does not ask anew: nobody could answer now.
    let reloaded = strict_dns(&[("a.test", 2), ("b.test", 1)]);
    manager.adopt(&snapshot(2, vec![reloaded.clone()])).await;
    assert_eq!(members(&reloaded), members(&cluster));
    server.abort();
}

#[tokio::test]
async fn the_lookup_family_chooses_the_addresses() {
    use DnsLookupFamily::{All, Auto, V4Only, V6Only};
    let zone =
        zone(&[("both.test", &["10.0.0.1", "fd00::1"]), ("four.test", &["10.0.0.4"]), ("six.test", &["fd00::6"])]);
    let (server, config) = name_server(&zone, 60).await;
    let hosts = hosts("10.1.0.1 both.hosts\nfd01::1 both.hosts\n127.0.0.9 four.hosts Alias.Hosts\n");
    let names = Names::with_servers(hosts.path().into(), config, &shared(vec![]));
    for (host, family, wanted) in [
        ("both.test", Auto, &["fd00::1"][..]),
        ("four.test", Auto, &["10.0.0.4"]),
        ("both.test", All, &["10.0.0.1", "fd00::1"]),
        ("both.test", V4Only, &["10.0.0.1"]),
        ("both.test", V6Only, &["fd00::1"]),
        ("six.test", V4Only, &[]),
        ("six.test", All, &["fd00::6"]),
        ("unknown.test", All, &[]),
        ("both.hosts", Auto, &["fd01::1"]),
        ("both.hosts", All, &["10.1.0.1", "fd01::1"]),
        ("four.hosts", Auto, &["127.0.0.9"]),
        ("alias.hosts", All, &["127.0.0.9"]),
        ("four.hosts", V6Only, &[]),
        ("localhost", Auto, &["127.0.0.1"]),
        ("localhost", V6Only, &["::1"]),
        ("localhost", All, &["127.0.0.1", "::1"]),
        ("10.9.9.9", Auto, &["10.9.9.9"]),
        ("[fd09::9]", V4Only, &["fd09::9"]),
        ("not a name", All, &[]),
    ] {
        let resolved = names.resolve(host, family).await.map_or_else(|_| Vec::new(), |resolved| resolved.addresses);
        let wanted: Vec<IpAddr> = wanted.iter().map(|address| address.parse().expect("address")).collect();
        assert_eq!(resolved, wanted, "{host} with {family:?}");
    }
    server.abort();
}

#[tokio::test]
async fn localhost_is_what_the_hosts_file_says() {
    let config = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    let hosts = hosts("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.0.5 other\n");
    let names = Names::with_servers(hosts.path().into(), config, &shared(vec![]));
    let resolved = names.resolve("localhost", DnsLookupFamily::Auto).await.expect("addresses");
    assert_eq!(resolved.addresses, ["127.0.0.1".parse::<IpAddr>().expect("address")]);
    // The file is read again each time.
    std::fs::write(hosts.path(), "127.0.0.6 other\n").expect("write");
    let resolved = names.resolve("other", DnsLookupFamily::Auto).await.expect("addresses");
    assert_eq!(resolved.addresses, ["127.0.0.6".parse::<IpAddr>().expect("address")]);
}

#[tokio::test]
async fn localhost_resolves_as_the_system_is() {
    let names = Names::of_the_system(&shared(vec![]));
    let resolved = names.resolve("localhost", DnsLookupFamily::Auto).await.expect("addresses");
    assert_eq!(resolved.addresses, ["127.0.0.1".parse::<IpAddr>().expect("address")]);
}

#[tokio::test]
async fn an_answer_holds_for_its_time_to_live() {
    let zone = zone(&[("a.test", &["10.0.0.1"])]);
    let (server, config) = name_server(&zone, 7).await;
    let names = Names::with_servers(hosts("").path().into(), config, &shared(vec![]));
    let ttl = names.resolve("a.test", DnsLookupFamily::V4Only).await.expect("addresses").ttl.expect("ttl");
    assert!((6..=7).contains(&ttl.as_secs()), "{ttl:?}");
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_answers_holds_a_reload_up_for_at_most_5_s() {
    // A bound socket that never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    let address = silent.local_addr().expect("address");
    let mut connection = ConnectionConfig::udp();
    connection.port = address.port();
    let servers = vec![NameServerConfig::new(address.ip(), true, vec![connection])];
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let shared = shared(vec![]);
    let names = Names::with_servers(hosts("").path().into(), config, &shared);
    let mut manager = ClusterManager::with_names(&shared, names);
    let cluster = strict_dns(&[("a.test", 1), ("localhost", 1)]);
    let started = tokio::time::Instant::now();
    manager.adopt(&snapshot(1, vec![cluster.clone()])).await;
    assert!(started.elapsed() <= Duration::from_millis(5_100), "{:?}", started.elapsed());
    assert_eq!(members(&cluster), ["127.0.0.1:80*1", "[::1]:80*1"], "the other name is not held up");
}

#[test]
fn pauses_follow_the_answers() {
    let s = Duration::from_secs;
    let cadence = |respect_dns_ttl| Cadence { refresh_rate: s(5), respect_dns_ttl };
    assert_eq!(cadence(false).after_success(Some(s(60))), s(5));
    assert_eq!(cadence(true).after_success(Some(s(60))), s(60));
    assert_eq!(cadence(true).after_success(Some(s(0))), s(1));
    assert_eq!(cadence(true).after_success(None), s(5));
    for (failures, random, pause_ms) in
        [(1, 1.0, 5_000), (1, 0.0, 2_500), (2, 1.0, 10_000), (4, 1.0, 40_000), (5, 1.0, 50_000), (99, 0.0, 25_000)]
    {
        assert_eq!(cadence(true).after_failures(failures, random), Duration::from_millis(pause_ms), "{failures}");
    }
}
