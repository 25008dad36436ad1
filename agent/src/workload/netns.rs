//! Where a workload's network namespace is.
//!
//! Before: what a runtime tells of it. After: [`crate::place`].

use std::io;
use std::path::{Path, PathBuf};

use super::Workload;
use crate::netns::{Netns, NetnsThread, own_cookie};

/// Why a workload's network namespace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Everything in it would be taken for the workload's: the agent's own connections too.
    #[error("it is in the agent's own network namespace")]
    Own,
    /// Neither a path nor a process.
    #[error("the runtime does not tell where its network namespace is")]
    Unknown,
    /// The namespace is gone, is not visible here, or may not be entered.
    #[error("opening its network namespace {path}")]
    Open {
        /// The last that was tried.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Opens the network namespace of `workload`: where the runtime has bound it, else that of its process.
///
/// # Errors
/// It cannot be opened, or it is the agent's own.
pub async fn netns_of(workload: &Workload, thread: &NetnsThread) -> Result<Netns, NetnsError> {
    let bound = workload.netns_path.iter().cloned();
    let of_process = workload.pid.map(|pid| Path::new("/proc").join(pid.to_string()).join("ns/net"));
    let mut result = Err(NetnsError::Unknown);
    for path in bound.chain(of_process) {
        match Netns::open(&path, thread).await {
            Ok(netns) => return not_our_own(netns),
            // The file may be in a mount namespace that is not ours: the process tells then.
            Err(source) => result = Err(NetnsError::Open { path, source }),
        }
    }
    result
}

fn not_our_own(netns: Netns) -> Result<Netns, NetnsError> {
    let own = own_cookie().map_err(|source| NetnsError::Open { path: "/proc/self/ns/net".into(), source })?;
    if netns.cookie() == own { Err(NetnsError::Own) } else { Ok(netns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(netns_path: Option<&str>, pid: Option<u32>) -> Workload {
        Workload { netns_path: netns_path.map(PathBuf::from), pid, ..Workload::default() }
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_told() {
        let thread = NetnsThread::start().expect("thread");
        let of = async |workload| netns_of(&workload, &thread).await.expect_err("no namespace");
        assert!(matches!(of(workload(None, None)).await, NetnsError::Unknown));
        let error = of(workload(Some("/nonexistent/netns"), None)).await;
        assert!(matches!(&error, NetnsError::Open { path, .. } if path == Path::new("/nonexistent/netns")), "{error}");
        // Not a process: above the largest pid_max that the kernel knows.
        let error = of(workload(Some("/nonexistent/netns"), Some(1 << 23))).await;
        assert!(error.to_string().contains("/proc/8388608/ns/net"), "{error}");
    }
}
