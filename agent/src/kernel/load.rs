//! Loads the programs of this build into the kernel: requirements first, then maps, then programs. Attaches nothing.
//!
//! After it: `attach`.

use std::{collections::HashMap, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{CgroupSockAddr, CgroupSockopt, Program, ProgramError, SockOps},
};

use super::{KernelError, Log, dns, log, maps, requirements};

/// There where the kernel has multipath TCP.
const MPTCP: &str = "/proc/sys/net/mptcp";

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
pub(super) struct Loaded {
    /// With the log of the programs; `None` once they are attached.
    programs: Option<Ebpf>,
    /// All other maps, by name.
    maps: HashMap<String, Map>,
}

impl Loaded {
    /// `handover_entries`: room for handshakes in flight; `flow_entries`: for the agent's own connections on the inbound
    /// side.
    pub(super) fn new(handover_entries: u32, flow_entries: u32) -> Result<Self, KernelError> {
        requirements::check()?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(maps::name::HANDOVER, handover_entries)
            .map_max_entries(maps::name::FLOWS, flow_entries)
            .override_global("WAYLAY_MPTCP", &u8::from(Path::new(MPTCP).exists()), true)
            .override_global(aya_log::LEVEL, &log::level(), true)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/waylay-ebpf")))
            .map_err(KernelError::load)?;
        // Those for DNS are loaded only where they are attached.
        let wanted = |name: &str| !dns::PROGRAMS.iter().any(|(dns, _)| *dns == name);
        for (name, program) in ebpf.programs_mut().filter(|(name, _)| wanted(name)) {
            let loaded = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::CgroupSockopt(program) => program.load(),
                Program::SockOps(program) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            loaded.map_err(|source| KernelError::program(format!("load the program {name}"), source))?;
        }
        let names: Vec<String> =
            ebpf.maps().map(|(name, _)| name.to_owned()).filter(|name| name != log::RING).collect();
        let maps = names.into_iter().filter_map(|name| ebpf.take_map(&name).map(|map| (name, map))).collect();
        Ok(Self { programs: Some(ebpf), maps })
    }

    /// Keeps the maps only. The programs live in the kernel for as long as links hold them; what is forgotten here is how
    /// they were loaded, most of a megabyte.
    pub(super) fn forget_programs(&mut self) {
        self.programs = None;
    }

    /// The reader of what the programs log; there is one.
    pub(super) fn log(&mut self) -> Result<Log, KernelError> {
        Log::new(self.programs.as_mut().ok_or(KernelError::Incomplete(log::RING))?)
    }

    /// A handle of its own on the map `name`.
    pub(super) fn map(&self, name: &'static str) -> Result<MapData, KernelError> {
        let map = self.maps.get(name).ok_or(KernelError::Incomplete(name))?;
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

    /// A program for DNS, loaded now.
    pub(super) fn dns(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, KernelError> {
        let program = self.sock_addr(name)?;
        program.load().map_err(|source| KernelError::program(format!("load the program {name}"), source))?;
        Ok(program)
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
        let programs = self.programs.as_mut().ok_or(KernelError::Incomplete(name))?;
        let program = programs.program_mut(name).ok_or(KernelError::Incomplete(name))?;
        program.try_into().map_err(|_| KernelError::Incomplete(name))
    }
}
