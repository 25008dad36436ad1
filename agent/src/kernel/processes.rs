//! `intercept.processes`: from names to rows that the connect hooks compare, and back again when what was named goes.
//!
//! Before it: the configuration. After it: [`waylay_common::processes`]. A pid may be given to another process when its
//! own has ended, and a unit gets a new cgroup with each start, so the rows are looked after with every heartbeat.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use thiserror::Error;
use waylay_common::{
    processes::{PROCESS_ROWS, ProcessRow, ProcessTable},
    settings::Switch,
};

use super::{
    Kernel, KernelError,
    cgroup::{self, Cgroup},
    maps, unit,
};
use crate::snapshot::ProcessRule;

/// The inode of the first pid namespace: `PROC_PID_INIT_INO` of the kernel.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// What the kernel keeps of a thread's name, and one byte for its end.
const COMM_LEN: usize = 16;
/// Beats between two looks for a unit that does not run: about one second. A look is a walk through all cgroups.
const SEARCH_BEATS: u32 = 4;

/// Why a row of `intercept.processes` names nobody.
#[derive(Debug, Error)]
pub enum ProcessError {
    #[error("intercept.processes has {found} rows, at most {PROCESS_ROWS} are possible")]
    TooMany { found: usize },
    #[error("there is no process with pid {pid}")]
    NoProcess { pid: u32 },
    #[error(
        "pid {pid}: this agent sees other pids than the kernel's hooks do: run it in the host's pid namespace (hostPID), \
         or choose by cgroup, user or comm"
    )]
    PidNamespace { pid: u32 },
    #[error("pid {pid} cannot be watched")]
    Pid {
        pid: u32,
        #[source]
        source: std::io::Error,
    },
    #[error("a row of intercept.processes has one cgroup: take `unit` or `cgroup` away")]
    TwoCgroups,
    #[error(transparent)]
    Unit(#[from] unit::UnitError),
    #[error(
        "{}: its level in the hierarchy cannot be told from inside this cgroup namespace: run in that of the host, or choose \
         by user, comm or pid",
        path.display()
    )]
    Level { path: PathBuf },
}

/// The rows that are chosen, kept true.
pub(super) struct Chosen {
    tables: maps::Processes,
    /// The table in force: 0 or 1.
    slot: u32,
    netns_cookie: u64,
    rows: Option<Vec<Row>>,
    written: ProcessTable,
    beats: u32,
}

/// One rule, and what it names now.
struct Row {
    fixed: ProcessRow,
    /// Of the process it names; readable when that has ended.
    pidfd: Option<OwnedFd>,
    ended: bool,
    cgroup: Option<Watched>,
}

struct Watched {
    named: Named,
    found: Option<Found>,
}

enum Named {
    Path(PathBuf),
    Unit(String),
}

#[derive(Clone)]
struct Found {
    path: PathBuf,
    id: u64,
    level: u32,
}

impl Chosen {
    /// Everybody, until [`Self::replace`] says otherwise.
    pub(super) fn new(tables: maps::Processes, netns_cookie: u64) -> Self {
        Self { tables, slot: 0, netns_cookie, rows: None, written: ProcessTable::EVERYBODY, beats: 0 }
    }

    /// Connections of these processes are taken from now on; of all when `rules` is empty.
    ///
    /// # Errors
    /// A rule names nobody; what was chosen before stays.
    pub(super) fn replace(&mut self, rules: &[ProcessRule], kernel: &Kernel) -> Result<(), KernelError> {
        if rules.len() > PROCESS_ROWS {
            return Err(ProcessError::TooMany { found: rules.len() }.into());
        }
        let rows: Vec<Row> = rules.iter().map(Row::new).collect::<Result<_, _>>()?;
        let rows = (!rows.is_empty()).then_some(rows);
        self.write(self.table(rows.as_deref()), kernel)?;
        self.rows = rows;
        Ok(())
    }

    /// Looks whether what the rows name has ended, started or moved.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub(super) fn refresh(&mut self, kernel: &Kernel) -> Result<(), KernelError> {
        let Some(rows) = &mut self.rows else { return Ok(()) };
        self.beats = self.beats.wrapping_add(1);
        for row in rows.iter_mut() {
            row.refresh(self.beats.is_multiple_of(SEARCH_BEATS));
        }
        let table = self.table(self.rows.as_deref());
        if table == self.written { Ok(()) } else { self.write(table, kernel) }
    }

    fn table(&self, rows: Option<&[Row]>) -> ProcessTable {
        let Some(rows) = rows else { return ProcessTable::EVERYBODY };
        let rows: Vec<_> = rows.iter().filter_map(Row::now).collect();
        // There are never more than were let in.
        ProcessTable::restricted(self.netns_cookie, &rows).unwrap_or(ProcessTable::EVERYBODY)
    }

    /// A hook sees the old table or the new one, whole: the new one is written beside it.
    fn write(&mut self, table: ProcessTable, kernel: &Kernel) -> Result<(), KernelError> {
        let next = 1 - self.slot;
        let doing = "writing whose connections are taken";
        self.tables.set(next, table, 0).map_err(|source| KernelError::map(doing, source))?;
        kernel.set(Switch::Processes, next.into())?;
        // Last: until then the table itself says that it does not ask.
        kernel.set(Switch::Choosing, table.rows().is_some().into())?;
        (self.slot, self.written) = (next, table);
        Ok(())
    }
}

impl Row {
    fn new(rule: &ProcessRule) -> Result<Self, KernelError> {
        let ProcessRule { uid, comm, pid, unit, cgroup } = rule;
        let mut fixed = ProcessRow::NOBODY;
        if let Some(uid) = uid {
            fixed = fixed.with_uid(*uid);
        }
        if let Some(comm) = comm {
            fixed = fixed.with_comm(kept(comm));
        }
        let pidfd = pid.map(watch).transpose()?;
        if let Some(pid) = pid {
            fixed = fixed.with_pid(*pid);
        }
        let named = match (unit, cgroup) {
            (None, None) => None,
            (Some(unit), None) => Some(Named::Unit(unit::full_name(unit).map_err(ProcessError::from)?)),
            (None, Some(path)) => Some(Named::Path(cgroup::below_mount(path)?)),
            (Some(_), Some(_)) => return Err(ProcessError::TwoCgroups.into()),
        };
        let cgroup = named.map(Watched::new).transpose()?;
        Ok(Self { fixed, pidfd, ended: false, cgroup })
    }

    /// `None`: what it names is not there now.
    fn now(&self) -> Option<ProcessRow> {
        if self.ended {
            return None;
        }
        match &self.cgroup {
            None => Some(self.fixed),
            Some(watched) => watched.found.as_ref().map(|found| self.fixed.with_cgroup(found.id, found.level)),
        }
    }

    fn refresh(&mut self, search: bool) {
        if !self.ended && self.pidfd.as_ref().is_some_and(is_readable) {
            self.ended = true;
            self.pidfd = None;
            tracing::warn!("a process that intercept.processes names by its pid has ended: its row is nobody's now");
        }
        if let Some(watched) = &mut self.cgroup {
            watched.refresh(search);
        }
    }
}

impl Watched {
    fn new(named: Named) -> Result<Self, KernelError> {
        let found = match &named {
            Named::Path(path) => Some(found(path)?),
            Named::Unit(name) => match unit::find(name)? {
                Some(path) => Some(found(&path)?),
                None if unit::systemd_runs() => {
                    tracing::warn!(unit = name, "the unit does not run: its connections are taken once it has started");
                    None
                }
                None => return Err(ProcessError::from(unit::UnitError::NoSystemd { unit: name.clone() }).into()),
            },
        };
        Ok(Self { named, found })
    }

    fn refresh(&mut self, search: bool) {
        let there = |found: &Found| fs::metadata(&found.path).is_ok_and(|metadata| metadata.ino() == found.id);
        if self.found.as_ref().is_some_and(there) {
            return;
        }
        let gone = self.found.take();
        let now = match &self.named {
            Named::Path(path) => found(path).ok(),
            // Where it was it usually is again, and to look there is no walk.
            Named::Unit(name) => match gone.as_ref().and_then(|gone| found(&gone.path).ok()) {
                None if search => unit::find(name).ok().flatten().and_then(|path| found(&path).ok()),
                same => same,
            },
        };
        match (&gone, &now) {
            (Some(gone), None) => tracing::info!(cgroup = %gone.path.display(), "a chosen cgroup is gone"),
            (_, Some(now)) => tracing::info!(cgroup = %now.path.display(), "a chosen cgroup is there anew"),
            (None, None) => {}
        }
        self.found = now;
    }
}

fn found(path: &Path) -> Result<Found, KernelError> {
    let cgroup = Cgroup::open(path)?;
    let level = cgroup.level().map_err(|path| ProcessError::Level { path })?;
    Ok(Found { path: cgroup.path().to_owned(), id: cgroup.id(), level })
}

/// As the kernel keeps it: it cuts the names of programs, too.
fn kept(comm: &str) -> [u8; COMM_LEN] {
    let mut kept = [0; COMM_LEN];
    let len = comm.len().min(COMM_LEN - 1);
    kept[..len].copy_from_slice(&comm.as_bytes()[..len]);
    kept
}

fn watch(pid: u32) -> Result<OwnedFd, ProcessError> {
    let ours = fs::metadata("/proc/self/ns/pid").map(|metadata| metadata.ino());
    if ours.is_ok_and(|ino| ino != FIRST_PID_NAMESPACE) {
        return Err(ProcessError::PidNamespace { pid });
    }
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ProcessError::NoProcess { pid })?;
    pidfd_open(number, PidfdFlags::empty()).map_err(|error| match error {
        // EINVAL, and ENOENT since Linux 6.15: the number of a thread that is not its process's first.
        Errno::SRCH | Errno::INVAL | Errno::NOENT => ProcessError::NoProcess { pid },
        source => ProcessError::Pid { pid, source: source.into() },
    })
}

fn is_readable(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_as_the_kernel_cuts_it() {
        assert_eq!(&kept("curl"), b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&kept("chromium-browser"), b"chromium-browse\0");
    }

    #[test]
    fn a_pid_is_that_of_a_process() {
        assert!(watch(std::process::id()).is_ok_and(|pidfd| !is_readable(&pidfd)));
        for pid in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert!(matches!(watch(pid), Err(ProcessError::NoProcess { .. })), "{pid}");
        }
    }

    #[test]
    fn the_pidfd_of_a_process_that_ended_is_readable() {
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let pidfd = watch(child.id()).expect("not waited for yet");
        child.wait().expect("it ends");
        assert!(is_readable(&pidfd));
    }
}
