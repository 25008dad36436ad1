//! Loads the programs of this build into the kernel: requirements first, then maps, then programs. Attaches nothing.
//!
//! After it: `attach`.

use std::{fs, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{CgroupSockAddr, CgroupSockopt, Program, ProgramError, SockOps},
};

use super::{KernelError, Log, log, maps};

/// `bpf_set_retval` and the helpers that tell the calling task, in connect hooks.
const NEEDED: (u32, u32) = (6, 1);
const NEEDED_TEXT: &str = "6.1";
const NEEDED_REASON: &str = "the connect hooks set the error of a refused connection and ask for the calling process";
/// There where the kernel has multipath TCP.
const MPTCP: &str = "/proc/sys/net/mptcp";
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Names of the programs, as the kernel shows them.
pub mod name {
    pub const CONNECT4: &str = "waylay_connect4";
    pub const CONNECT6: &str = "waylay_connect6";
    pub const SOCKOPS: &str = "waylay_sockops";
    pub const PEER4: &str = "waylay_peer4";
    pub const PEER6: &str = "waylay_peer6";
    pub const SOCKOPT: &str = "waylay_sockopt";
    /// Of the inbound object.
    pub const INBOUND: &str = "waylay_inbound";
}

/// The programs and maps of this build, in the kernel, attached to nothing.
pub(super) struct Loaded(Ebpf);

impl Loaded {
    /// `handover_entries`: room for handshakes in flight; `flow_entries`: for the agent's own connections on the inbound
    /// side.
    pub(super) fn new(handover_entries: u32, flow_entries: u32) -> Result<Self, KernelError> {
        check_requirements()?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(maps::name::HANDOVER, handover_entries)
            .map_max_entries(maps::name::FLOWS, flow_entries)
            .override_global("WAYLAY_MPTCP", &u8::from(Path::new(MPTCP).exists()), true)
            .override_global(aya_log::LEVEL, &log::level(), true)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/waylay-ebpf")))
            .map_err(KernelError::load)?;
        for (name, program) in ebpf.programs_mut() {
            let loaded = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::CgroupSockopt(program) => program.load(),
                Program::SockOps(program) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            loaded.map_err(|source| KernelError::program(format!("load the program {name}"), source))?;
        }
        Ok(Self(ebpf))
    }

    /// The reader of what the programs log; there is one.
    pub(super) fn log(&mut self) -> Result<Log, KernelError> {
        Log::new(&mut self.0)
    }

    /// A handle of its own on the map `name`.
    pub(super) fn map(&self, name: &'static str) -> Result<MapData, KernelError> {
        use aya::maps::Map;
        let map = self.0.map(name).ok_or(KernelError::Incomplete(name))?;
        let data = match map {
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data)
            | Map::SkStorage(data)
            | Map::SockHash(data) => data,
            _ => return Err(KernelError::Incomplete(name)),
        };
        maps::duplicate(name, data)
    }

    pub(super) fn sock_addr(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, KernelError> {
        self.program(name)
    }

    pub(super) fn sock_ops(&mut self) -> Result<&mut SockOps, KernelError> {
        self.program(name::SOCKOPS)
    }

    pub(super) fn sockopt(&mut self) -> Result<&mut CgroupSockopt, KernelError> {
        self.program(name::SOCKOPT)
    }

    fn program<'a, T: 'a>(&'a mut self, name: &'static str) -> Result<&'a mut T, KernelError>
    where
        &'a mut T: TryFrom<&'a mut Program>,
    {
        let program = self.0.program_mut(name).ok_or(KernelError::Incomplete(name))?;
        program.try_into().map_err(|_| KernelError::Incomplete(name))
    }
}

fn check_requirements() -> Result<(), KernelError> {
    let path = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(path).map_err(|source| KernelError::io(format!("reading {path}"), source))?;
    if version(&release).is_some_and(|running| running < NEEDED) {
        return Err(KernelError::KernelTooOld {
            running: release.trim().to_owned(),
            needed: NEEDED_TEXT,
            reason: NEEDED_REASON,
        });
    }
    if !Path::new(BTF).exists() {
        return Err(KernelError::NoBtf(BTF));
    }
    Ok(())
}

/// The first two numbers of a release such as `6.12.9+deb13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_compared_by_its_first_two_numbers() {
        assert_eq!(version("6.12.9+deb13-amd64\n"), Some((6, 12)));
        assert_eq!(version("5.15-rc3"), Some((5, 15)));
        assert!(version("5.15.0-100-generic").unwrap() < NEEDED);
        assert!(version("6.1.0").unwrap() >= NEEDED);
        assert_eq!(version("weird"), None);
    }
}
