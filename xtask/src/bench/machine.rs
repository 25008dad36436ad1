//! The machine that a run was made on, and the CPUs that were chosen on it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use nix::{sched, sys::utsname, unistd::Pid};
use serde::{Deserialize, Serialize};

/// What a table of numbers is worth nothing without.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// UTC, as `date` says it.
    pub time: String,
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub memory_mb: u64,
    /// Where what ran.
    pub pinning: String,
    pub plan: String,
    /// Program and version.
    pub versions: Vec<(String, String)>,
}

/// The two CPUs of a run; on a machine with one they are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    /// Clients and origins.
    pub load: usize,
    /// The proxy.
    pub proxy: usize,
}

impl Cpus {
    /// Two CPUs that this process may use, on different cores if there are.
    pub fn choose() -> Result<Self> {
        let set = sched::sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs may be used")?;
        let allowed: Vec<usize> = (0..sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
        Ok(pick(&allowed, core))
    }

    pub fn shown(self) -> String {
        match self {
            Self { load, proxy } if load == proxy => format!("everything on CPU {load}, the only one"),
            Self { load, proxy } => format!("clients and origins on CPU {load}, the proxy on CPU {proxy}"),
        }
    }
}

/// Threads of one core slow each other down: the second CPU is of another core if there is one.
fn pick(allowed: &[usize], core: impl Fn(usize) -> String) -> Cpus {
    let load = allowed.first().copied().unwrap_or(0);
    let others = || allowed.iter().copied().skip(1);
    let proxy = others().find(|cpu| core(*cpu) != core(load)).or_else(|| others().next()).unwrap_or(load);
    Cpus { load, proxy }
}

/// Something that is the same for all threads of one core.
fn core(cpu: usize) -> String {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    fs::read_to_string(file).unwrap_or_else(|_| cpu.to_string())
}

impl Machine {
    pub fn look(cpus: Cpus, plan: &str) -> Result<Self> {
        let name = utsname::uname().context("cannot ask for the kernel's version")?;
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kb = field(&meminfo, "MemTotal").and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
        Ok(Self {
            time: String::new(),
            kernel: format!("Linux {} {}", name.release().display(), name.machine().display()),
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mb: memory_kb.unwrap_or(0) / 1024,
            pinning: cpus.shown(),
            plan: plan.to_owned(),
            versions: Vec::new(),
        })
    }
}

/// `name : value` of /proc.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|word| word.trim() == name))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// The version of a package in a lock file of cargo.
pub fn locked_version(lock: &Path, package: &str) -> Option<String> {
    let text = fs::read_to_string(lock).ok()?;
    let (_, rest) = text.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    rest.split('"').next().map(str::to_owned)
}

/// The first word that looks like a version, of what programs say of themselves.
pub fn version_in(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == '/').map(|word| word.trim_start_matches('v'));
    let mut versions = words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    versions.next().map(|word| word.trim_end_matches([',', ')']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_gets_another_core_if_there_is_one() {
        let pairs = |cpu: usize| (cpu / 2).to_string();
        let cases: [(&[usize], (usize, usize)); 4] =
            [(&[3], (3, 3)), (&[0, 1], (0, 1)), (&[0, 1, 2, 3], (0, 2)), (&[5, 6], (5, 6))];
        for (allowed, expected) in cases {
            let cpus = pick(allowed, pairs);
            assert_eq!((cpus.load, cpus.proxy), expected, "{allowed:?}");
        }
    }

    #[test]
    fn a_version_is_found_in_whatever_a_program_says() {
        let cases = [
            ("envoy  version: 9e55809/1.40.0/Clean/RELEASE/BoringSSL", Some("1.40.0")),
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://x", Some("2.6.12-1+deb12u4")),
            ("nginx version: nginx/1.22.1", Some("1.22.1")),
            ("wrk debian/4.1.0-3+b2 [epoll]", Some("4.1.0-3+b2")),
            ("iptables v1.8.9 (nf_tables)", Some("1.8.9")),
            ("usage", None),
        ];
        for (text, expected) in cases {
            assert_eq!(version_in(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_field_of_proc_is_found_by_its_whole_name() {
        assert_eq!(field("MemTotalX: 1 kB\nMemTotal:  2 kB\n", "MemTotal"), Some("2 kB"));
    }
}
