//! Finding cgroup v2: by file-system type, never by a fixed path, because hybrid hosts mount it anywhere.
//!
//! After it: `attach` opens what is found here. This file attaches nothing.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use super::KernelError;

/// A cgroup v2 directory, opened: what programs are attached to.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    id: u64,
    dir: File,
}

impl Cgroup {
    /// Opens an absolute path below the cgroup v2 mount.
    ///
    /// # Errors
    /// No such directory, or it is not on a cgroup v2 file system.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let mount = mount_point()?;
        let doing = || format!("opening the cgroup {}", path.display());
        let path = path.canonicalize().map_err(|source| KernelError::io(doing(), source))?;
        let dir = File::open(&path).map_err(|source| KernelError::io(doing(), source))?;
        let metadata = dir.metadata().map_err(|source| KernelError::io(doing(), source))?;
        if !metadata.is_dir() || !path.starts_with(&mount) || !path.join("cgroup.procs").exists() {
            return Err(KernelError::NotACgroup { path, mount });
        }
        // The inode number of a cgroup v2 directory is its id: what bpf_get_current_cgroup_id returns.
        Ok(Self { path, id: metadata.ino(), dir })
    }

    /// The cgroup of this process, to which its listening sockets belong.
    ///
    /// # Errors
    /// It cannot be seen from here (another cgroup namespace's tree is mounted).
    pub fn own() -> Result<Self, KernelError> {
        Self::of_process("self")
    }

    /// The cgroup of a process; `pid` is its name below /proc.
    pub(super) fn of_process(pid: &str) -> Result<Self, KernelError> {
        let path = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&path).map_err(|source| KernelError::io(format!("reading {path}"), source))?;
        let relative = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(KernelError::NoCgroup2)?;
        let relative = Path::new(relative);
        if relative.components().any(|part| part == Component::ParentDir) {
            return Err(KernelError::OwnCgroupHidden(relative.display().to_string()));
        }
        Self::open(&mount_point()?.join(relative.strip_prefix("/").unwrap_or(relative)))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup v2 id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How far it lies below the root of the whole hierarchy, which is at 0: what the kernel's hooks count by. From inside
    /// a cgroup namespace that root is out of sight, and only a kernel thread, which sits there, tells how far up it is.
    ///
    /// # Errors
    /// Our path, when it cannot be told.
    pub(super) fn level(&self) -> Result<u32, PathBuf> {
        let unknown = || self.path.clone();
        let mount = mount_point().map_err(|_| unknown())?;
        let below = self.path.strip_prefix(&mount).map_err(|_| unknown())?.components().count();
        let root = fs::metadata(&mount).map_err(|_| unknown())?;
        let above = if root.ino() == ROOT_ID { 0 } else { namespace_depth().ok_or_else(unknown)? };
        u32::try_from(below + above).map_err(|_| unknown())
    }

    pub(super) fn dir(&self) -> &File {
        &self.dir
    }

    /// Is `other` this cgroup or below it? Programs attached here then run for its sockets too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.path.starts_with(&self.path)
    }

    /// Is the cgroup with this id this one or one above it?
    pub(super) fn is_covered_by(&self, id: u64) -> bool {
        self.path.ancestors().any(|path| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == id))
    }
}

/// The id of the root of the hierarchy.
const ROOT_ID: u64 = 1;

/// How far the root of this cgroup namespace lies below that of the hierarchy.
fn namespace_depth() -> Option<usize> {
    // The first kernel thread, where the host's pids are to be seen.
    if fs::read_to_string("/proc/2/comm").ok()?.trim() != "kthreadd" {
        return None;
    }
    depth_seen(&fs::read_to_string("/proc/2/cgroup").ok()?)
}

/// The way from here up to a process in the root cgroup, in the format of `/proc/<pid>/cgroup`.
fn depth_seen(text: &str) -> Option<usize> {
    let path = Path::new(text.lines().find_map(|line| line.strip_prefix("0::"))?);
    let mut parts = path.components().filter(|part| *part != Component::RootDir);
    parts.all(|part| part == Component::ParentDir).then(|| path.components().count() - 1)
}

/// Where the cgroup v2 file system is mounted.
///
/// # Errors
/// It is not.
pub fn mount_point() -> Result<PathBuf, KernelError> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|source| KernelError::io("reading /proc/self/mounts", source))?;
    find_mount(&mounts, "cgroup2").ok_or(KernelError::NoCgroup2)
}

/// The directory of a cgroup that is named by its path below the mount, wherever that is: `/` is the mount itself.
///
/// # Errors
/// There is no cgroup v2 mount.
pub fn below_mount(path: &Path) -> Result<PathBuf, KernelError> {
    Ok(below(mount_point()?, path))
}

fn below(mount: PathBuf, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() { mount } else { mount.join(relative) }
}

/// The mount point of the first file system of `kind` in the format of `/proc/self/mounts`.
pub fn find_mount(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == kind).then(|| PathBuf::from(unescape(path)))
    })
}

/// Spaces, tabs, newlines and backslashes stand as three octal digits in `/proc/self/mounts` (proc(5)).
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_named_by_its_path_below_the_mount() {
        for (named, expected) in [("/", "/m"), ("/user.slice", "/m/user.slice"), ("a/b", "/m/a/b")] {
            assert_eq!(below("/m".into(), Path::new(named)), Path::new(expected), "{named}");
        }
    }

    #[test]
    fn a_process_in_the_root_tells_how_deep_a_namespace_is() {
        for (text, expected) in [
            ("0::/\n", Some(0)),
            ("4:memory:/x\n0::/..\n", Some(1)),
            ("0::/../../..\n", Some(3)),
            ("0::/../system.slice\n", None),
            ("4:memory:/\n", None),
        ] {
            assert_eq!(depth_seen(text), expected, "{text}");
        }
    }

    #[test]
    fn the_mount_is_found_by_type_wherever_it_is() {
        let check = |mounts: &str, expected: Option<&str>| {
            assert_eq!(find_mount(mounts, "cgroup2"), expected.map(PathBuf::from), "{mounts}");
        };
        check("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Some("/sys/fs/cgroup"));
        check("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nx /u cgroup2 rw 0 0\n", Some("/u"));
        check("none /with\\040space cgroup2 rw 0 0\n", Some("/with space"));
        check("cgroup2 /sys/fs/cgroup tmpfs rw 0 0\n", None);
        check("", None);
    }
}
