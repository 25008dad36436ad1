//! Whose connections are taken: rows of processes, and the question whether one of them is the caller.
//!
//! Before it: the agent resolves names into numbers and writes a [`ProcessTable`]. After it: the connect hooks ask
//! [`ProcessTable::chooses`]. Pure code; the same in the kernel and in the tests.

use crate::flow::ProcessStamp;

/// Rows of one table. The hook asks all of them, and one may cost it a call of the kernel.
pub const PROCESS_ROWS: usize = 16;

/// Bits of [`ProcessRow::criteria`]: which of its fields count.
const UID: u32 = 1;
const PID: u32 = 1 << 1;
const COMM: u32 = 1 << 2;
const CGROUP: u32 = 1 << 3;

/// Processes: those for which everything holds that the row gives. A row that gives nothing is nobody.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessRow {
    cgroup_id: u64,
    comm: [u8; 16],
    uid: u32,
    pid: u32,
    cgroup_level: u32,
    criteria: u32,
}

const _: () = assert!(size_of::<ProcessRow>() == 40);

impl ProcessRow {
    pub const NOBODY: Self = Self { cgroup_id: 0, comm: [0; 16], uid: 0, pid: 0, cgroup_level: 0, criteria: 0 };

    /// Of the user with this id, in the first user namespace.
    #[must_use]
    pub const fn with_uid(mut self, uid: u32) -> Self {
        self.uid = uid;
        self.criteria |= UID;
        self
    }

    /// The process with this id, in the first pid namespace; all of its threads.
    #[must_use]
    pub const fn with_pid(mut self, pid: u32) -> Self {
        self.pid = pid;
        self.criteria |= PID;
        self
    }

    /// Threads of this name, padded with zeros; the kernel keeps 15 bytes.
    #[must_use]
    pub const fn with_comm(mut self, comm: [u8; 16]) -> Self {
        self.comm = comm;
        self.criteria |= COMM;
        self
    }

    /// In the cgroup v2 with this id, or below it. `level`: how far it lies below the root of the hierarchy, which is 0.
    #[must_use]
    pub const fn with_cgroup(mut self, id: u64, level: u32) -> Self {
        self.cgroup_id = id;
        self.cgroup_level = level;
        self.criteria |= CGROUP;
        self
    }

    /// The id it asks for, if it does.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        (self.criteria & UID != 0).then_some(self.uid)
    }

    /// As [`Self::uid`].
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        (self.criteria & PID != 0).then_some(self.pid)
    }

    /// The name it asks for, padded with zeros.
    #[must_use]
    pub fn comm(&self) -> Option<&[u8; 16]> {
        (self.criteria & COMM != 0).then_some(&self.comm)
    }

    /// The id of the cgroup it asks for.
    #[must_use]
    pub fn cgroup_id(&self) -> Option<u64> {
        (self.criteria & CGROUP != 0).then_some(self.cgroup_id)
    }

    /// `ancestor`: the id of the caller's cgroup at a level, 0 for none; asked for only when all else holds.
    #[inline(always)]
    fn is(&self, caller: &ProcessStamp, ancestor: impl Fn(u32) -> u64) -> bool {
        self.criteria != 0
            && (self.criteria & UID == 0 || self.uid == caller.uid)
            && (self.criteria & PID == 0 || self.pid == caller.pid)
            && (self.criteria & COMM == 0 || words(&self.comm) == words(&caller.comm))
            && (self.criteria & CGROUP == 0 || self.cgroup_id == ancestor(self.cgroup_level))
    }
}

/// Two comparisons instead of sixteen, and no call of a function that the kernel side does not have.
#[inline(always)]
fn words(comm: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *comm;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

/// Everybody, or those of the rows. It speaks for one network namespace, the agent's own: pods are chosen otherwise.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessTable {
    netns_cookie: u64,
    /// Zero: everybody. A table can be restricted and have no rows (the one process it named has ended): nobody.
    restricted: u32,
    rows_used: u32,
    rows: [ProcessRow; PROCESS_ROWS],
}

const _: () = assert!(size_of::<ProcessTable>() == 16 + PROCESS_ROWS * 40);

impl ProcessTable {
    /// What an empty map holds.
    pub const EVERYBODY: Self =
        Self { netns_cookie: 0, restricted: 0, rows_used: 0, rows: [ProcessRow::NOBODY; PROCESS_ROWS] };

    /// Those of `rows`, in the network namespace `netns_cookie`. `None`: more than [`PROCESS_ROWS`].
    #[must_use]
    pub fn restricted(netns_cookie: u64, rows: &[ProcessRow]) -> Option<Self> {
        let mut table = Self { netns_cookie, restricted: 1, rows_used: rows.len() as u32, ..Self::EVERYBODY };
        table.rows.get_mut(..rows.len())?.copy_from_slice(rows);
        Some(table)
    }

    /// The network namespace it speaks for, and the rows that are in force; `None`: everybody.
    #[must_use]
    pub fn rows(&self) -> Option<(u64, &[ProcessRow])> {
        let used = (self.rows_used as usize).min(PROCESS_ROWS);
        (self.restricted != 0).then(|| (self.netns_cookie, &self.rows[..used]))
    }

    /// Whether it asks who in this network namespace the caller is. False: [`Self::chooses`] everybody there.
    #[inline(always)]
    #[must_use]
    pub const fn asks_in(&self, netns_cookie: u64) -> bool {
        self.restricted != 0 && self.netns_cookie == netns_cookie
    }

    /// Are the caller's connections taken? `ancestor` as the kernel's `bpf_get_current_ancestor_cgroup_id`.
    #[inline(always)]
    #[must_use]
    pub fn chooses(&self, caller: &ProcessStamp, ancestor: impl Fn(u32) -> u64) -> bool {
        if !self.asks_in(caller.netns_cookie) {
            return true;
        }
        for (index, row) in self.rows.iter().enumerate() {
            if index as u32 >= self.rows_used {
                return false;
            }
            if row.is(caller, &ancestor) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETNS: u64 = 7;

    fn comm(name: &str) -> [u8; 16] {
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name.as_bytes());
        comm
    }

    fn caller() -> ProcessStamp {
        ProcessStamp { netns_cookie: NETNS, uid: 1000, pid: 42, comm: comm("curl"), ..ProcessStamp::NONE }
    }

    /// The caller sits in 30, below 20, below 10, below the root.
    fn ancestor(level: u32) -> u64 {
        [1, 10, 20, 30].get(level as usize).copied().unwrap_or(0)
    }

    fn chooses(rows: &[ProcessRow]) -> bool {
        ProcessTable::restricted(NETNS, rows).expect("few rows").chooses(&caller(), ancestor)
    }

    #[test]
    fn every_criterion_holds_or_not_by_itself() {
        let row = ProcessRow::NOBODY;
        for (row, expected) in [
            (row.with_uid(1000), true),
            (row.with_uid(0), false),
            (row.with_pid(42), true),
            (row.with_pid(43), false),
            (row.with_comm(comm("curl")), true),
            (row.with_comm(comm("curly")), false),
            (row.with_comm(comm("cur")), false),
            (row.with_cgroup(1, 0), true),
            (row.with_cgroup(20, 2), true),
            (row.with_cgroup(30, 3), true),
            // The right cgroup at another level is another cgroup.
            (row.with_cgroup(20, 1), false),
            (row.with_cgroup(40, 4), false),
            (row, false),
        ] {
            assert_eq!(chooses(&[row]), expected, "{row:?}");
        }
    }

    #[test]
    fn all_criteria_of_a_row_and_any_row() {
        let right = ProcessRow::NOBODY.with_uid(1000).with_pid(42).with_comm(comm("curl")).with_cgroup(10, 1);
        assert!(chooses(&[right]));
        for wrong in [right.with_uid(1), right.with_pid(1), right.with_comm(comm("wget")), right.with_cgroup(11, 1)] {
            assert!(!chooses(&[wrong]), "{wrong:?}");
            assert!(chooses(&[wrong, wrong, right]));
        }
        let wrong = ProcessRow::NOBODY.with_uid(1);
        let mut rows = [wrong; PROCESS_ROWS];
        assert!(!chooses(&rows));
        rows[PROCESS_ROWS - 1] = right;
        assert!(chooses(&rows));
    }

    #[test]
    fn no_restriction_is_everybody_and_no_rows_are_nobody() {
        assert!(ProcessTable::EVERYBODY.chooses(&caller(), ancestor));
        assert!(!chooses(&[]));
        assert_eq!(ProcessTable::restricted(NETNS, &[ProcessRow::NOBODY; PROCESS_ROWS + 1]), None);
    }

    #[test]
    fn the_rows_speak_for_one_network_namespace() {
        let table = ProcessTable::restricted(NETNS + 1, &[]).expect("no rows");
        assert!(table.chooses(&caller(), ancestor));
    }
}
