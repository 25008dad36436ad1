//! The command line, as its users type it.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use waylay_tests::agent::binary;
use waylay_tests::config::SHOP;
use waylay_tests::world::Side;
use waylay_tests::{Finished, World, eventually};

/// Runs waylay inside the world, outside the interception.
fn waylay(world: &World, args: &[&str]) -> Finished {
    world.run(Side::Outside, binary().to_str().expect("path"), args)
}

fn json(finished: Finished) -> Value {
    let text = finished.success();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn exec_routes_one_command_without_a_file() {
    let world = World::new();
    let _one = world.origin("one", "127.0.0.1:9001");
    let _two = world.origin("two", "127.0.0.1:9002");
    let routes = ["exec", "--route", "x-canary: true => 127.0.0.1:9002", "--route", "/ => 127.0.0.1:9001", "--"];
    let curl = ["curl", "-sS", "--max-time", "10", "http://127.77.0.1/cart"];
    assert_eq!(waylay(&world, &[&routes[..], &curl].concat()).success(), "one GET /cart HTTP/1.1\n");
    let canary = [&routes[..], &curl, &["-H", "x-canary: true"]].concat();
    assert_eq!(waylay(&world, &canary).success(), "two GET /cart HTTP/1.1\n");
}

#[test]
fn exec_leaves_what_no_row_matches_alone() {
    let world = World::new();
    let _elsewhere = world.origin("elsewhere", "127.0.0.1:8000");
    let args = ["exec", "--route", "/cart => 127.0.0.1:9001", "--", "curl", "-sS", "http://127.0.0.1:8000/other"];
    assert_eq!(waylay(&world, &args).success(), "elsewhere GET /other HTTP/1.1\n");
}

#[test]
fn exec_exits_as_its_command_did() {
    let world = World::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let finished = waylay(&world, &["exec", "--route", "/ => 127.0.0.1:1", "--", "sh", "-c", script]);
        assert_eq!(finished.status.code(), Some(code), "{script}: {}", finished.stderr);
    }
    let missing = waylay(&world, &["exec", "--route", "/ => 127.0.0.1:1", "--", "/no/such/program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", missing.stderr);
}

#[test]
fn exec_gives_the_command_its_own_limit_of_open_files() {
    let world = World::new();
    let binary = binary();
    let script = "ulimit -Sn 300 && exec \"$0\" exec --route '/ => 127.0.0.1:1' -- sh -c 'ulimit -Sn'";
    let finished = world.run(Side::Outside, "sh", &["-c", script, binary.to_str().expect("path")]);
    assert_eq!(finished.success(), "300\n");
}

#[test]
fn exec_passes_signals_on_and_leaves_nothing_behind() {
    let world = World::new();
    let before = leftovers();
    let script = "trap 'echo got term; exit 3' TERM; echo started; while :; do sleep 0.05; done";
    let mut child =
        world.spawn(Side::Outside, binary(), &["exec", "--route", "/ => 127.0.0.1:1", "--", "sh", "-c", script]);
    child.wait_for("started");
    child.signal(Signal::SIGTERM);
    let status = child.wait(waylay_tests::SOON);
    assert_eq!((status.code(), child.stdout().as_str()), (Some(3), "started\ngot term\n"), "{}", child.stderr());
    eventually("no cgroup is left", || leftovers() <= before);
}

/// Cgroups that `exec` made.
fn leftovers() -> usize {
    let mount = waylay_tests::world::cgroup2_mount().expect("cgroup2");
    fn count(path: &std::path::Path) -> usize {
        let Ok(entries) = std::fs::read_dir(path) else { return 0 };
        entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| {
                usize::from(entry.file_name().to_string_lossy().starts_with("waylay-exec")) + count(&entry.path())
            })
            .sum()
    }
    count(&mount)
}

#[test]
fn wrong_usage_exits_with_2_and_a_bad_file_with_1() {
    let world = World::new();
    assert_eq!(waylay(&world, &["run", "--no-such-flag"]).status.code(), Some(2));
    assert_eq!(waylay(&world, &["explain"]).status.code(), Some(2));
    let bad = world.file("bad.yaml", "listenerz: []\nclusters:\n  - {name: a, type: static, endpoints: [nowhere]}\n");
    let finished = waylay(&world, &["check", "-c", bad.to_str().expect("path")]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("bad.yaml:1:1") && finished.stderr.contains("listeners"), "{}", finished.stderr);
    assert!(finished.stderr.contains("bad.yaml:3:") && finished.stderr.contains("nowhere"), "{}", finished.stderr);
}

#[test]
fn explain_says_what_the_agent_then_does() {
    let world = World::new();
    let _v1 = world.origin("checkout-v1", "127.0.0.1:9001");
    let agent = world.agent(SHOP);
    let url = "http://127.77.0.1:8080/checkout/cart?id=1";
    let explained = json(waylay(&world, &["explain", "-c", agent.config().to_str().expect("path"), "-o", "json", url]));
    assert_eq!(explained["listener"], "0.0.0.0_8080");
    assert_eq!(explained["filter_chain"], "0");
    assert_eq!(explained["virtual_host"], "shop");
    assert_eq!(explained["route"], 1);
    assert_eq!(explained["routes"][0]["matched"], false);
    assert!(explained["routes"][0]["reason"].as_str().is_some_and(|reason| reason.contains("x-canary")));
    assert_eq!((&explained["cluster"], &explained["endpoint"]), (&"checkout-v1".into(), &"127.0.0.1:9001".into()));
    assert_eq!(world.app("curl", &["-sS", url]).success(), "checkout-v1 GET /checkout/cart?id=1 HTTP/1.1\n");
    let record = &agent.wait_records("request", 1)[0];
    assert_eq!((&record["route"], &record["upstream_cluster"]), (&explained["route"], &explained["cluster"]));
    agent.stop();
}

#[test]
fn check_names_both_rows_of_a_shadow() {
    let world = World::new();
    let top = SHOP
        .replace("'@CGROUP@'", "/")
        .replace("routes:\n", "routes:\n          - {match: {prefix: /}, route: {cluster: default-svc}}\n");
    let file = world.file("shadowed.yaml", &top);
    let finished = waylay(&world, &["check", "-c", file.to_str().expect("path"), "-o", "json"]);
    let found = json(finished);
    let text = found.to_string();
    for row in [1, 2, 3] {
        assert!(text.contains(&format!("route_configs[0].virtual_hosts[0].routes[{row}]")), "{text}");
    }
}

#[test]
fn proxy_config_prints_istioctls_columns() {
    let world = World::new();
    let agent = world.agent(SHOP);
    let listeners = agent.cli(&["proxy-config", "listener"]).success();
    let mut lines = listeners.lines();
    assert_eq!(
        lines.next().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")),
        Some("ADDRESSES PORT MATCH DESTINATION".into())
    );
    assert!(listeners.contains("Route: 8080") && listeners.contains("Cluster: passthrough"), "{listeners}");
    let routes = agent.cli(&["proxy-config", "route"]).success();
    assert!(routes.starts_with("NAME") && routes.contains("/checkout*"), "{routes}");
    let clusters = agent.cli(&["proxy-config", "cluster"]).success();
    assert!(clusters.contains("SERVICE FQDN") && clusters.contains("ORIGINAL_DST"), "{clusters}");
    let endpoints = agent.cli(&["proxy-config", "endpoint"]).success();
    assert!(endpoints.contains("OUTLIER CHECK") && endpoints.contains("127.0.0.1:9001"), "{endpoints}");
    for verb in ["listener", "route", "cluster", "endpoint"] {
        json(agent.cli(&["proxy-config", verb, "-o", "json"]));
    }
    agent.stop();
}

#[test]
fn maps_are_readable_while_the_agent_hangs() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:9004");
    let mut agent = world.agent(SHOP);
    world.app("curl", &["-sS", "http://127.77.0.1:8080/"]).success();
    let pid = agent.child().pid();
    agent.child().signal(Signal::SIGSTOP);
    let maps = json(waylay(&world, &["maps", "-o", "json"]));
    let text = maps.to_string();
    assert!(text.contains(&pid.to_string()), "the instance of pid {pid}: {text}");
    assert!(waylay(&world, &["maps"]).success().lines().count() > 3);
    agent.child().signal(Signal::SIGCONT);
    agent.stop();
    let text = json(waylay(&world, &["maps", "-o", "json"])).to_string();
    assert!(!text.contains(&format!("\"pid\":{pid}")), "nothing is left of it: {text}");
}

#[test]
fn trace_shows_decisions_and_requests_as_they_happen() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:9004");
    let agent = world.agent(SHOP);
    let socket = agent.socket().to_str().expect("path").to_owned();
    let trace = world.spawn(Side::Outside, binary(), &["trace", "-o", "json", "--admin-socket", &socket]);
    eventually("the trace shows a request", || {
        world.app("curl", &["-sS", "http://127.77.0.1:8080/traced"]).success();
        std::thread::sleep(Duration::from_millis(100));
        trace.stdout().contains("/traced")
    });
    let lines: Vec<Value> =
        trace.stdout().lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect();
    assert!(
        lines.iter().any(|line| line["comm"] == "curl" && line.to_string().contains("127.77.0.1:8080")),
        "{lines:#?}"
    );
    drop(trace);
    agent.stop();
}

#[test]
fn another_user_can_neither_read_nor_steer_the_agent() {
    let world = World::new();
    let agent = world.agent(SHOP);
    let socket = agent.socket().to_str().expect("path").to_owned();
    let folder = world.folder().to_str().expect("path").to_owned();
    world.run(Side::Outside, "chmod", &["755", &folder]).success();
    let attempt = world.run(
        Side::Outside,
        "setpriv",
        &[
            "--reuid=nobody",
            "--regid=nogroup",
            "--clear-groups",
            "--",
            "curl",
            "-sS",
            "--unix-socket",
            &socket,
            "http://waylay/config_dump",
        ],
    );
    attempt.failure();
    agent.stop();
}

#[test]
fn man_pages_and_completions_are_printed() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(waylay(&world, &["completion", shell]).success().contains("proxy-config"));
    }
    let folder = world.folder().join("man");
    std::fs::create_dir(&folder).expect("a folder");
    waylay(&world, &["man", folder.to_str().expect("path")]).success();
    assert!(std::fs::read_dir(&folder).expect("pages").count() >= 8);
    for verb in ["run", "exec", "check", "explain", "proxy-config", "maps", "detach", "trace"] {
        assert!(waylay(&world, &[verb, "--help"]).success().contains("Usage"), "{verb}");
    }
}
