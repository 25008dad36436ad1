//! Requests that stay with an endpoint by hash: cookies that the agent makes, and endpoints that fail.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use waylay::cluster::endpoint::EndpointSet;
use waylay::cluster::{Cluster, ConsistentHash, LbPolicy};
use waylay::http::route::hash_policy::{HashCookie, HashOn, HashPolicy, HashRule};
use waylay::http::route::{Action, RetryOn, RouteAction};

use crate::support::*;

fn hashed(endpoints: &[std::net::SocketAddr]) -> Arc<Cluster> {
    let plain = cluster("c", endpoints);
    let lb_policy = LbPolicy::Consistent(ConsistentHash::Ring { minimum: 1024, maximum: 1024 });
    let set = EndpointSet::balanced(plain.endpoints.load().all().to_vec(), 0, lb_policy);
    Arc::new(Cluster { lb_policy, endpoints: ArcSwap::from_pointee(set), ..plain })
}

fn by(on: HashOn, cluster: &Arc<Cluster>) -> RouteAction {
    RouteAction { hash_policy: HashPolicy(vec![HashRule { on, terminal: false }]), ..to(cluster) }
}

async fn origins(count: usize) -> Vec<std::net::SocketAddr> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.0);
    }
    all
}

fn get(headers: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n")
}

fn set_cookie(response: &str) -> Option<&str> {
    response.lines().find_map(|line| line.strip_prefix("set-cookie: "))
}

#[test]
fn a_client_that_keeps_the_cookie_that_it_was_given_stays() {
    local(async {
        let endpoints = origins(4).await;
        let cluster = hashed(&endpoints);
        let cookie = HashCookie { name: "stay".to_owned(), ttl: Some(Duration::from_secs(60)), path: "/".to_owned() };
        let routes = vec![row("/", Action::Route(Box::new(by(HashOn::Cookie(cookie), &cluster))))];
        let proxy = Proxy::new(manager(routes), &[]).await;
        let first = proxy.raw(get("")).await;
        let made = set_cookie(&first).expect("a cookie").to_owned();
        let (value, rest) = made.split_once("; ").expect("attributes");
        assert!(value.starts_with("stay=\"") && rest == "Max-Age=60; Path=/; HttpOnly", "{made}");
        let endpoint = proxy.records.wait(1).await.pop().unwrap().endpoint;
        for number in 2..8 {
            let response = proxy.raw(get(&format!("cookie: other=1; {value}\r\n"))).await;
            assert_eq!(set_cookie(&response), None, "it has one");
            assert_eq!(proxy.records.wait(number).await.pop().unwrap().endpoint, endpoint);
        }
    });
}

#[test]
fn requests_of_one_connection_without_a_cookie_are_given_the_same() {
    use tokio::io::AsyncWriteExt;
    local(async {
        let cluster = hashed(&origins(4).await);
        let cookie = HashCookie { name: "stay".to_owned(), ttl: Some(Duration::ZERO), path: String::new() };
        let routes = vec![row("/", Action::Route(Box::new(by(HashOn::Cookie(cookie), &cluster))))];
        let proxy = Proxy::new(manager(routes), &[]).await;
        let mut client = proxy.connect().await;
        let mut made = Vec::new();
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            made.push(set_cookie(&read_response(&mut client).await).expect("a cookie").to_owned());
        }
        assert!(made.iter().all(|one| *one == made[0] && one.ends_with("\"; HttpOnly")), "{made:?}");
        let records = proxy.records.wait(3).await;
        assert!(records.iter().all(|record| record.endpoint == records[0].endpoint));
    });
}

#[test]
fn a_retry_goes_to_another_endpoint_and_always_to_the_same_other_one() {
    local(async {
        let mut endpoints = origins(3).await;
        endpoints.push(nobody().await);
        let dead = endpoints[3];
        let cluster = hashed(&endpoints);
        let action = RouteAction {
            retry_policy: retry(&[RetryOn::ConnectFailure], 1),
            ..by(HashOn::Header("x-user".to_owned()), &cluster)
        };
        let proxy = Proxy::new(manager(vec![row("/", Action::Route(Box::new(action)))]), &[]).await;
        let (mut asked, mut retried) = (0, 0);
        for user in 0..40 {
            let mut of_user = Vec::new();
            for _ in 0..2 {
                let response = proxy.raw(get(&format!("x-user: {user}\r\n"))).await;
                assert!(response.starts_with("HTTP/1.1 200"), "{response}");
                asked += 1;
                let record = proxy.records.wait(asked).await.pop().unwrap();
                of_user.push((record.endpoint, record.attempts));
            }
            assert_eq!(of_user[0], of_user[1]);
            assert_ne!(of_user[0].0.map(|endpoint| endpoint.socket()), Some(dead));
            retried += u32::from(of_user[0].1 > 1);
        }
        assert!((1..40).contains(&retried), "{retried} of 40 users belong to the endpoint that is down");
    });
}
