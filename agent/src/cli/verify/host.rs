//! What the machine must have, looked up where it says so itself.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Check, describe};
use crate::kernel::{cgroup, requirements};
use crate::privilege;
use crate::workload::watch::WELL_KNOWN;

/// The inode of the first cgroup namespace: `PROC_CGROUP_INIT_INO` of the kernel.
const FIRST_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

/// Options without which nothing works, and what each is for.
const OPTIONS: [(&str, &str); 5] = [
    ("CONFIG_BPF_SYSCALL", "loading programs"),
    ("CONFIG_CGROUP_BPF", "hooks on cgroups"),
    ("CONFIG_DEBUG_INFO_BTF", "type information"),
    ("CONFIG_INET", "TCP"),
    ("CONFIG_NET_NS", "network namespaces"),
];

/// What waylay listens on when the configuration does not say otherwise.
const PORTS: [u16; 5] = [15001, 15006, 15021, 15053, 15090];

pub(super) fn checks() -> Vec<Check> {
    vec![
        kernel(),
        options(),
        btf(),
        capabilities(),
        cgroup2(),
        cgroup_namespace(),
        bpffs(),
        port_range(),
        ports_free(),
        runtimes(),
    ]
}

fn kernel() -> Check {
    match requirements::kernel() {
        Ok(running) => Check::ok("kernel", format!("Linux {running}, {} is needed", requirements::NEEDED_TEXT)),
        Err(error) => Check::failed("kernel", describe(&error), "boot a newer one"),
    }
}

fn btf() -> Check {
    if Path::new(requirements::BTF).exists() {
        Check::ok("type information", requirements::BTF)
    } else {
        let mend = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and mount /sys in a container";
        Check::failed("type information", format!("{} is missing", requirements::BTF), mend)
    }
}

fn options() -> Check {
    let name = "kernel options";
    let Some((place, text)) = kernel_config() else {
        let mend = "the proof below tells whether they are right";
        return Check::warning(name, "neither /boot/config-* of this kernel nor /proc/config.gz can be read", mend);
    };
    let on = |option: &str| text.lines().any(|line| line.strip_prefix(option) == Some("=y"));
    let missing: Vec<_> =
        OPTIONS.iter().filter(|(option, _)| !on(option)).map(|(option, what)| format!("{option} ({what})")).collect();
    if !missing.is_empty() {
        return Check::failed(name, format!("missing: {}", missing.join(", ")), "use a kernel that has them");
    }
    if !on("CONFIG_BPF_JIT") {
        return Check::warning(name, "CONFIG_BPF_JIT is off", "the hooks work, but every connect takes longer");
    }
    Check::ok(name, format!("all there, by {place}"))
}

fn kernel_config() -> Option<(String, String)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    for place in [format!("/boot/config-{}", release.trim()), format!("/lib/modules/{}/config", release.trim())] {
        if let Ok(text) = fs::read_to_string(&place) {
            return Some((place, text));
        }
    }
    let place = "/proc/config.gz";
    let file = fs::File::open(place).ok()?;
    let unpacked = Command::new("gzip").arg("-dc").stdin(file).stderr(Stdio::null()).output().ok()?;
    unpacked.status.success().then(|| (place.to_owned(), String::from_utf8_lossy(&unpacked.stdout).into_owned()))
}

fn capabilities() -> Check {
    let name = "capabilities";
    let missing: Vec<_> = privilege::missing().iter().map(|needed| needed.name).collect();
    if missing.is_empty() {
        return Check::ok(name, "all that are needed");
    }
    Check::failed(name, format!("without {}", missing.join(", ")), privilege::remedy())
}

fn cgroup2() -> Check {
    let name = "cgroup2";
    let mount = match cgroup::mount_point() {
        Ok(mount) => mount,
        Err(error) => return Check::failed(name, describe(&error), "mount it, or into the container"),
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let hybrid = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup"));
    let beside = if hybrid { ", beside controllers of version 1 (hybrid)" } else { "" };
    match cgroup::Cgroup::own() {
        Ok(own) => Check::ok(
            name,
            format!("mounted on {}{beside}; this process is in {}", mount.display(), own.path().display()),
        ),
        Err(error) => {
            let mend = "mount the cgroup2 file system anew inside this cgroup namespace, or enter that of the host";
            Check::failed(name, format!("mounted on {}{beside}; {}", mount.display(), describe(&error)), mend)
        }
    }
}

fn cgroup_namespace() -> Check {
    let name = "cgroup namespace";
    match fs::metadata("/proc/self/ns/cgroup").map(|metadata| metadata.ino()) {
        Ok(FIRST_CGROUP_NAMESPACE) => Check::ok(name, "that of the host"),
        Ok(_) => {
            let found = "one of its own: `intercept.cgroup: /` is the root of what is mounted here";
            let mend = "to intercept the whole machine, use the host's (docker: --cgroupns=host) and mount its cgroup2";
            Check::warning(name, found, mend)
        }
        Err(error) => Check::warning(name, format!("cannot be told: {error}"), "mount /proc"),
    }
}

fn bpffs() -> Check {
    let name = "bpffs";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    match cgroup::find_mount(&mounts, "bpf") {
        Some(path) => Check::ok(name, format!("mounted on {}", path.display())),
        None => {
            let mend =
                "with `on_agent_loss: refuse` waylay mounts it; so that hooks outlive a container, mount the host's";
            Check::warning(name, "not mounted", mend)
        }
    }
}

fn port_range() -> Check {
    let name = "local ports";
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let (range, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
    let Some(ephemeral) = two_numbers(&range) else {
        return Check::warning(name, "net.ipv4.ip_local_port_range cannot be read", "mount /proc");
    };
    let kept = ranges(&reserved);
    let open = |port: &u16| ephemeral.contains(port) && !kept.iter().any(|range| range.contains(port));
    let taken: Vec<_> = PORTS.iter().filter(|port| open(port)).map(u16::to_string).collect();
    let found = format!("outgoing connections use {} to {}", ephemeral.start(), ephemeral.end());
    if taken.is_empty() {
        return Check::ok(name, found);
    }
    let mend = format!("`sysctl net.ipv4.ip_local_reserved_ports={}` keeps waylay's ports free", taken.join(","));
    Check::warning(name, format!("{found}, {} among them", taken.join(", ")), mend)
}

fn two_numbers(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// `8080,9148-9150`
fn ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.trim().split(',').filter_map(range).collect()
}

fn ports_free() -> Check {
    let name = "waylay's ports";
    let in_use = |port: &&u16| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, **port)).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    let taken: Vec<_> = PORTS.iter().filter(in_use).map(u16::to_string).collect();
    if taken.is_empty() {
        return Check::ok(name, "15001, 15006, 15021, 15053 and 15090 are free");
    }
    let mend = "another agent or proxy has them: stop it, or give other ports in the configuration";
    Check::warning(name, format!("in use on 127.0.0.1: {}", taken.join(", ")), mend)
}

fn runtimes() -> Check {
    let found: Vec<_> = WELL_KNOWN.iter().map(|(_, path)| *path).filter(|path| Path::new(path).exists()).collect();
    if found.is_empty() {
        return Check::ok("container runtimes", "none at their usual sockets");
    }
    Check::ok("container runtimes", found.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_itself_is_read() {
        assert_eq!(two_numbers("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(two_numbers(""), None);
        assert_eq!(ranges("8080,9148-9150\n"), [8080..=8080, 9148..=9150]);
        assert_eq!(ranges("\n"), []);
    }
}
