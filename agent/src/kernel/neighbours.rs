//! Other programs at the hooks that waylay uses: which there are, and where our connect hooks run among them.
//!
//! Before it: `load`. After it: `attach`. The kernel runs what is attached to the cgroup of a socket, then what is
//! attached to the cgroup above it, and so on; in one cgroup, what was attached first runs first. So another program, such
//! as the load balancer of a container network that rewrites the address of a service to that of an endpoint, may rewrite
//! an address before waylay sees it. Programs that are attached with `BPF_F_PREORDER` run before all others, and those of
//! an upper cgroup before those of a lower one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::programs::loaded_programs;
use serde::Serialize;
use waylay_common::{
    bpf::{self, CgroupHook},
    settings::Placement,
};

use super::{
    KernelError,
    cgroup::{self, Cgroup},
    inspect,
    load::{Loaded, name},
};

/// How deep below a cgroup others are looked for: more than any runtime nests.
const DEPTH_MAX: usize = 32;

const CONNECT: [CgroupHook; 2] = [CgroupHook::Connect4, CgroupHook::Connect6];

/// A program of somebody else at a hook that waylay uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// The kernel's id of the program.
    pub id: u32,
    /// Its name; the kernel keeps 15 characters.
    pub name: String,
    /// `connect4`, ...
    pub hook: &'static str,
    /// The cgroup it is attached to.
    pub cgroup: PathBuf,
}

/// Where the connect hooks of an instance go.
pub(super) struct Place {
    pub(super) placement: Placement,
    /// Where they are attached when it is not their own cgroup.
    pub(super) above: Option<Cgroup>,
}

impl Place {
    const LAST: Self = Self { placement: Placement::Last, above: None };
}

/// Chooses the place of the connect hooks of an instance on `cgroup`: see the top of this file. An instance of waylay
/// above that runs before all others would also run before one that is nested in it, which is nearer to the program and
/// is to win; so the nested one goes to the cgroup of the upper one, and in front of it.
pub(super) fn place(loaded: &mut Loaded, cgroup: &Cgroup) -> Result<Place, KernelError> {
    let program = loaded.sock_addr(name::CONNECT4)?;
    let program = program.fd().map_err(|source| KernelError::program("attach a program", source))?;
    if !bpf::knows_order(program.as_fd(), CgroupHook::Connect4) {
        return Ok(Place::LAST);
    }
    if let Some(place) = above(cgroup)? {
        return Ok(place);
    }
    let first = !before(cgroup)?.is_empty();
    Ok(Place { placement: if first { Placement::First } else { Placement::Last }, above: None })
}

/// The place in front of the instances of waylay that cover `cgroup` from above and run before all others.
fn above(cgroup: &Cgroup) -> Result<Option<Place>, KernelError> {
    let (mut covering, mut to_root) = (Vec::new(), false);
    for instance in inspect::instances()? {
        let placement = instance.placement();
        if placement != Placement::Last && instance.is_held() && instance.cgroup_id() != cgroup.id() {
            covering.push(instance.cgroup_id());
            to_root |= placement != Placement::First;
        }
    }
    let mount = cgroup::mount_point()?;
    let mut upper = cgroup.path().ancestors().skip(1).take_while(|path| path.starts_with(&mount)).filter(|path| {
        let id = fs::metadata(path).map(|metadata| metadata.ino());
        id.is_ok_and(|id| covering.contains(&id))
    });
    // The topmost of them; where one sits above its own cgroup already, only the root is sure to be above it.
    let Some(mut top) = upper.by_ref().last() else { return Ok(None) };
    if to_root {
        top = &mount;
    }
    let Ok(level) = cgroup.level() else { return Ok(None) };
    Ok(Some(Place { placement: Placement::Above(level), above: Some(Cgroup::open(top)?) }))
}

/// Can this kernel put our connect hooks before those of others?
///
/// # Errors
/// The programs cannot be loaded.
pub fn can_go_first() -> Result<bool, KernelError> {
    let mut loaded = Loaded::new(1, 1)?;
    let program = loaded.sock_addr(name::CONNECT4)?;
    let program = program.fd().map_err(|source| KernelError::program("ask for a program's descriptor", source))?;
    Ok(bpf::knows_order(program.as_fd(), CgroupHook::Connect4))
}

/// Others' programs that run before ours when ours go last: at the connect hooks of this cgroup and of those below it.
///
/// # Errors
/// Listing programs takes CAP_SYS_ADMIN, asking a cgroup CAP_NET_ADMIN.
pub fn before(cgroup: &Cgroup) -> Result<Vec<Neighbour>, KernelError> {
    let mut found = Vec::new();
    attached(cgroup.path(), &CONNECT, &mut found)
        .map_err(|source| KernelError::io(format!("asking what is attached to {}", cgroup.path().display()), source))?;
    below(cgroup.path(), DEPTH_MAX, &mut found);
    foreign(found)
}

/// Others' programs at the connect hooks of the cgroups above this one.
///
/// # Errors
/// As [`before`].
pub fn after(cgroup: &Cgroup) -> Result<Vec<Neighbour>, KernelError> {
    let mount = cgroup::mount_point()?;
    let mut found = Vec::new();
    for path in cgroup.path().ancestors().skip(1).take_while(|path| path.starts_with(&mount)) {
        // One that cannot be asked is told of by the others.
        let _ = attached(path, &CONNECT, &mut found);
    }
    foreign(found)
}

/// Cgroups come and go meanwhile: what cannot be read is left out.
fn below(path: &Path, depth: usize, found: &mut Vec<Neighbour>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        let _ = attached(&path, &CONNECT, found);
        below(&path, depth, found);
    }
}

fn attached(path: &Path, hooks: &[CgroupHook], found: &mut Vec<Neighbour>) -> std::io::Result<()> {
    let dir = File::open(path)?;
    for &hook in hooks {
        for id in bpf::attached_programs(dir.as_fd(), hook)? {
            found.push(Neighbour { id, name: String::new(), hook: hook_name(hook), cgroup: path.to_owned() });
        }
    }
    Ok(())
}

/// Gives them their names and leaves waylay's own out.
fn foreign(mut found: Vec<Neighbour>) -> Result<Vec<Neighbour>, KernelError> {
    if found.is_empty() {
        return Ok(found);
    }
    let mut names = BTreeMap::new();
    for program in loaded_programs() {
        match program {
            Ok(program) => _ = names.insert(program.id(), program.name_as_str().unwrap_or_default().to_owned()),
            Err(error) if inspect::vanished(&error) => {}
            Err(source) => return Err(KernelError::program("list the loaded programs", source)),
        }
    }
    found.retain_mut(|neighbour| {
        // One that is not there any more was detached meanwhile.
        let Some(name) = names.get(&neighbour.id) else { return false };
        neighbour.name.clone_from(name);
        !inspect::OUR_PROGRAMS.contains(&name.as_str())
    });
    Ok(found)
}

fn hook_name(hook: CgroupHook) -> &'static str {
    match hook {
        CgroupHook::SockOps => "sock_ops",
        CgroupHook::Connect4 => "connect4",
        CgroupHook::Connect6 => "connect6",
        CgroupHook::UdpSendmsg4 => "sendmsg4",
        CgroupHook::UdpSendmsg6 => "sendmsg6",
        CgroupHook::UdpRecvmsg4 => "recvmsg4",
        CgroupHook::UdpRecvmsg6 => "recvmsg6",
        CgroupHook::Getsockopt => "getsockopt",
        CgroupHook::Getpeername4 => "getpeername4",
        CgroupHook::Getpeername6 => "getpeername6",
    }
}
