//! waylay without a configuration file, on a developer's machine: `run --local`, `run --inbound`, `exec --local`, and
//! `verify`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use serde_json::Value;
use waylay_tests::agent::binary;
use waylay_tests::world::Side;
use waylay_tests::{Child, SOON, World};

/// `waylay run` with these options, taking connections.
fn run(world: &World, options: &[&str]) -> Child {
    let socket = world.folder().join("admin.sock");
    let socket = socket.to_str().expect("a UTF-8 path");
    let mut all = vec!["run", "--concurrency", "1", "--admin-socket", socket];
    all.extend(options);
    let child = world.spawn(Side::Outside, binary(), &all);
    waylay_tests::eventually("the agent is ready", || {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-fsS", "--unix-socket", socket, "http://waylay/ready"]);
        curl.output().is_ok_and(|output| output.status.success())
    });
    child
}

fn stop(mut agent: Child) -> String {
    agent.signal(Signal::SIGTERM);
    let status = agent.wait(SOON);
    assert!(status.success(), "{status}\nstderr: {}", agent.stderr());
    agent.stdout()
}

fn curl(world: &World, url: &str) -> String {
    world.app("curl", &["-sS", "--max-time", "10", url]).success()
}

#[test]
fn a_local_row_takes_what_goes_to_a_port_and_each_request_is_a_line() {
    let world = World::new();
    let _mine = world.origin("mine", "127.0.0.1:9001");
    let _other = world.origin("other", "127.0.0.1:8081");
    let agent = run(&world, &["--local", "8080 => 127.0.0.1:9001", "--local", "127.77.0.2:8081 => 127.0.0.1:9001"]);
    assert_eq!(curl(&world, "http://127.77.0.1:8080/cart"), "mine GET /cart HTTP/1.1\n");
    assert_eq!(curl(&world, "http://[::1]:8080/six"), "mine GET /six HTTP/1.1\n");
    assert_eq!(curl(&world, "http://127.77.0.2:8081/there"), "mine GET /there HTTP/1.1\n");
    // The same port of another address is none of its business.
    assert_eq!(curl(&world, "http://127.0.0.1:8081/here"), "other GET /here HTTP/1.1\n");
    let log = stop(agent);
    for expected in ["GET 127.77.0.1:8080/cart => 127.0.0.1:9001  200", "/six => ", "/there => ", "curl["] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    assert!(!log.contains("/here"), "{log}");
}

#[test]
fn only_the_connections_of_the_chosen_are_taken() {
    let world = World::new();
    let _mine = world.origin("mine", "127.0.0.1:9001");
    let _other = world.origin("other", "127.0.0.1:8080");
    let renamed = world.folder().join("chosen-one");
    fs::copy("/usr/bin/curl", &renamed).expect("a copy of curl");
    fs::set_permissions(&renamed, fs::Permissions::from_mode(0o755)).expect("its permissions");
    let renamed = renamed.to_str().expect("a UTF-8 path");
    let cgroup = world.cgroup_name(Side::App);
    let row = ["--local", "8080 => 127.0.0.1:9001"];
    let fetch = ["-sS", "--max-time", "10", "http://127.0.0.1:8080/"];
    let heard = |side, program, args: &[&str]| world.run(side, program, args).success();
    for (options, cases) in [
        (vec!["--comm", "chosen-one"], vec![(Side::App, renamed, "mine"), (Side::App, "curl", "other")]),
        (vec!["--cgroup", &cgroup], vec![(Side::App, "curl", "mine"), (Side::Outside, "curl", "other")]),
        (
            vec!["--cgroup", &cgroup, "--comm", "curl", "--comm", "wget", "--user", "root"],
            vec![(Side::App, "curl", "mine"), (Side::Outside, "curl", "other"), (Side::App, renamed, "other")],
        ),
    ] {
        let agent = run(&world, &[&row[..], &options].concat());
        for (side, program, expected) in cases {
            let heard = heard(side, program, &fetch);
            assert!(heard.starts_with(expected), "{options:?} {side:?} {program}: {heard}");
        }
        stop(agent);
    }
    let agent = run(&world, &[&row[..], &["--user", "nobody"]].concat());
    let as_nobody = [&["--reuid", "65534", "--clear-groups", "curl"], &fetch[..]].concat();
    assert!(heard(Side::App, "setpriv", &as_nobody).starts_with("mine"));
    assert!(heard(Side::App, "curl", &fetch).starts_with("other"));
    stop(agent);
}

#[test]
fn what_cannot_be_chosen_is_refused_at_the_start() {
    let world = World::new();
    for (options, expected) in [
        (&["--pid", "4194304"][..], "there is no process with pid 4194304"),
        (&["--user", "no-such-user"], "no-such-user"),
        (&["--cgroup", "/no/such/cgroup"], "/no/such/cgroup"),
        (&["--unit", "getty@"], "is a template"),
    ] {
        let socket = world.folder().join("admin.sock");
        let common = ["run", "--admin-socket", socket.to_str().expect("a UTF-8 path")];
        let options = [&common, options].concat();
        let program = binary();
        let said = world.run(Side::Outside, program.to_str().expect("a UTF-8 path"), &options).failure();
        assert!(said.contains(expected), "{options:?}: {said}");
    }
}

#[test]
fn an_inbound_row_takes_what_arrives_whoever_serves_the_port() {
    let world = World::new();
    let _mine = world.origin("mine", "127.0.0.1:9001");
    let _service = world.origin("service", "127.0.0.1:8080");
    let agent = run(&world, &["--inbound", "8080 => 127.0.0.1:9001"]);
    assert_eq!(curl(&world, "http://127.0.0.1:8080/arrives"), "mine GET /arrives HTTP/1.1\n");
    let log = stop(agent);
    assert!(log.contains("GET 127.0.0.1:8080/arrives => 127.0.0.1:9001  200"), "{log}");
    assert_eq!(curl(&world, "http://127.0.0.1:8080/after"), "service GET /after HTTP/1.1\n");
}

#[test]
fn exec_takes_local_rows_as_well() {
    let world = World::new();
    let _mine = world.origin("mine", "127.0.0.1:9001");
    let program = binary();
    let said = world.run(
        Side::Outside,
        program.to_str().expect("a UTF-8 path"),
        &["exec", "--local", "8080 => 127.0.0.1:9001", "--", "curl", "-sS", "http://127.77.0.1:8080/x"],
    );
    assert_eq!(said.success(), "mine GET /x HTTP/1.1\n");
}

fn verify(world: &World, before: &[&str], options: &[&str]) -> (bool, Vec<Value>) {
    let program = binary();
    let command = [before, &[program.to_str().expect("a UTF-8 path"), "verify", "-o", "json"], options].concat();
    let finished = world.run(Side::Outside, command[0], &command[1..]);
    let checks = serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
    (finished.status.success(), checks)
}

fn results(checks: &[Value], name: &str) -> Vec<String> {
    let named = checks.iter().filter(|check| check["check"] == name);
    named.map(|check| check["result"].as_str().expect("a result").to_owned()).collect()
}

#[test]
fn verify_proves_both_directions_and_both_families_and_leaves_nothing() {
    let world = World::new();
    let (ok, checks) = verify(&world, &[], &["--to", "127.77.0.9:80"]);
    assert!(ok, "{checks:#?}");
    for name in ["kernel", "capabilities", "cgroup2", "outbound IPv4", "inbound IPv4", "inbound IPv6"] {
        assert_eq!(results(&checks, name), ["ok"], "{name}: {checks:#?}");
    }
    let (ok, checks) = verify(&world, &[], &[]);
    assert!(ok && results(&checks, "outbound IPv6") == ["ok"], "{checks:#?}");
    let left = fs::read_dir(world.cgroup(Side::Outside)).expect("a cgroup");
    assert_eq!(left.flatten().filter(|entry| entry.path().is_dir()).count(), 0);
}

#[test]
fn verify_names_the_piece_that_is_missing() {
    let world = World::new();
    for (before, failed, found) in [
        (&["setpriv", "--bounding-set", "-bpf,-sys_admin"][..], "capabilities", "without CAP_BPF, CAP_SYS_ADMIN"),
        (
            &["unshare", "-m", "sh", "-c", "umount /sys/fs/cgroup/unified /sys/fs/cgroup; exec \"$@\"", "sh"],
            "cgroup2",
            "no cgroup v2",
        ),
        (
            &["unshare", "-m", "sh", "-c", "mount -t tmpfs none /sys/kernel; exec \"$@\"", "sh"],
            "type information",
            "btf",
        ),
        (&["unshare", "-n"], "outbound IPv4", "did not reach"),
    ] {
        let (ok, checks) = verify(&world, before, &[]);
        let check = checks.iter().find(|check| check["check"] == failed).expect("the check");
        assert!(!ok && check["result"] == "failed", "{checks:#?}");
        assert!(check["found"].as_str().is_some_and(|text| text.contains(found)), "{check}");
        assert!(check["mend"].as_str().is_some_and(|text| !text.is_empty()), "{check}");
    }
    // Inside a cgroup namespace it works, and says what that means.
    let (ok, checks) = verify(&world, &["unshare", "-C"], &[]);
    assert!(ok && results(&checks, "cgroup namespace") == ["warning"], "{checks:#?}");
}

#[test]
fn health_checks_reach_the_application_itself_past_the_inbound_side() {
    let world = World::new();
    let agent = world.agent(
        "
intercept: {cgroup: '@CGROUP@', inbound: {include: [{ports: [9001]}]}}
listeners:
  - name: virtualInbound
    address: 127.0.0.1:15006
    traffic_direction: inbound
    default_filter_chain: {tcp_proxy: {cluster: mine}}
clusters:
  - name: mine
    type: static
    endpoints: ['127.0.0.1:9001']
    health_checks: [{timeout: 1s, interval: 100ms, unhealthy_threshold: 1, healthy_threshold: 1, tcp: {}}]
",
    );
    let healthy = || agent.metric("waylay_cluster_membership_healthy{cluster=\"mine\"}");
    waylay_tests::eventually("the application is not there", || healthy() == 0.0);
    let _mine = world.origin("mine", "127.0.0.1:9001");
    waylay_tests::eventually("the application is there", || healthy() == 1.0);
    assert_eq!(curl(&world, "http://127.0.0.1:9001/arrives"), "mine GET /arrives HTTP/1.1\n");
    agent.wait_records("connection", 1);
}
