//! What containerd, CNI and runc leave outside of the test's folder, and in it as mounts, when they are ended by force.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// The pods that were made, a line each: the id and the network namespace. A file, so that a later test can clean up
/// after one that was killed.
const PODS: &str = "pods";

/// Where CNI keeps what it gave out, whatever it is told.
const CNI_RESULTS: &str = "/var/lib/cni/results";

/// Remembers a pod for [`clean_up`].
pub fn remember(folder: &Path, id: &str, netns: &Path) {
    let file = fs::OpenOptions::new().append(true).create(true).open(folder.join(PODS));
    file.and_then(|mut file| writeln!(file, "{id} {}", netns.display())).expect("writing down a pod of the test");
}

/// Takes away what the containerd of the world `name` left; its processes have ended. `folder` is the world's.
pub fn clean_up(name: &str, folder: &Path) {
    shim_sockets(folder).iter().for_each(|socket| drop(fs::remove_file(socket)));
    for pod in fs::read_to_string(folder.join(PODS)).unwrap_or_default().lines() {
        let (id, netns) = pod.split_once(' ').unwrap_or((pod, ""));
        if !netns.is_empty() && Path::new(netns).exists() {
            let _ = umount2(netns, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(netns);
        }
        let _ = fs::remove_file(Path::new(CNI_RESULTS).join(format!("cni-loopback-{id}-lo")));
    }
    for entry in fs::read_dir(CNI_RESULTS).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
            let _ = fs::remove_file(entry.path());
        }
    }
    // The latest first: mounts lie on mounts.
    for mount in mounts_below(folder).into_iter().rev() {
        let _ = umount2(&mount, MntFlags::MNT_DETACH);
    }
    // The v1 hierarchies: runc removes the containers' own cgroups and leaves those above.
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        if !hierarchy.path().join("cgroup.controllers").exists() {
            remove_cgroup(&hierarchy.path().join(name));
        }
    }
}

/// The shims' sockets, which lie in `/run/containerd/s` whatever the configuration says.
fn shim_sockets(folder: &Path) -> Vec<PathBuf> {
    let tasks = folder.join("containerd/state/io.containerd.runtime.v2.task/k8s.io");
    let addresses = fs::read_dir(tasks).into_iter().flatten().flatten().map(|task| task.path().join("address"));
    let texts = addresses.filter_map(|address| fs::read_to_string(address).ok());
    texts.filter_map(|text| text.strip_prefix("unix://").map(PathBuf::from)).collect()
}

fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(folder)).collect()
}

/// Removes the empty cgroup `path` with those below.
fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    let _ = fs::remove_dir(path);
}
