//! `waylay detach`: removes what a dead agent has left in the kernel.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output::{self, Format};
use crate::kernel::cgroup::{self, Cgroup};
use crate::kernel::leftovers::{self, Leftover};

/// Remove what a `refuse` policy or a crash left pinned in the kernel, and say what was found
///
/// Hooks of a living agent are left alone. Exit status 1 when hooks of an agent that shows no life remain: end its
/// process, and they go with it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what is attached to this cgroup, a path below the cgroup2 mount as in the configuration
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Args {
    /// Removes, and tells.
    ///
    /// # Errors
    /// The kernel's lists cannot be read, or a pin cannot be removed, or there is no such cgroup.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let cgroup = self.cgroup.as_deref().map(|path| Cgroup::open(&cgroup::below_mount(path)?)).transpose()?;
        let found = leftovers::detach(cgroup.as_ref().map(Cgroup::id))?;
        match self.output {
            Format::Json => output::print_json(&found)?,
            Format::Table => output::print(&human(&found))?,
        }
        let hanging = found.iter().any(|leftover| matches!(leftover, Leftover::Hanging { .. }));
        Ok(if hanging { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn human(found: &[Leftover]) -> String {
    if found.is_empty() {
        return "nothing of waylay is in the kernel\n".to_owned();
    }
    let lines = found.iter().map(|leftover| match leftover {
        Leftover::Removed { instance, path, programs, .. } => {
            format!("removed instance {instance}: {} ({})\n", path.display(), programs.join(", "))
        }
        Leftover::InUse { instance, agent_pid, .. } => {
            format!("left instance {instance} alone: its agent (pid {agent_pid}) is alive\n")
        }
        Leftover::Hanging { instance, agent_pid, .. } => {
            format!("instance {instance} belongs to pid {agent_pid}, which shows no life: end it, and its hooks go\n")
        }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_found() {
        assert_eq!(human(&[]), "nothing of waylay is in the kernel\n");
        let found = [
            Leftover::Removed {
                instance: 3,
                cgroup_id: 1,
                path: "/sys/fs/bpf/waylay/1/3".into(),
                programs: vec!["connect4".into(), "connect6".into()],
            },
            Leftover::InUse { instance: 4, cgroup_id: 1, agent_pid: 77 },
        ];
        assert_eq!(
            human(&found),
            "removed instance 3: /sys/fs/bpf/waylay/1/3 (connect4, connect6)\n\
             left instance 4 alone: its agent (pid 77) is alive\n"
        );
    }
}
