//! Reloads: what stays, what goes.

use super::*;
use crate::addr::{EndpointAddr, OrigDstAddr};
use crate::cluster::endpoint::{Health, WeightedEndpoint};
use crate::cluster::fixture::{cluster, cluster_of, shared, snapshot, until};
use crate::cluster::select::select;
use crate::cluster::{HealthCheck, HealthCheckKind};
use crate::worker::Worker;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// A static cluster as the configuration makes it: endpoints and statistics by identity.
fn configured(shared: &Shared, name: &str, addresses: &[SocketAddr], checked: bool) -> Arc<Cluster> {
    let name: Arc<str> = name.into();
    let member = |address: &SocketAddr| {
        let endpoint = shared.runtime.endpoints.endpoint(&name, EndpointAddr::new(*address), None);
        WeightedEndpoint { endpoint, weight: 1 }
    };
    let check = HealthCheck {
        timeout: Duration::from_secs(1),
        interval: Duration::from_millis(10),
        interval_jitter: Duration::ZERO,
        unhealthy_threshold: 2,
        healthy_threshold: 1,
        kind: HealthCheckKind::Tcp { send: None, receive: Vec::new() },
    };
    let members = addresses.iter().map(member).collect();
    let stats = shared.runtime.stats.cluster(&name);
    let health_checks = if checked { vec![check] } else { Vec::new() };
    Arc::new(Cluster { stats, health_checks, ..cluster_of(&name, members) })
}

fn usable(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.endpoints.load().usable().iter().map(|member| member.endpoint.address.socket()).collect()
}

/// An address that listens, and one that refuses.
async fn good_and_bad() -> (TcpListener, [SocketAddr; 2]) {
    let good = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    // At an address of its own, so that no other test is given the port meanwhile.
    let bad = TcpListener::bind("127.77.0.1:0").await.expect("bind").local_addr().expect("address");
    let address = good.local_addr().expect("address");
    (good, [address, bad])
}

#[tokio::test]
async fn a_reload_keeps_health_and_statistics_and_older_snapshots_get_the_news() {
    let (_good, [good, bad]) = good_and_bad().await;
    let shared = shared(vec![]);
    let mut manager = ClusterManager::new(&shared);
    let first = configured(&shared, "shop", &[good, bad], true);
    manager.adopt(&snapshot(1, vec![first.clone()])).await;
    until("the bad one is out", || usable(&first) == [good]).await;
    first.endpoints.load().all()[0].endpoint.stats.rq_total.add(7);

    // The same endpoints and a new one: what is known of the old ones stays known, without a new check.
    let closing = TcpListener::bind("127.77.0.2:0").await.expect("bind");
    let third = closing.local_addr().expect("address");
    let second = configured(&shared, "shop", &[good, bad, third], true);
    manager.adopt(&snapshot(2, vec![second.clone()])).await;
    assert_eq!(usable(&second), [good, third]);
    assert_eq!(second.endpoints.load().all()[0].endpoint.stats.rq_total.value(), 7);
    assert_eq!(usable(&first), [good, third], "a connection with the older snapshot");

    drop(closing);
    until("the third one, which closed, is out", || usable(&second) == [good]).await;
    assert_eq!(usable(&first), [good]);
    assert_eq!((second.stats.membership_total.value(), second.stats.membership_healthy.value()), (3, 1));
}

#[tokio::test]
async fn an_endpoint_that_is_no_longer_checked_takes_traffic_again() {
    let (_good, [good, bad]) = good_and_bad().await;
    let shared = shared(vec![]);
    let mut manager = ClusterManager::new(&shared);
    let first = configured(&shared, "shop", &[good, bad], true);
    manager.adopt(&snapshot(1, vec![first.clone()])).await;
    until("the bad one is out", || usable(&first) == [good]).await;

    let second = configured(&shared, "shop", &[good, bad], false);
    manager.adopt(&snapshot(2, vec![second.clone()])).await;
    assert_eq!(usable(&second), [good, bad]);
    // A check that is under way may still come to its end.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let checks = second.stats.health_check_attempt.value();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(second.stats.health_check_attempt.value(), checks, "nobody checks any more");
    assert_eq!(second.endpoints.load().all()[1].endpoint.health(), Health::Unknown);
}

#[tokio::test]
async fn a_cluster_that_is_gone_is_no_longer_checked() {
    let (_good, [good, bad]) = good_and_bad().await;
    let shared = shared(vec![]);
    let mut manager = ClusterManager::new(&shared);
    let first = configured(&shared, "shop", &[good, bad], true);
    manager.adopt(&snapshot(1, vec![first.clone()])).await;
    until("the bad one is out", || usable(&first) == [good]).await;
    manager.adopt(&snapshot(2, vec![])).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let checks = first.stats.health_check_attempt.value();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(first.stats.health_check_attempt.value(), checks);
    assert_eq!(first.stats.membership_total.value(), 0);
    assert_eq!(usable(&first), [good], "connections with the older snapshot keep what they had");
}

#[tokio::test(start_paused = true)]
async fn endpoints_made_on_use_are_shown_and_swept_out_after_their_use() {
    let cluster = Arc::new(Cluster { discovery: Discovery::OriginalDst, ..cluster("passthrough") });
    let shared = shared(vec![cluster.clone()]);
    let mut manager = ClusterManager::new(&shared);
    manager.adopt(&snapshot(1, vec![cluster.clone()])).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let worker = Worker::new(0, shared);
    let destination = OrigDstAddr::new("10.0.0.1:80".parse().expect("address"));
    let endpoint = select(&worker, &cluster, Some(destination), &[]).expect("endpoint");
    endpoint.stats.cx_active.inc();
    tokio::time::sleep(CLEANUP_INTERVAL).await;
    assert_eq!(usable(&cluster), [destination.socket()]);
    tokio::time::sleep(CLEANUP_INTERVAL * 4).await;
    assert_eq!(usable(&cluster), [destination.socket()], "it has a connection");
    endpoint.stats.cx_active.dec();
    tokio::time::sleep(CLEANUP_INTERVAL * 2).await;
    assert_eq!(usable(&cluster), []);
}

#[tokio::test]
async fn a_cluster_that_becomes_original_dst_forgets_its_configured_endpoints() {
    let shared = shared(vec![]);
    let mut manager = ClusterManager::new(&shared);
    let address: SocketAddr = "127.0.0.1:9".parse().expect("address");
    let before = configured(&shared, "shop", &[address], false);
    manager.adopt(&snapshot(1, vec![before.clone()])).await;
    let after = Cluster { discovery: Discovery::OriginalDst, stats: before.stats.clone(), ..cluster("shop") };
    let after = Arc::new(after);
    manager.adopt(&snapshot(2, vec![after.clone()])).await;
    assert_eq!((usable(&before), usable(&after)), (vec![address], vec![]));
    let again = configured(&shared, "shop", &[address], false);
    manager.adopt(&snapshot(3, vec![again.clone()])).await;
    assert_eq!(usable(&again), [address]);
}
