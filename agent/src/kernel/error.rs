//! What can go wrong between the agent and the kernel; every startup error names its remedy.

use std::{io, net::SocketAddr, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::{policy::PolicyError, processes::ProcessError};

/// An error of the kernel side.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error("{doing} is not permitted; {}", crate::privilege::remedy())]
    NotPermitted {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the agent's programs cannot be loaded; {}", crate::privilege::remedy())]
    MissingCapabilities,
    #[error("Linux {running} is too old: waylay needs {needed} or later ({reason})")]
    KernelTooOld { running: String, needed: &'static str, reason: &'static str },
    #[error("the kernel has no type information at {0}: use a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf(&'static str),
    #[error("no cgroup v2 file system is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`")]
    NoCgroup2,
    #[error("{path} is not a cgroup v2 directory: name one below {mount}")]
    NotACgroup { path: PathBuf, mount: PathBuf },
    #[error(
        "this process's cgroup v2 path {0} lies outside the mounted tree: mount the cgroup v2 file system of this cgroup namespace"
    )]
    OwnCgroupHidden(String),
    #[error(
        "{family} connections would be intercepted, but no {family} address is there to receive them: \
         listen on an {family} address as well, or exclude {everything}"
    )]
    NoListener { family: &'static str, everything: &'static str },
    #[error(
        "connections cannot be redirected to {0}: name an address that can be connected to, such as the loopback address"
    )]
    BadRedirect(SocketAddr),
    #[error(
        "the agent with pid {pid} intercepts this process, and would be intercepted in {cgroup} itself: the two would send \
         every connection back and forth for ever; stop it first, name another cgroup, \
         or let their policies include different destinations"
    )]
    Rival { pid: u32, cgroup: PathBuf },
    #[error(
        "the agent with pid {pid} takes what arrives in the network namespace {netns_cookie}, as would this one: the two would \
         hand every connection back and forth for ever; stop it first, or let their policies include different ports"
    )]
    InboundRival { pid: u32, netns_cookie: u64 },
    #[error("the network namespace {0} is not enrolled: enrol it first")]
    NotEnrolled(u64),
    #[error("nobody listens for what arrives in the network namespace {0}: enrol it with a listening socket")]
    NoInboundListener(u64),
    #[error("the interception policy cannot be put into the kernel")]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Processes(#[from] ProcessError),
    #[error("the kernel refused the programs of this build")]
    Load(#[source] Box<EbpfError>),
    #[error("the kernel refused to {doing}")]
    Program {
        doing: String,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("the embedded programs have no `{0}`: the build is broken, build again")]
    Incomplete(&'static str),
    #[error("{doing} failed")]
    Map {
        doing: String,
        #[source]
        source: Box<MapError>,
    },
    #[error("{doing} failed")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the maps of instance {instance} have layout {found}, this build reads layout {expected}: use the waylay that wrote them"
    )]
    Layout { instance: u32, found: u32, expected: u32 },
    #[error(
        "there is no room in the kernel's tables to dispatch connections to {destination} there: the agent serves them"
    )]
    DispatchFull { destination: SocketAddr },
    #[error("the decisions are being traced already: one reader at a time")]
    TraceBusy,
}

impl KernelError {
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        if is_refused(&source) {
            return Self::NotPermitted { doing, source: source.into() };
        }
        Self::Io { doing, source }
    }

    pub(super) fn map(doing: impl Into<String>, source: MapError) -> Self {
        let doing = doing.into();
        if permission_denied(&source) {
            return Self::NotPermitted { doing, source: source.into() };
        }
        Self::Map { doing, source: Box::new(source) }
    }

    pub(super) fn program(doing: impl Into<String>, source: ProgramError) -> Self {
        let doing = doing.into();
        if permission_denied(&source) {
            return Self::NotPermitted { doing: format!("to {doing}"), source: source.into() };
        }
        Self::Program { doing, source: Box::new(source) }
    }

    pub(super) fn load(source: EbpfError) -> Self {
        if permission_denied(&source) {
            return Self::NotPermitted { doing: "loading eBPF programs".into(), source: source.into() };
        }
        Self::Load(Box::new(source))
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Is there an EPERM or EACCES anywhere below `error`?
fn permission_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(is_refused) {
            return true;
        }
        cause = error.source();
    }
    false
}
