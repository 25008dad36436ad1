//! Pins under bpffs: what `on_agent_loss: refuse` leaves behind on purpose when the agent dies.
//!
//! `<bpffs>/waylay/<cgroup id>/<instance>/<program>`: one directory for each instance, so that a new agent can pin its
//! own hooks before it takes the old ones away, and there is no moment without.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};
use serde::Serialize;
use waylay_common::bpf;

use super::{KernelError, cgroup::find_mount};

const DEFAULT_MOUNT: &str = "/sys/fs/bpf";
const FOLDER: &str = "waylay";

/// The pins of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinDir {
    pub path: PathBuf,
    pub cgroup_id: u64,
    /// Kernel id of the instance's settings map.
    pub instance: u32,
}

impl PinDir {
    /// Makes the directory, and mounts bpffs if nobody has.
    pub(super) fn create(cgroup_id: u64, instance: u32) -> Result<Self, KernelError> {
        let bpffs = match bpffs()? {
            Some(path) => path,
            None => mount_bpffs()?,
        };
        let path = bpffs.join(FOLDER).join(cgroup_id.to_string()).join(instance.to_string());
        fs::create_dir_all(&path).map_err(|source| KernelError::io(format!("creating {}", path.display()), source))?;
        Ok(Self { path, cgroup_id, instance })
    }

    /// Every instance that has pins, for all cgroups.
    pub(super) fn all() -> Result<Vec<Self>, KernelError> {
        let Some(bpffs) = bpffs()? else {
            return Ok(Vec::new());
        };
        let mut dirs = Vec::new();
        for (cgroup_id, cgroup_path) in numbered(&bpffs.join(FOLDER))? {
            for (instance, path) in numbered(&cgroup_path)? {
                if let Ok(instance) = u32::try_from(instance) {
                    dirs.push(Self { path, cgroup_id, instance });
                }
            }
        }
        Ok(dirs)
    }

    /// Names of what is pinned here.
    pub(super) fn entries(&self) -> Result<Vec<String>, KernelError> {
        list(&self.path)
    }

    /// Removes the pins and the directories that have become empty. What was pinned detaches, unless a process holds it.
    pub(super) fn remove(&self) -> Result<(), KernelError> {
        for name in list(&self.path)? {
            let pin = self.path.join(name);
            ignore_missing(fs::remove_file(&pin))
                .map_err(|source| KernelError::io(format!("removing {}", pin.display()), source))?;
        }
        // The folders above hold other instances' pins as long as they are not empty.
        for dir in self.path.ancestors().take(3) {
            if fs::remove_dir(dir).is_err() {
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn pin(link: &impl AsFd, path: &Path) -> Result<(), KernelError> {
    bpf::pin(link.as_fd(), path).map_err(|source| KernelError::io(format!("pinning {}", path.display()), source))
}

fn bpffs() -> Result<Option<PathBuf>, KernelError> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|source| KernelError::io("reading /proc/self/mounts", source))?;
    Ok(find_mount(&mounts, "bpf"))
}

fn mount_bpffs() -> Result<PathBuf, KernelError> {
    mount(Some("bpf"), DEFAULT_MOUNT, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|error| KernelError::io(format!("mounting bpffs on {DEFAULT_MOUNT}"), error.into()))?;
    Ok(DEFAULT_MOUNT.into())
}

/// Directory entries whose name is a number; none when the directory is missing.
fn numbered(dir: &Path) -> Result<Vec<(u64, PathBuf)>, KernelError> {
    let names = list(dir)?.into_iter();
    Ok(names.filter_map(|name| Some((name.parse().ok()?, dir.join(name)))).collect())
}

fn list(dir: &Path) -> Result<Vec<String>, KernelError> {
    let doing = |source| KernelError::io(format!("reading {}", dir.display()), source);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(doing(error)),
    };
    entries.map(|entry| Ok(entry.map_err(doing)?.file_name().to_string_lossy().into_owned())).collect()
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
