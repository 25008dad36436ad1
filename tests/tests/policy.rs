//! What is taken and what is not, and that the agent never meets itself.

use waylay_tests::World;
use waylay_tests::config::BYTES;
use waylay_tests::world::Side;

const CURL: [&str; 3] = ["-sS", "--max-time", "10"];

fn curl(world: &World, side: Side, url: &str) -> waylay_tests::Finished {
    let mut args = CURL.to_vec();
    args.push(url);
    world.run(side, "curl", &args)
}

fn with_policy(policy: &str) -> String {
    BYTES.replace("{cgroup: '@CGROUP@'}", &format!("{{cgroup: '@CGROUP@', outbound: {policy}}}"))
}

#[test]
fn an_excluded_network_and_an_excluded_port_are_not_taken() {
    let world = World::new();
    let _taken = world.origin("taken", "127.0.0.1:8000");
    let _network = world.origin("network", "127.5.0.1:8000");
    let _port = world.origin("port", "127.0.0.1:8022");
    let agent = world.agent(&with_policy("{exclude: [{cidr: 127.5.0.0/16}, {ports: [8020-8030]}]}"));
    for (url, name) in [("127.5.0.1:8000", "network"), ("127.0.0.1:8022", "port"), ("127.0.0.1:8000", "taken")] {
        assert!(curl(&world, Side::App, &format!("http://{url}/")).success().starts_with(name));
    }
    assert_eq!(agent.wait_records("connection", 1)[0]["original_dst"], "127.0.0.1:8000");
    agent.stop();
}

#[test]
fn only_what_is_included_is_taken() {
    let world = World::new();
    let _inside = world.origin("inside", "127.5.0.1:8000");
    let _outside = world.origin("outside", "127.6.0.1:8000");
    let _port = world.origin("port", "127.5.0.1:9999");
    let agent = world.agent(&with_policy("{include: [{cidr: 127.5.0.0/16, ports: [80, 8000-8999]}]}"));
    for address in ["127.5.0.1:8000", "127.6.0.1:8000", "127.5.0.1:9999"] {
        curl(&world, Side::App, &format!("http://{address}/")).success();
    }
    assert_eq!(agent.wait_records("connection", 1)[0]["original_dst"], "127.5.0.1:8000");
    agent.stop();
}

#[test]
fn programs_outside_the_cgroup_are_not_taken() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    curl(&world, Side::Outside, "http://127.0.0.1:8000/").success();
    curl(&world, Side::App, "http://127.0.0.1:8000/").success();
    agent.wait_records("connection", 1);
    agent.stop();
}

#[test]
fn a_stray_client_of_the_redirect_port_is_refused_and_counted() {
    let world = World::new();
    let agent = world.agent(BYTES);
    for side in [Side::Outside, Side::App] {
        curl(&world, side, "http://127.0.0.1:15001/").failure();
        curl(&world, side, "http://[::1]:15001/").failure();
    }
    let refused = agent.metric("waylay_listener_downstream_cx_no_original_dst{listener=\"virtualOutbound\"}");
    assert!(refused >= 4.0, "{refused} refused; {}", agent.get("/stats/prometheus").expect("metrics").1);
    agent.stop();
}

#[test]
fn the_agents_own_connections_are_not_taken_when_it_runs_in_the_cgroup_it_takes() {
    let world = World::new();
    let origin = world.origin("the-origin", "127.0.0.1:8000");
    // The whole of the world's cgroup, the agent's own included.
    let whole = BYTES.replace("'@CGROUP@'", &format!("'/{}'", world.name()));
    let agent = world.agent(&whole);
    assert!(curl(&world, Side::App, "http://127.0.0.1:8000/").success().starts_with("the-origin"));
    assert!(curl(&world, Side::Outside, "http://127.0.0.1:8000/").success().starts_with("the-origin"));
    agent.wait_records("connection", 2);
    assert_eq!(origin.connections(), 2, "one connection of the agent for each of the clients'");
    agent.stop();
}

#[test]
fn an_ipv6_destination_never_bypasses_silently() {
    let world = World::new();
    // Not loopback: nothing listens on [::1] for it.
    world.host("ip", &["address", "add", "10.99.0.1/32", "dev", "lo"]).expect("an address");
    let without =
        BYTES.replace("127.0.0.1:15001", "10.99.0.1:15001").replace("@CGROUP@", &world.cgroup_name(Side::App));
    let mut child = world.spawn(
        Side::Outside,
        waylay_tests::agent::binary(),
        &["run", "-c", world.file("v4-only.yaml", &without).to_str().expect("path")],
    );
    let status = child.wait(waylay_tests::SOON);
    assert!(!status.success());
    assert!(child.stderr().contains("IPv6"), "{}", child.stderr());
}

#[test]
fn a_scrape_of_the_agent_by_an_intercepted_program_is_not_taken() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let agent = world.agent(BYTES);
    assert!(curl(&world, Side::App, "http://127.0.0.1:15090/metrics").success().contains("waylay_server_"));
    assert_eq!(curl(&world, Side::App, "http://127.0.0.1:15021/ready").success(), "LIVE\n");
    curl(&world, Side::App, "http://127.0.0.1:8000/").success();
    assert_eq!(agent.wait_records("connection", 1)[0]["original_dst"], "127.0.0.1:8000");
    assert_eq!(agent.metric("waylay_kernel_passed_own_listener"), 2.0);
    agent.stop();
}

#[test]
fn an_endpoint_that_is_the_agent_itself_is_no_loop() {
    let world = World::new();
    let loops = BYTES.replace("{tcp_proxy: {cluster: passthrough}}", "{tcp_proxy: {cluster: itself}}").replace(
        "{name: passthrough, type: original_dst}",
        "{name: itself, type: static, endpoints: [127.0.0.1:15001]}",
    );
    let agent = world.agent(&loops);
    curl(&world, Side::App, "http://127.0.0.1:8000/").failure();
    // The client's connection, and the agent's own, which nobody handed over: refused, and not taken again.
    let records = agent.wait_records("connection", 2);
    assert!(records.iter().any(|record| record["original_dst"] == "127.0.0.1:8000"), "{records:#?}");
    assert!(records.iter().any(|record| record["original_dst"].is_null()), "{records:#?}");
    agent.stop();
}
