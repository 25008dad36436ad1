//! What the running kernel must have, asked before anything is loaded, so that the answer is a sentence and not a verifier's
//! log.

use std::{fs, path::Path};

use super::KernelError;

/// `bpf_set_retval` and the helpers that tell the calling task, in connect hooks.
const NEEDED: (u32, u32) = (6, 1);
/// The same, for people.
pub const NEEDED_TEXT: &str = "6.1";
const NEEDED_REASON: &str = "the connect hooks set the error of a refused connection and ask for the calling process";
/// The kernel's type information.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn check() -> Result<(), KernelError> {
    kernel()?;
    if !Path::new(BTF).exists() {
        return Err(KernelError::NoBtf(BTF));
    }
    // Asked before the kernel is: without CAP_PERFMON it says no in pages of the verifier's log.
    if !crate::privilege::missing().is_empty() {
        return Err(KernelError::MissingCapabilities);
    }
    Ok(())
}

/// The running kernel's release.
///
/// # Errors
/// It is too old.
pub fn kernel() -> Result<String, KernelError> {
    let path = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(path).map_err(|source| KernelError::io(format!("reading {path}"), source))?;
    if version(&release).is_some_and(|running| running < NEEDED) {
        return Err(KernelError::KernelTooOld {
            running: release.trim().to_owned(),
            needed: NEEDED_TEXT,
            reason: NEEDED_REASON,
        });
    }
    Ok(release.trim().to_owned())
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
