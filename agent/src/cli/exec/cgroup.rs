//! The cgroup in which the command of `waylay exec` runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;

use crate::kernel::cgroup::{Cgroup, mount_point};

/// A process that was just killed still counts as a member of its cgroup for a moment.
const REMOVE_ATTEMPTS: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// What our cgroups are called, followed by the pid of the `waylay exec` that made them.
const PREFIX: &str = "waylay-exec-";

/// A cgroup of our own; removed when this is dropped. What still runs in it then goes back to where we are.
#[derive(Debug)]
pub struct ExecCgroup {
    path: PathBuf,
    parent: PathBuf,
}

impl ExecCgroup {
    /// Makes it below this process's own cgroup, or below the root where that cannot be.
    ///
    /// # Errors
    /// There is no cgroup v2, or the user may not make cgroups.
    pub fn create() -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{}", std::process::id());
        let root = mount_point()?;
        let own = Cgroup::own().map_or_else(|_| root.clone(), |own| own.path().to_owned());
        let made =
            Self::make(&own, &name).or_else(|error| if own == root { Err(error) } else { Self::make(&root, &name) });
        made.with_context(|| format!("making the cgroup {} (run with sudo?)", own.join(&name).display()))
    }

    fn make(parent: &Path, name: &str) -> io::Result<Self> {
        sweep(parent);
        let path = parent.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path, parent: parent.to_owned() })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn send_members_home(&self) {
        let members = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines() {
            // It fails when the process has just ended.
            let _ = fs::write(self.parent.join("cgroup.procs"), pid);
        }
    }
}

/// Removes what killed `waylay exec`s have left in `parent`; a cgroup in which something still runs stays.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // It fails when something still runs in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

impl Drop for ExecCgroup {
    fn drop(&mut self) {
        for _ in 0..REMOVE_ATTEMPTS {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(_) => self.send_members_home(),
            }
            sleep(REMOVE_PAUSE);
        }
        eprintln!("waylay: the cgroup {} could not be removed", self.path.display());
    }
}
