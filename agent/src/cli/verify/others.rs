//! Who else is at the hooks: programs of others, and other instances of waylay.

use std::collections::BTreeMap;
use std::fs;

use super::{Check, describe};
use crate::kernel::cgroup::{self, Cgroup};
use crate::kernel::neighbours::{self, Neighbour};
use crate::kernel::{KernelError, inspect};

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![programs().unwrap_or_else(|error| unknown("other programs", &error))];
    checks.extend(agents().unwrap_or_else(|error| vec![unknown("other agents", &error)]));
    checks
}

fn unknown(check: &'static str, error: &KernelError) -> Check {
    Check::warning(check, format!("cannot be listed: {}", describe(error)), "see `capabilities`")
}

fn programs() -> Result<Check, KernelError> {
    let name = "other programs";
    let root = Cgroup::open(&cgroup::mount_point()?)?;
    let found = neighbours::before(&root)?;
    if found.is_empty() {
        return Ok(Check::ok(name, "none at the connect hooks of any cgroup"));
    }
    let holders = holders();
    let lines: Vec<_> = found.iter().map(|neighbour| describe_neighbour(neighbour, &holders)).collect();
    let lines = lines.join(", ");
    if neighbours::can_go_first()? {
        return Ok(Check::ok(name, format!("{lines}; waylay goes before them and sees what the program dialled")));
    }
    let mend = "this kernel cannot put waylay before them (Linux 6.17 can): start waylay first, or expect original \
                destinations as they rewrite them";
    Ok(Check::warning(name, lines, mend))
}

fn describe_neighbour(neighbour: &Neighbour, holders: &BTreeMap<u32, String>) -> String {
    let Neighbour { id, name, hook, cgroup } = neighbour;
    let owner = match (whose(name), holders.get(id)) {
        (Some(whose), _) => format!(" ({whose})"),
        (None, Some(holder)) => format!(" (held by {holder})"),
        (None, None) => " (pinned or attached without a process)".to_owned(),
    };
    format!("{name}{owner}, id {id}, at {hook} of {}", cgroup.display())
}

/// Programs that are known by their names.
fn whose(name: &str) -> Option<&'static str> {
    match name {
        _ if name.starts_with("cil_sock") => Some("Cilium's socket load balancer"),
        _ if name.starts_with("cali_") || name.starts_with("calico_") => Some("Calico's connect-time load balancer"),
        _ => None,
    }
}

/// Programs and the processes that hold them or a link of theirs, as /proc tells it.
fn holders() -> BTreeMap<u32, String> {
    let mut holders = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let file_name = process.file_name();
        let Some(pid) = file_name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fdinfo")) else { continue };
        for descriptor in descriptors.flatten() {
            let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
            if let Some(id) = program_of(&text) {
                let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                holders.entry(id).or_insert_with(|| format!("{}, pid {pid}", comm.trim()));
            }
        }
    }
    holders
}

fn program_of(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("prog_id:"))?.trim().parse().ok()
}

fn agents() -> Result<Vec<Check>, KernelError> {
    let name = "other agents";
    let mut checks = Vec::new();
    for instance in inspect::instances()? {
        let (id, pid) = (instance.id(), instance.agent_pid());
        checks.push(match instance.agent_lost() {
            _ if !instance.is_held() => {
                let found = format!("instance {id} was left by an agent that is gone (pid {pid})");
                Check::warning(name, found, "`waylay detach` removes it")
            }
            Ok(true) => {
                let found = format!("instance {id} belongs to pid {pid}, which shows no life");
                Check::warning(name, found, "end it, and its hooks go")
            }
            Ok(false) => Check::ok(name, format!("instance {id} of pid {pid} is alive")),
            Err(error) => Check::warning(name, describe(&error), "use the waylay that started it"),
        });
    }
    if checks.is_empty() {
        checks.push(Check::ok(name, "none"));
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_told_with_their_owners() {
        let neighbour = |name: &str| Neighbour { id: 7, name: name.into(), hook: "connect4", cgroup: "/c".into() };
        let holders = BTreeMap::from([(7, "balancer, pid 9".to_owned())]);
        for (name, holders, expected) in [
            ("cil_sock4_conne", &holders, "cil_sock4_conne (Cilium's socket load balancer), id 7, at connect4 of /c"),
            ("mine", &holders, "mine (held by balancer, pid 9), id 7, at connect4 of /c"),
            ("mine", &BTreeMap::new(), "mine (pinned or attached without a process), id 7, at connect4 of /c"),
        ] {
            assert_eq!(describe_neighbour(&neighbour(name), holders), expected);
        }
        assert_eq!(program_of("pos:\t0\nlink_type:\tcgroup\nprog_id:\t42\n"), Some(42));
        assert_eq!(program_of("pos:\t0\n"), None);
    }
}
