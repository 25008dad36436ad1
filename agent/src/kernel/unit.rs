//! The cgroup of a systemd unit: systemd names the directory of a unit's cgroup by the unit, so no D-Bus is needed, and
//! it works from a container that sees the host's cgroups. Units of the users' own managers are found as well.

use std::{
    fs,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{KernelError, cgroup, processes::ProcessError};

/// Kinds of units that have processes.
const KINDS: [&str; 5] = [".service", ".scope", ".slice", ".mount", ".socket"];
/// How deep units are looked for: slices, a user's manager, its slices, and containers inside them.
const DEPTH_MAX: usize = 16;

#[derive(Debug, Error)]
pub enum UnitError {
    #[error(
        "unit {unit}: it has no cgroup, and systemd does not run here (there is no /run/systemd/system): choose by cgroup, \
         user, pid or comm"
    )]
    NoSystemd { unit: String },
    #[error("unit {unit} is a template: name an instance such as {stem}@1{kind}, or the slice of all of them")]
    Template { unit: String, stem: String, kind: String },
    #[error("unit {unit}: several run by this name, choose one by its cgroup: {}", list(cgroups))]
    Ambiguous { unit: String, cgroups: Vec<PathBuf> },
    #[error("`{unit}` is no name of a unit")]
    Name { unit: String },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Who runs a unit. The nearest manager that knows it is meant, as with `systemctl`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Manager {
    System,
    User,
    /// Of a container, say.
    Nested,
}

/// The unit's name with its kind; without one it is a service, as `systemctl` has it.
pub(super) fn full_name(unit: &str) -> Result<String, UnitError> {
    let bad =
        unit.is_empty() || unit.starts_with('.') || unit.contains(['/', '\0']) || unit.contains(char::is_whitespace);
    if bad {
        return Err(UnitError::Name { unit: unit.to_owned() });
    }
    let kind = KINDS.into_iter().find(|kind| unit.ends_with(kind));
    let full = if kind.is_some() { unit.to_owned() } else { format!("{unit}.service") };
    let (stem, kind) = full.rsplit_once('.').unwrap_or((&full, ""));
    if let Some(stem) = stem.strip_suffix('@') {
        let (stem, kind) = (stem.to_owned(), format!(".{kind}"));
        return Err(UnitError::Template { unit: full, stem, kind });
    }
    Ok(full)
}

/// Is systemd this machine's init system? `sd_booted(3)`.
pub(super) fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The cgroup of the unit with this full name; `None`: it does not run.
pub(super) fn find(name: &str) -> Result<Option<PathBuf>, KernelError> {
    let mut found = Vec::new();
    let mount = cgroup::mount_point()?;
    walk(&mount, name, Manager::System, DEPTH_MAX, &mut found);
    let Some(nearest) = found.iter().map(|(manager, _)| *manager).min() else { return Ok(None) };
    let mut paths: Vec<_> =
        found.into_iter().filter(|(manager, _)| *manager == nearest).map(|(_, path)| path).collect();
    match paths.len() {
        1 => Ok(paths.pop()),
        _ => {
            paths.sort();
            let cgroups = paths.iter().map(|path| below(&mount, path)).collect();
            Err(ProcessError::from(UnitError::Ambiguous { unit: name.to_owned(), cgroups }).into())
        }
    }
}

/// As the configuration names it.
fn below(mount: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(mount).map_or_else(|_| path.to_owned(), |path| Path::new("/").join(path))
}

/// Cgroups come and go meanwhile: what cannot be read is left out.
fn walk(dir: &Path, name: &str, manager: Manager, depth: usize, found: &mut Vec<(Manager, PathBuf)>) {
    let Some(depth) = depth.checked_sub(1) else { return };
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let file_name = entry.file_name();
        let Some(this) = file_name.to_str() else { continue };
        // systemd puts an underscore before names that the kernel's own files could have.
        if this == name || this.strip_prefix('_') == Some(name) {
            found.push((manager, entry.path()));
            continue;
        }
        walk(&entry.path(), name, inside(manager, this), depth, found);
    }
}

/// Whose units lie in a cgroup of this name.
fn inside(manager: Manager, name: &str) -> Manager {
    match manager {
        _ if name.ends_with(".slice") => manager,
        Manager::System if name.starts_with("user@") && name.ends_with(".service") => Manager::User,
        _ => Manager::Nested,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_in(cgroups: &[&str], name: &str) -> Vec<String> {
        let root = tempfile::tempdir().expect("a folder");
        for cgroup in cgroups {
            fs::create_dir_all(root.path().join(cgroup)).expect("a folder");
        }
        let mut found = Vec::new();
        walk(root.path(), name, Manager::System, DEPTH_MAX, &mut found);
        found.sort();
        let text = |(manager, path): (Manager, PathBuf)| format!("{manager:?} {}", below(root.path(), &path).display());
        found.into_iter().map(text).collect()
    }

    const TREE: [&str; 5] = [
        "system.slice/nginx.service",
        "system.slice/system-getty.slice/getty@tty1.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
        "user.slice/user-1000.slice/session-2.scope",
        "system.slice/docker-0a.scope/system.slice/nginx.service",
    ];

    #[test]
    fn units_are_found_with_their_managers() {
        for (name, expected) in [
            (
                "nginx.service",
                &[
                    "System /system.slice/nginx.service",
                    "User /user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
                    "Nested /system.slice/docker-0a.scope/system.slice/nginx.service",
                ][..],
            ),
            ("getty@tty1.service", &["System /system.slice/system-getty.slice/getty@tty1.service"]),
            ("app.slice", &["User /user.slice/user-1000.slice/user@1000.service/app.slice"]),
            ("session-2.scope", &["System /user.slice/user-1000.slice/session-2.scope"]),
            ("user@1000.service", &["System /user.slice/user-1000.slice/user@1000.service"]),
            ("apache.service", &[]),
        ] {
            assert_eq!(found_in(&TREE, name), expected, "{name}");
        }
    }

    #[test]
    fn names_without_a_kind_are_services_and_templates_are_refused() {
        for (name, expected) in [
            ("nginx", Ok("nginx.service")),
            ("nginx.service", Ok("nginx.service")),
            ("org.example.app", Ok("org.example.app.service")),
            ("user.slice", Ok("user.slice")),
            ("getty@tty1", Ok("getty@tty1.service")),
            ("getty@", Err("name an instance such as getty@1.service")),
            ("a/b", Err("is no name of a unit")),
            ("", Err("is no name of a unit")),
        ] {
            match (full_name(name), expected) {
                (Ok(full), Ok(expected)) => assert_eq!(full, expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }
}
