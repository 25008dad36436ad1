//! CPU time and memory, as the kernel counts them.

use std::{fs, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

use super::machine::Cpus;

/// CPU time that was spent up to a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// On-CPU time of all threads of the proxy, its children included.
    pub proxy: Duration,
    /// Busy time of both CPUs of the run: user, nice, system, irq, softirq.
    pub system: Duration,
}

impl Usage {
    /// Without a `proxy`, that part is 0.
    pub fn now(proxy: Option<u32>, cpus: Cpus) -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks = busy_ticks(&stat, cpus);
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).max(1);
        let system = Duration::from_secs_f64(ticks as f64 / per_second as f64);
        Self { proxy: proxy.map(on_cpu).unwrap_or_default(), system }
    }

    pub fn since(self, before: Self) -> Self {
        let proxy = self.proxy.saturating_sub(before.proxy);
        Self { proxy, system: self.system.saturating_sub(before.system) }
    }
}

fn busy_ticks(stat: &str, cpus: Cpus) -> u64 {
    let ours = [format!("cpu{}", cpus.load), format!("cpu{}", cpus.proxy)];
    let lines = stat.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        ours.iter().any(|name| Some(name.as_str()) == line.split(' ').next()).then(|| fields.next())?;
        let numbers: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        Some([0, 1, 2, 5, 6].iter().filter_map(|index| numbers.get(*index)).sum::<u64>())
    });
    lines.sum()
}

fn on_cpu(pid: u32) -> Duration {
    let own: u64 = threads(pid).filter_map(|thread| nanoseconds(pid, &thread)).sum();
    Duration::from_nanos(own) + children(pid).into_iter().map(on_cpu).sum::<Duration>()
}

fn nanoseconds(pid: u32, thread: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
    text.split(' ').next()?.parse().ok()
}

fn threads(pid: u32) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Processes that a process started: nginx's worker.
fn children(pid: u32) -> Vec<u32> {
    let lists =
        threads(pid).filter_map(|thread| fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Resident memory of a process and its children in KB. Pages that they share count once: the largest process is
/// taken whole, of the others only what is theirs alone.
pub fn resident_kb(pid: u32) -> u64 {
    let own = status(pid, "VmRSS:");
    let children: u64 = children(pid).into_iter().map(|child| status(child, "RssAnon:")).sum();
    own + children
}

fn status(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_and_other_cpus_are_not_counted() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 100 100 4 5 100 0 0\ncpu1 10 0 0 7 0 0 0 0\ncpu10 1000 0 0 0 0 0 0\n";
        assert_eq!(busy_ticks(stat, Cpus { load: 0, proxy: 1 }), 25);
        assert_eq!(busy_ticks(stat, Cpus { load: 0, proxy: 0 }), 15);
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        assert!(resident_kb(std::process::id()) > 100);
        assert!(on_cpu(std::process::id()) > Duration::ZERO);
    }
}
