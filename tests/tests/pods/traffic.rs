//! What goes to and from enrolled pods, and what is told of it.

use serde_json::Value;
use waylay_tests::pods::Node;
use waylay_tests::world::Side;
use waylay_tests::{World, eventually};

use super::{INJECT, config, config_with, get, pod_metric, wait_enrolled};

#[test]
fn two_pods_talk_through_the_agent_and_records_name_both() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);

    assert_eq!(get(&web, &format!("http://{}:8080/cart", shop.ip)), "shop GET /cart HTTP/1.1\n");

    let records = agent.wait_records("request", 2);
    let of = |direction: &str| records.iter().find(|record| record["direction"] == direction).expect(direction);
    let (out, inn) = (of("outbound"), of("inbound"));
    assert_eq!((&out["pod"], &out["source_pod"]), (&"docker/web".into(), &"docker/web".into()), "{out:#}");
    assert_eq!((&inn["pod"], &inn["source_pod"]), (&"docker/shop".into(), &"docker/web".into()), "{inn:#}");
    assert_eq!(out["comm"], "curl");
    let destination = format!("{}:8080", shop.ip);
    assert_eq!(
        (&out["original_dst"], &inn["original_dst"]),
        (&Value::from(&*destination), &Value::from(&*destination))
    );
}

#[test]
fn the_traffic_of_a_pod_is_counted_by_direction_until_the_pod_is_gone() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let origins = (shop.origin("shop", "0.0.0.0:8080"), shop.origin("bytes", "0.0.0.0:9000"));
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "inbound", ""), Some(0));

    let ends = [("web", "outbound"), ("shop", "inbound")];
    get(&web, &format!("http://{}:9000/", shop.ip));
    let records = agent.wait_records("connection", 2);
    for (pod, direction) in ends {
        let value = |name| pod_metric(&agent, name, pod, direction, "");
        let record = records.iter().find(|record| record["direction"] == direction).expect(direction);
        let (received, sent) = (record["bytes_received"].as_u64(), record["bytes_sent"].as_u64());
        assert!(received > Some(20) && sent > Some(20), "{record:#}");
        assert_eq!((value("cx_total"), value("cx_active"), value("rq_total")), (Some(1), Some(0), Some(0)), "{pod}");
        assert_eq!((value("cx_rx_bytes_total"), value("cx_tx_bytes_total")), (received, sent), "{pod} {direction}");
    }

    let before = pod_metric(&agent, "cx_rx_bytes_total", "web", "outbound", "");
    get(&web, &format!("http://{}:8080/", shop.ip));
    get(&web, &format!("http://{}:8080/", shop.ip));
    agent.wait_records("request", 4);
    for (pod, direction) in ends {
        let value = |name| pod_metric(&agent, name, pod, direction, "");
        assert_eq!(value("rq_total"), Some(2), "{pod} {direction}");
        let of_class =
            |class| pod_metric(&agent, "rq_xx", pod, direction, &format!(",response_code_class=\"{class}\""));
        assert_eq!((of_class(2), of_class(5)), (Some(2), Some(0)), "{pod} {direction}");
    }
    // The client has closed both; what the agent keeps open for the next request is open at the other pod.
    let of_web = |name| pod_metric(&agent, name, "web", "outbound", "");
    eventually("no connection is open", || of_web("cx_active") == Some(0));
    assert!(of_web("cx_total") == Some(3) && of_web("cx_rx_bytes_total") > before);
    assert!(pod_metric(&agent, "cx_active", "shop", "inbound", "") > Some(0), "kept for the next request");
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "outbound", ""), Some(0), "it connected to nobody");

    drop(origins);
    drop(shop);
    wait_enrolled(&agent, &["web"]);
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "inbound", ""), None);
    assert_eq!(pod_metric(&agent, "cx_total", "web", "outbound", ""), Some(3), "the others keep theirs");
}

#[test]
fn explain_asks_the_running_agent_what_it_knows_of_a_pod_and_is_right() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", &[("waylay.io/exclude-outbound-ports", "8080")]));
    let _origin = web.origin("web", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["web"]);
    let explained = |pod: &str, dst: &str| -> Value {
        let args = ["explain", "--pod", pod, "--dst", dst, "-o", "json", "http://web/"];
        serde_json::from_str(&agent.cli(&args).success()).expect("JSON")
    };
    let (url, dst) = (format!("http://{}:8080/", web.ip), format!("{}:8080", web.ip));

    let (taken, left) = (explained("docker/web", &dst), explained("docker/shop", &dst));
    assert_eq!((&taken["pod"]["enrolled"], &taken["pod"]["taken"]), (&true.into(), &true.into()), "{taken:#}");
    assert_eq!((&left["pod"]["enrolled"], &left["pod"]["select"]), (&false.into(), &Value::Null), "{left:#}");
    assert_eq!(taken["listener"], "outbound_8080");
    let unknown = agent.cli(&["explain", "--pod", "docker/nobody", "--dst", &dst, "http://web/"]).failure();
    assert!(unknown.contains("knows of no pod docker/nobody"), "{unknown}");

    shop.announce(&[("waylay.io/inject", "true"), ("waylay.io/exclude-outbound-ports", "8080")]);
    wait_enrolled(&agent, &["shop", "web"]);
    let excluded = explained("docker/shop", &dst);
    assert_eq!(
        (&excluded["pod"]["enrolled"], &excluded["pod"]["taken"]),
        (&true.into(), &false.into()),
        "{excluded:#}"
    );
    get(&shop, &url);
    assert_eq!(pod_metric(&agent, "cx_total", "shop", "outbound", ""), Some(0), "as explained");
    assert_eq!(pod_metric(&agent, "cx_total", "web", "inbound", ""), Some(1));
}

#[test]
fn an_application_that_listens_on_loopback_only_or_on_the_pods_address_only_is_reached() {
    let world = World::new();
    let node = Node::new(&world);
    let (web, shop) = (node.pod("web", INJECT), node.pod("shop", INJECT));
    let on_address = shop.origin("address", &format!("{}:8080", shop.ip));
    let on_loopback = shop.origin("loopback", "127.0.0.1:9999");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop", "web"]);

    assert_eq!(get(&web, &format!("http://{}:8080/", shop.ip)), "address GET / HTTP/1.1\n");
    assert_eq!(get(&web, &format!("http://{}:9999/", shop.ip)), "loopback GET / HTTP/1.1\n");
    assert_eq!((on_address.connections(), on_loopback.connections()), (1, 1), "each was reached once");
    assert_eq!(on_loopback.seen()[0].peer.ip().to_string(), "127.0.0.1");
}

#[test]
fn the_same_addresses_and_ports_in_two_pods_never_mix() {
    let world = World::new();
    let node = Node::new(&world);
    let pods = [node.pod("one", INJECT), node.pod("two", INJECT)];
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["one", "two"]);
    let origins: Vec<_> = pods
        .iter()
        .map(|pod| {
            pod.run("ip", &["addr", "add", "10.1.1.1/32", "dev", "lo"]).success();
            pod.origin(&pod.name, "10.1.1.1:8080")
        })
        .collect();
    for round in 0..5 {
        for pod in &pods {
            // The same source port too: all four parts of the two connections are equal.
            let url = format!("http://10.1.1.1:8080/{round}");
            let args =
                ["-sS", "--max-time", "10", "--local-port", &format!("4{round}000"), "--interface", "10.1.1.1", &url];
            assert_eq!(pod.run("curl", &args).success(), format!("{} GET /{round} HTTP/1.1\n", pod.name));
        }
    }
    assert!(origins.iter().all(|origin| origin.seen().len() == 5));
}

#[test]
fn routes_match_on_the_pod_that_a_request_comes_from() {
    let world = World::new();
    let node = Node::new(&world);
    let web = node.pod("web", &[("waylay.io/inject", "true"), ("app", "web")]);
    let other = node.pod("other", &[("app", "other")]);
    let shop = node.pod("shop", INJECT);
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent =
        world.agent(&config_with(&node, "", "{prefix: /, source_pod: {namespace: docker, labels: {app: web}}}"));
    wait_enrolled(&agent, &["shop", "web"]);

    let url = format!("http://{}:8080/", shop.ip);
    assert_eq!(get(&web, &url), "shop GET / HTTP/1.1\n");
    assert_eq!(get(&other, &url), "not for you", "it is known by its address although it is not enrolled");
}

#[test]
fn what_comes_from_the_node_passes_unless_it_is_asked_for() {
    let world = World::new();
    let node = Node::new(&world);
    let shop = node.pod("shop", INJECT);
    let _origin = shop.origin("shop", "0.0.0.0:8080");
    let agent = world.agent(&config(&node));
    wait_enrolled(&agent, &["shop"]);
    let url = format!("http://{}:8080/healthz", shop.ip);

    assert_eq!(
        world.run(Side::Outside, "curl", &["-sS", "--max-time", "10", &url]).success(),
        "shop GET /healthz HTTP/1.1\n"
    );
    agent.wait_records("request", 0);

    let changed = config(&node).replace("inbound: {}", "inbound: {from_node: intercept}");
    agent.reload(&world, &changed);
    world.run(Side::Outside, "curl", &["-sS", "--max-time", "10", &url]).success();
    assert_eq!(agent.wait_records("request", 1)[0]["pod"], "docker/shop");
}
