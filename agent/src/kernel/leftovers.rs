//! What a dead agent has left in the kernel: pinned hooks, on purpose (`on_agent_loss: refuse`). `waylay detach`.
//!
//! Links that are not pinned go with their process. So what intercepts and is not pinned belongs to a process that is
//! there, if perhaps stopped; this file does not take it away but says whose it is.

use std::path::PathBuf;

use serde::Serialize;

use super::{
    KernelError,
    inspect::{self, Instance},
    pins::PinDir,
};

/// Something of waylay's in the kernel, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Leftover {
    /// Pinned hooks whose agent was gone; removed.
    Removed { instance: u32, cgroup_id: u64, path: PathBuf, programs: Vec<String> },
    /// An agent that is alive; its hooks were left alone.
    InUse { instance: u32, cgroup_id: u64, agent_pid: u32 },
    /// An agent that is there but shows no life: it is stopped or hangs. End it, and detach again.
    Hanging { instance: u32, cgroup_id: u64, agent_pid: u32 },
}

/// Removes every pin of a dead agent, of all cgroups or of the one with the id `cgroup`, and tells of everything that
/// was found there.
///
/// # Errors
/// The kernel's lists cannot be read, or a pin cannot be removed.
pub fn detach(cgroup: Option<u64>) -> Result<Vec<Leftover>, KernelError> {
    let chosen = |id: u64| cgroup.is_none_or(|cgroup| cgroup == id);
    let mut found = remove_pins(|dir| chosen(dir.cgroup_id))?;
    let held = |instance: &Instance| instance.is_held() && chosen(instance.cgroup_id());
    for instance in inspect::instances()?.into_iter().filter(held) {
        let (id, cgroup_id, agent_pid) = (instance.id(), instance.cgroup_id(), instance.agent_pid());
        found.push(if instance.agent_lost().unwrap_or(false) {
            Leftover::Hanging { instance: id, cgroup_id, agent_pid }
        } else {
            Leftover::InUse { instance: id, cgroup_id, agent_pid }
        });
    }
    Ok(found)
}

/// Removes the pins of dead agents among those that `chosen` picks.
pub(super) fn remove_pins(chosen: impl Fn(&PinDir) -> bool) -> Result<Vec<Leftover>, KernelError> {
    let dirs: Vec<_> = PinDir::all()?.into_iter().filter(chosen).collect();
    if dirs.is_empty() {
        return Ok(Vec::new());
    }
    let instances = inspect::instances()?;
    let mut removed = Vec::new();
    for dir in dirs {
        if instances.iter().any(|instance| instance.id() == dir.instance && instance.is_held()) {
            continue;
        }
        let programs = dir.entries()?;
        dir.remove()?;
        removed.push(Leftover::Removed { instance: dir.instance, cgroup_id: dir.cgroup_id, path: dir.path, programs });
    }
    Ok(removed)
}
