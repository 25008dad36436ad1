//! `intercept.processes`: whose connections are taken.

use nix::unistd::User;

use super::{Resolver, intercept::cgroup};
use crate::config::diagnostic::Path;
use crate::config::raw::intercept::ProcessRule as Raw;
use crate::snapshot::ProcessRule;

/// Rows, at most: the hooks go through all of them for every connect(2).
const MAX_PROCESS_RULES: usize = waylay_common::processes::PROCESS_ROWS;

/// Bytes of a process's name: the kernel keeps 16, the last one is zero.
const MAX_COMM_BYTES: usize = 15;

/// What units end in, systemd.unit(5). Processes are in the control groups of these three alone.
const UNIT_SUFFIXES: [&str; 3] = [".service", ".scope", ".slice"];

/// Resolves all rows.
pub fn processes(resolver: &mut Resolver<'_>, raw: &[Raw], path: &Path<'_>) -> Option<Vec<ProcessRule>> {
    let rules = resolver.each(raw, path, process_rule);
    if raw.len() > MAX_PROCESS_RULES {
        let message = format!(
            "{} rows, at most {MAX_PROCESS_RULES} are possible: put the processes into one control group",
            raw.len()
        );
        resolver.error(path, message);
        return None;
    }
    rules
}

fn process_rule(resolver: &mut Resolver<'_>, raw: &Raw, path: &Path<'_>) -> Option<ProcessRule> {
    let Raw { user, comm, pid, unit, cgroup: group } = raw;
    if user.is_none() && comm.is_none() && pid.is_none() && unit.is_none() && group.is_none() {
        resolver.error(path, "a row needs `user`, `comm`, `pid`, `unit` or `cgroup`: leave `processes` out to take those of every process");
        return None;
    }
    let one_group = resolver.at_most_one(path, &[("unit", unit.is_some()), ("cgroup", group.is_some())]);
    let uid = resolver.maybe(user.as_ref(), &path.field("user"), |resolver, name, path| uid(resolver, name, path));
    let comm = resolver.maybe(comm.as_ref(), &path.field("comm"), |resolver, name, path| comm_of(resolver, name, path));
    let pid = resolver.maybe(pid.as_ref(), &path.field("pid"), |resolver, pid, path| {
        resolver.within(path, *pid, 1..=i32::MAX.unsigned_abs())
    });
    let unit = resolver.maybe(unit.as_ref(), &path.field("unit"), |resolver, name, path| unit_of(resolver, name, path));
    let cgroup =
        resolver.maybe(group.as_ref(), &path.field("cgroup"), |resolver, group, path| cgroup(resolver, group, path));
    one_group?;
    Some(ProcessRule { uid: uid?, comm: comm?, pid: pid?, unit: unit?, cgroup: cgroup? })
}

/// A user's number, whether or not it has a name; or the number of the user called so.
fn uid(resolver: &mut Resolver<'_>, name: &str, path: &Path<'_>) -> Option<u32> {
    if let Ok(uid) = name.parse() {
        return Some(uid);
    }
    let message = match User::from_name(name) {
        Ok(Some(user)) => return Some(user.uid.as_raw()),
        Ok(None) => format!("there is no user `{name}` on this machine: give a name that `id` knows, or the number"),
        Err(error) => format!("the user `{name}` cannot be looked up ({error}): give the number"),
    };
    resolver.error(path, message);
    None
}

fn comm_of(resolver: &mut Resolver<'_>, name: &str, path: &Path<'_>) -> Option<String> {
    let message = if name.is_empty() {
        "must not be empty: give a name as `ps -o comm` shows it".to_owned()
    } else if name.contains('/') {
        let file = name.rsplit('/').next().unwrap_or_default();
        format!("is the name alone, without a path: write `{file}`")
    } else if name.len() > MAX_COMM_BYTES {
        let cut = &name[..name.floor_char_boundary(MAX_COMM_BYTES)];
        format!("`{name}` has {} bytes and the kernel keeps {MAX_COMM_BYTES} of a name: write `{cut}`", name.len())
    } else {
        return Some(name.to_owned());
    };
    resolver.error(path, message);
    None
}

/// A name without a suffix is a service's, as for `systemctl`.
fn unit_of(resolver: &mut Resolver<'_>, name: &str, path: &Path<'_>) -> Option<String> {
    let message = if name.is_empty() || name.contains('/') {
        format!("expected the name of a systemd unit such as nginx.service, found `{name}`")
    } else if UNIT_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
        return Some(name.to_owned());
    } else if [".socket", ".target", ".timer", ".mount", ".path", ".device", ".swap", ".automount"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
    {
        format!("`{name}` has no processes: give a unit that ends in {}", UNIT_SUFFIXES.join(", "))
    } else {
        return Some(format!("{name}.service"));
    };
    resolver.error(path, message);
    None
}
