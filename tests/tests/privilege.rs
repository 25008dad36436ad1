//! What the agent needs the right to do, what it says when it has not, and what it gives up.

use std::collections::BTreeSet;

use waylay_tests::config::BYTES;
use waylay_tests::world::Side;
use waylay_tests::{Agent, SOON, World, agent};

/// Bits of capabilities(7).
const DAC_OVERRIDE: u32 = 1;
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

const KEPT: [u32; 7] = [DAC_OVERRIDE, NET_BIND_SERVICE, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF];

/// The capability sets of each thread of a process, or of one process: `(CapPrm, CapEff, CapBnd)`.
fn capabilities(status: &str) -> [u64; 3] {
    ["CapPrm:", "CapEff:", "CapBnd:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.expect("a capability set").trim(), 16).expect("hexadecimal")
    })
}

/// Starts the agent with a smaller bounding set, which is what root gets; it must fail, and this is what it says.
fn refusal(world: &World, bounding_set: &str) -> String {
    let mut agent = Agent::spawn_through(world, BYTES, &["setpriv", "--bounding-set", bounding_set, "--"]);
    let status = agent.child().wait(SOON);
    let said = agent.child().stderr();
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

#[test]
fn each_missing_capability_is_named_with_its_reason() {
    let world = World::new();
    for (without, named) in [
        ("-all", &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN"][..]),
        ("-sys_admin", &["CAP_SYS_ADMIN"]),
        ("-sys_admin,-bpf", &["CAP_BPF", "CAP_SYS_ADMIN"]),
        ("-sys_admin,-net_admin", &["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]),
        ("-sys_admin,-perfmon", &["CAP_PERFMON", "CAP_SYS_ADMIN"]),
    ] {
        let said = refusal(&world, without);
        let all: BTreeSet<_> = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN"].into_iter().collect();
        let found: BTreeSet<_> = all.iter().copied().filter(|name| said.contains(&format!("{name} ("))).collect();
        assert_eq!(found, named.iter().copied().collect(), "{without}: {said}");
        assert!(said.contains("run with sudo"), "{said}");
        assert_eq!(world.attached_programs(), 0, "{without}");
    }
}

#[test]
fn sys_admin_alone_is_enough_where_root_owns_what_is_read() {
    let world = World::new();
    let _origin = world.origin("the-origin", "127.0.0.1:8000");
    let through = ["setpriv", "--bounding-set", "-all,+sys_admin", "--"];
    let agent = Agent::spawn_through(&world, BYTES, &through);
    agent.wait_ready();
    let answer = world.app("curl", &["-sS", "--max-time", "10", "http://127.0.0.1:8000/"]).success();
    assert_eq!(answer, "the-origin GET / HTTP/1.1\n");
    agent.wait_records("connection", 1);
    agent.stop();
}

#[test]
fn no_thread_of_the_agent_keeps_what_it_never_needs() {
    let world = World::new();
    let mut agent = world.agent(BYTES);
    let pid = agent.child().pid();
    let kept: u64 = KEPT.iter().map(|bit| 1 << bit).sum();
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten() {
        let status = std::fs::read_to_string(thread.path().join("status")).expect("a thread's status");
        for set in capabilities(&status) {
            assert_eq!(set & !kept, 0, "{status}");
            assert_ne!(set & (1 << SYS_ADMIN), 0, "{status}");
        }
        threads += 1;
    }
    assert!(threads >= 3, "the main thread and two workers, not {threads}");
    agent.stop();
}

#[test]
fn the_command_of_exec_keeps_all_that_its_user_has() {
    let world = World::new();
    let binary = agent::binary();
    let ours = capabilities(&std::fs::read_to_string("/proc/self/status").expect("our own status"));
    let args = ["exec", "--route", "/ => 127.0.0.1:1", "--", "cat", "/proc/self/status"];
    let theirs = world.run(Side::Outside, binary.to_str().expect("a path"), &args).success();
    assert_eq!(capabilities(&theirs), ours);
}
