//! The server with the kernel's side attached: a program in a cgroup of its own connects, and the agent knows where to.
//! Needs root; without it, it fails.

mod l4_support;

use std::path::PathBuf;
use std::process::{Command, Output};

use waylay::kernel::{HANDOVER_ENTRIES, OnAgentLoss, Policy, Rule, cgroup};
use waylay::listener::HandOff;
use waylay::snapshot::{Intercept, Redirect};
use waylay::worker::State;

use l4_support::*;

/// A cgroup that is gone when this is.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let path = cgroup::mount_point().expect("cgroup2").join(format!("waylay-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    /// Runs a Python program in it.
    fn python(&self, program: &str) -> Output {
        let enter = format!("echo $$ > {}/cgroup.procs && exec python3 -c \"$0\"", self.0.display());
        Command::new("sh").args(["-c", &enter, program]).output().expect("sh")
    }

    /// What a client in it reads from `host`, which must be closed by the other side.
    fn read_from(&self, host: &str, port: u16) -> String {
        let program = format!(
            "import socket\ntry:\n s = socket.create_connection(('{host}', {port}), 5)\n s.shutdown(1)\n \
             print(s.makefile().read(), end='')\nexcept OSError as e: print(type(e).__name__, end='')"
        );
        String::from_utf8(self.python(&program).stdout).expect("text")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn intercepting(cgroup: &Cgroup, sites: Vec<Site>) -> Setup {
    let mount = cgroup::mount_point().expect("cgroup2");
    let below = PathBuf::from("/").join(cgroup.0.strip_prefix(mount).expect("below the mount"));
    let policy = Policy { include: Vec::new(), exclude: vec![Rule { cidr: None, ports: vec![22..=22] }] };
    let intercept = Intercept {
        cgroup: below,
        host: true,
        processes: Vec::new(),
        outbound: policy,
        inbound: None,
        pods: None,
        redirect: Redirect::Listeners,
        on_agent_loss: OnAgentLoss::Allow,
        handover_entries: HANDOVER_ENTRIES,
    };
    Setup { sites, drain_timeout: WAIT, broken: None, intercept: Some(intercept) }
}

#[test]
fn a_redirected_connection_is_served_by_the_listener_of_its_original_destination() {
    let cgroup = Cgroup::new("l4");
    let outbound = Site { hand_off: HandOff::ByOriginalDst, ..Site::to(&[echo(b"outbound")]) };
    let exact = address("127.77.0.1:81");
    let virtual_one = Site { address: exact, is_virtual: true, ..Site::inspected(&[echo(b"exact")]) };
    let wildcard = Site { address: address("[::]:82"), is_virtual: true, ..Site::to(&[echo(b"wildcard")]) };
    let agent = AgentUnderTest::start(intercepting(&cgroup, vec![outbound, virtual_one, wildcard]));
    let own = agent.address();

    assert_eq!(cgroup.read_from("127.77.0.1", 80), "outbound");
    assert_eq!(cgroup.read_from("127.77.0.1", 81), "exact");
    assert_eq!(cgroup.read_from("::1", 82), "wildcard");
    assert_eq!(cgroup.read_from("127.77.0.1", 22), "ConnectionRefusedError", "an excluded port");
    assert_eq!(cgroup.read_from("127.0.0.1", own.port()), "ConnectionResetError", "the agent itself");

    let records = agent.records.first(4);
    let destinations: Vec<_> = records.iter().map(|record| record.info.original_dst.map(|to| to.to_string())).collect();
    let expected = [Some("127.77.0.1:80"), Some("127.77.0.1:81"), Some("[::1]:82"), None];
    assert_eq!(destinations, expected.map(|to| to.map(str::to_owned)));
    let process = records[0].info.process.as_ref().expect("the process");
    assert_eq!(process.comm, "python3");
    assert_eq!(agent.stats().downstream_cx_no_original_dst.value(), 1);

    agent.running.stop().expect("stop");
    assert_eq!(cgroup.read_from("127.77.0.1", 80), "ConnectionRefusedError", "nothing is left in the kernel");
}

#[test]
fn a_reload_changes_what_is_intercepted() {
    let cgroup = Cgroup::new("l4-reload");
    let outbound = Site { hand_off: HandOff::ByOriginalDst, ..Site::to(&[echo(b"outbound")]) };
    let agent = AgentUnderTest::start(intercepting(&cgroup, vec![outbound]));
    assert_eq!(cgroup.read_from("127.77.0.1", 80), "outbound");
    agent.change(|setup| {
        let intercept = setup.intercept.as_mut().expect("intercept");
        intercept.outbound.exclude = vec![Rule { cidr: None, ports: vec![80..=80] }];
    });
    assert_eq!(agent.reload(), Ok(2));
    assert_eq!(cgroup.read_from("127.77.0.1", 80), "ConnectionRefusedError");
    assert_eq!(cgroup.read_from("127.77.0.1", 81), "outbound");

    agent.change(|setup| setup.intercept.as_mut().expect("intercept").cgroup = "/elsewhere".into());
    let refused = agent.reload().expect_err("it needs a restart");
    assert!(refused.contains("intercept.cgroup"), "{refused}");
    agent.running.stop().expect("stop");
}

#[test]
fn the_agents_own_connections_are_left_alone_in_the_cgroup_that_it_intercepts() {
    let cgroup = Cgroup::new("l4-own");
    let text = std::fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let home = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2").to_owned();
    let home = cgroup::mount_point().expect("cgroup2").join(home).join("cgroup.procs");
    let own_pid = std::process::id().to_string();
    let outbound = Site { hand_off: HandOff::ByOriginalDst, ..Site::to(&[echo(b"outbound")]) };
    std::fs::write(cgroup.0.join("cgroup.procs"), &own_pid).expect("enter");
    let agent = AgentUnderTest::start(intercepting(&cgroup, vec![outbound]));
    let read = cgroup.read_from("127.77.0.1", 80);
    let record = agent.records.only();
    agent.running.stop().expect("stop");
    std::fs::write(home, own_pid).expect("leave");
    assert_eq!((read.as_str(), record.flags.to_string()), ("outbound", "-".to_owned()));
}

#[test]
fn a_listener_that_a_reload_adds_is_reached_by_intercepted_programs_too() {
    let cgroup = Cgroup::new("l4-added");
    let outbound = Site { hand_off: HandOff::ByOriginalDst, ..Site::to(&[echo(b"outbound")]) };
    let added = Site { address: nobody(), ..Site::to(&[echo(b"added")]) };
    let port = added.address.port();
    let agent = AgentUnderTest::start(intercepting(&cgroup, vec![outbound.clone()]));
    assert_eq!(cgroup.read_from("127.0.0.1", port), "outbound");
    agent.change(|setup| setup.sites.push(added));
    assert_eq!(agent.reload(), Ok(2));
    assert_eq!(cgroup.read_from("127.0.0.1", port), "added");
    agent.change(|setup| _ = setup.sites.pop());
    assert_eq!(agent.reload(), Ok(3));
    assert_eq!(cgroup.read_from("127.0.0.1", port), "outbound", "it is nobody's listener any more");
    agent.running.stop().expect("stop");
}

#[test]
fn two_agents_that_would_intercept_each_other_do_not_both_start() {
    let cgroup = Cgroup::new("l4-rivals");
    let text = std::fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let home = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2").to_owned();
    let home = cgroup::mount_point().expect("cgroup2").join(home).join("cgroup.procs");
    let own_pid = std::process::id().to_string();
    let outbound = Site { hand_off: HandOff::ByOriginalDst, ..Site::to(&[echo(b"outbound")]) };
    let setup = intercepting(&cgroup, vec![outbound]);
    std::fs::write(cgroup.0.join("cgroup.procs"), &own_pid).expect("enter");
    let agent = AgentUnderTest::start(setup.clone());
    let refused = AgentUnderTest::try_start(setup.clone()).err();
    let read = cgroup.read_from("127.77.0.1", 80);
    agent.running.control().drain_listeners();
    eventually("it drains", || agent.running.shared().state() == State::Draining);
    let successor = AgentUnderTest::try_start(setup);
    let read_again = cgroup.read_from("127.77.0.1", 80);
    agent.running.stop().expect("stop");
    let successor = successor.map(|successor| successor.running.stop().expect("stop"));
    std::fs::write(home, &own_pid).expect("leave");
    let refused = refused.and_then(|error| Some(std::error::Error::source(&error)?.to_string())).expect("refused");
    assert!(refused.starts_with(&format!("the agent with pid {own_pid} intercepts this process")), "{refused}");
    assert!(successor.is_ok(), "{successor:?}");
    assert_eq!((read.as_str(), read_again.as_str()), ("outbound", "outbound"));
}
