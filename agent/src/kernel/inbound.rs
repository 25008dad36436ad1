//! Loads and attaches the inbound hook, once for each network namespace, on the maps that the main object has made.
//!
//! Before it: `load`. After it: nothing; from here on what arrives may be given to the agent.
//!
//! Maps are handed to a load by pins. These are made in a bpffs that is mounted nowhere: nobody else can see it, no
//! machine must have one mounted, and nothing of it is left when the process ends.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use aya::{Ebpf, EbpfLoader, maps::Array, pin::PinError, programs::SkLookup};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::{
    KernelError,
    link::Link,
    load::{Loaded, name},
    maps,
};
use crate::netns::Netns;

/// The maps of the main object that the inbound one declares as well.
const SHARED: [&str; 9] = [
    maps::name::SETTINGS,
    maps::name::SWITCHES,
    maps::name::POLICY,
    maps::name::EXEMPT,
    maps::name::NETNS,
    maps::name::FLOWS,
    maps::name::LISTENERS,
    maps::name::COUNTERS,
    maps::name::EVENTS,
];

/// Makes inbound hooks, all on the maps of one instance.
pub(super) struct InboundHooks {
    loader: EbpfLoader<'static>,
    /// The private bpffs; the loader's paths lead through it.
    _pins: OwnedFd,
}

impl InboundHooks {
    pub(super) fn new(loaded: &Loaded) -> Result<Self, KernelError> {
        let pins = private_bpffs()
            .map_err(|error| KernelError::io("making a private bpffs for the inbound hooks", error.into()))?;
        let mut loader = EbpfLoader::new();
        // The object has nothing to relocate, and the kernel's own types take tens of megabytes.
        loader.btf(None);
        for name in SHARED {
            let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", pins.as_raw_fd()));
            loaded.map(name)?.pin(&path).map_err(|error| not_pinned(name, error))?;
            loader.map_pin_path(name, path);
        }
        Ok(Self { loader, _pins: pins })
    }

    /// Attaches one to a network namespace; it goes with the link, or with the namespace.
    pub(super) fn attach(&mut self, netns: &Netns) -> Result<Link, KernelError> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/waylay-inbound"));
        let mut ebpf = self.loader.load(object).map_err(KernelError::load)?;
        write_place(&mut ebpf, netns.cookie())?;
        let program: &mut SkLookup = ebpf
            .program_mut(name::INBOUND)
            .and_then(|program| program.try_into().ok())
            .ok_or(KernelError::Incomplete(name::INBOUND))?;
        let refused = |source| KernelError::program(format!("load the program {}", name::INBOUND), source);
        program.load().map_err(refused)?;
        let program = program.fd().map_err(refused)?;
        // The link holds the program, and the program its maps: everything else is closed here.
        Link::to_netns(program.as_fd(), netns.as_fd())
            .map_err(|source| KernelError::io(format!("attaching {} to a network namespace", name::INBOUND), source))
    }
}

/// An sk_lookup program is not told where it runs.
fn write_place(ebpf: &mut Ebpf, cookie: u64) -> Result<(), KernelError> {
    let map = ebpf.map_mut(maps::name::PLACE).ok_or(KernelError::Incomplete(maps::name::PLACE))?;
    let mut place = Array::<_, u64>::try_from(map)
        .map_err(|source| KernelError::map(format!("opening the map {}", maps::name::PLACE), source))?;
    place.set(0, cookie, 0).map_err(|source| KernelError::map("telling an inbound hook its network namespace", source))
}

fn private_bpffs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn not_pinned(name: &str, error: PinError) -> KernelError {
    let source = match error {
        PinError::SyscallError(error) => error.io_error,
        other => std::io::Error::other(other),
    };
    KernelError::io(format!("pinning the map {name} for the inbound hooks"), source)
}
