//! What the process may do: which capabilities the agent needs and why, and giving up all the others.
//!
//! Before: the command line, while the process has one thread. After: [`crate::kernel`], whose errors ask here what is
//! missing. What each capability is for was found by running without it; `tests/tests/privilege.rs` holds it.

use std::fmt::Write as _;

use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// A capability, and what the agent does with it.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    /// As in capabilities(7).
    pub name: &'static str,
    /// What the agent does with it.
    pub reason: &'static str,
    set: CapabilitySet,
}

const fn needed(name: &'static str, set: CapabilitySet, reason: &'static str) -> Needed {
    Needed { name, reason, set }
}

/// Without these nothing is intercepted. The kernel takes CAP_SYS_ADMIN for the other three, as it did before they were
/// split off.
pub const REQUIRED: [Needed; 4] = [
    needed("CAP_BPF", CapabilitySet::BPF, "creates maps and loads programs"),
    needed("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN, "loads and attaches programs that change connections"),
    needed("CAP_PERFMON", CapabilitySet::PERFMON, "loads programs that look into the kernel's sockets"),
    needed(
        "CAP_SYS_ADMIN",
        CapabilitySet::SYS_ADMIN,
        "lists other agents' programs and enters the network namespaces of pods",
    ),
];

/// Kept where they were given, because a part of the configuration may need them at any time.
pub const OPTIONAL: [Needed; 3] = [
    needed("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE, "opens the network namespaces of other users' processes"),
    needed("CAP_NET_BIND_SERVICE", CapabilitySet::NET_BIND_SERVICE, "binds listeners to ports below 1024"),
    needed(
        "CAP_DAC_OVERRIDE",
        CapabilitySet::DAC_OVERRIDE,
        "reads the configuration again, opens access logs and reaches runtimes' sockets that belong to other users",
    ),
];

/// What the first process of a system has in `/proc/self/uid_map`: all users, as themselves.
const INITIAL_UID_MAP: [&str; 3] = ["0", "0", "4294967295"];

/// Gives up what the agent never needs, for good: this thread and those it starts cannot get it back, nor can a program
/// that one of them would execute. To be called before there are other threads, which would keep what they have.
///
/// # Errors
/// The kernel refuses, which a seccomp profile can make it do.
pub fn drop_unneeded() -> std::io::Result<()> {
    let kept = kept();
    let held = thread::capabilities(None)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        let known = CapabilitySet::all().iter().filter(|one| one.bits().count_ones() == 1);
        for one in known.filter(|one| !kept.contains(*one)) {
            // The kernel knows the last ones or not; what it does not know cannot be had.
            let _ = thread::remove_capability_from_bounding_set(one);
        }
    }
    thread::clear_ambient_capability_set()?;
    thread::set_capabilities(
        None,
        CapabilitySets {
            effective: held.effective & kept,
            permitted: held.permitted & kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

fn kept() -> CapabilitySet {
    REQUIRED.iter().chain(&OPTIONAL).map(|needed| needed.set).collect()
}

/// The required capabilities that this thread has not; empty also when that cannot be known.
pub fn missing() -> Vec<Needed> {
    let effective = thread::capabilities(None).map_or(CapabilitySet::all(), |held| held.effective);
    missing_in(effective)
}

fn missing_in(effective: CapabilitySet) -> Vec<Needed> {
    if effective.contains(CapabilitySet::SYS_ADMIN) {
        return Vec::new();
    }
    REQUIRED.into_iter().filter(|needed| !effective.contains(needed.set)).collect()
}

/// Why the kernel said no, as far as can be told, and what to do about it.
pub fn remedy() -> String {
    // Without /proc it is not known, and then not told.
    let uid_map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    explain(&missing(), &uid_map)
}

fn explain(missing: &[Needed], uid_map: &str) -> String {
    let own_users = !uid_map.is_empty() && !uid_map.split_ascii_whitespace().eq(INITIAL_UID_MAP);
    if own_users {
        return "the process is in a user namespace, where capabilities do not reach the kernel's programs: \
                run outside it (no rootless container, no `hostUsers: false`)"
            .to_owned();
    }
    if missing.is_empty() {
        return "the process has the capabilities, so something else forbids it: a seccomp profile without bpf(2) and \
                setns(2), AppArmor, SELinux, or the kernel's lockdown mode"
            .to_owned();
    }
    let mut text = "missing: ".to_owned();
    for (index, needed) in missing.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{} ({})", needed.name, needed.reason);
    }
    text.push_str(": run with sudo, or add them to the container's or the unit's capabilities");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: &str = "         0          0 4294967295\n";

    fn names(effective: CapabilitySet) -> Vec<&'static str> {
        missing_in(effective).iter().map(|needed| needed.name).collect()
    }

    #[test]
    fn sys_admin_stands_for_all_that_is_required() {
        assert!(names(CapabilitySet::SYS_ADMIN).is_empty());
        let others = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
        assert_eq!(names(others), ["CAP_PERFMON", "CAP_SYS_ADMIN"]);
        assert_eq!(names(CapabilitySet::empty()).len(), REQUIRED.len());
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason_and_a_remedy() {
        let text = explain(&missing_in(CapabilitySet::BPF | CapabilitySet::PERFMON), INITIAL);
        assert_eq!(
            text,
            "missing: CAP_NET_ADMIN (loads and attaches programs that change connections), CAP_SYS_ADMIN (lists other \
             agents' programs and enters the network namespaces of pods): run with sudo, or add them to the \
             container's or the unit's capabilities"
        );
        assert!(explain(&[], INITIAL).contains("seccomp"));
        assert!(explain(&[], "0 1000 1\n").contains("user namespace"));
        assert!(explain(&[], "").contains("seccomp"), "unknown is not taken for a user namespace");
    }
}
