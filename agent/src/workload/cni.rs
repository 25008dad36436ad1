//! What the CNI plugin tells the agent of a pod that is being made or taken away, and what the agent answers.
//!
//! Before: `waylay cni`, which a container runtime runs ([`crate::cni`]), over the admin socket. After: the server, which
//! enrols the pod before the runtime goes on. The runtime lists the pod only afterwards, so that labels are not known
//! yet, and annotations only where the runtime hands them to plugins.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{NSFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use super::Workload;

/// The namespace of the agent itself.
const OWN: &str = "/proc/self/ns/net";

/// A pod's network is there; nothing runs in it yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CniAdd {
    /// The sandbox, as its runtime will list it.
    pub container_id: String,
    /// Where its network namespace is bound to, in the node's mount namespace.
    pub netns: PathBuf,
    /// Kubernetes' namespace; empty when the runtime serves no Kubernetes.
    #[serde(default)]
    pub namespace: String,
    /// Within the namespace; empty when the runtime serves no Kubernetes.
    #[serde(default)]
    pub name: String,
    /// Kubernetes' uid; empty when it is not known.
    #[serde(default)]
    pub uid: String,
    /// Inside its namespace.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// `None` when the runtime does not hand them to plugins.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl CniAdd {
    /// The pod as far as it is known now: without labels, pid and cgroup.
    pub fn workload(&self) -> Workload {
        Workload {
            id: self.container_id.as_str().into(),
            namespace: self.namespace.as_str().into(),
            name: self.name.as_str().into(),
            uid: self.uid.as_str().into(),
            annotations: self.annotations.clone().unwrap_or_default(),
            ips: self.ips.clone(),
            netns_path: Some(self.netns.clone()),
            ..Workload::default()
        }
    }
}

/// A pod's network is about to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CniDel {
    /// As in [`CniAdd`].
    pub container_id: String,
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum CniAnswer {
    /// Its connections are taken, with the policy that is its own.
    Enrolled,
    /// Its connections are left alone.
    NotSelected {
        /// For people.
        reason: String,
    },
    /// Its connections are taken with the general policy until the runtime lists it; then what it lists decides.
    Provisional {
        /// What is not known yet, for people.
        reason: String,
    },
}

/// Why a path is no namespace of a pod.
#[derive(Debug, thiserror::Error)]
pub enum NetnsPathError {
    /// See the source.
    #[error("opening the network namespace {path}{}", hint(source))]
    Open {
        /// As told.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something else lies there.
    #[error("{0} is no namespace")]
    NoNamespace(PathBuf),
    /// Enrolling it would take the connections of the node.
    #[error("{0} is the network namespace of the agent itself, not that of a pod")]
    Own(PathBuf),
}

fn hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::NotFound {
        " (does the agent's container see the node's network namespaces? mount the folder that they are in)"
    } else {
        ""
    }
}

/// Checks that a namespace is bound to `path`, and not the agent's own. That it is one for networks shows when it is
/// opened ([`crate::netns::Netns::open`]).
///
/// # Errors
/// It is not so.
pub fn check_netns(path: &Path) -> Result<(), NetnsPathError> {
    let error = |source| NetnsPathError::Open { path: path.to_owned(), source };
    // By path: opening a pipe that somebody left there would wait for its other end.
    if statfs(path).map_err(|errno| error(errno.into()))?.filesystem_type() != NSFS_MAGIC {
        return Err(NetnsPathError::NoNamespace(path.to_owned()));
    }
    let identity = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    if identity(path).map_err(error)? == identity(Path::new(OWN)).map_err(error)? {
        return Err(NetnsPathError::Own(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_namespace_of_somebody_else_will_do() {
        let text = |path: &str| check_netns(Path::new(path)).expect_err(path).to_string();
        assert!(text("/nonexistent/netns").contains("does the agent's container see"));
        assert_eq!(text("/dev/null"), "/dev/null is no namespace");
        assert!(text("/proc/thread-self/ns/net").contains("of the agent itself"));
        // Another namespace, though not one for networks, which only opening tells.
        assert!(check_netns(Path::new("/proc/self/ns/uts")).is_ok());
    }

    #[test]
    fn answers_have_one_shape_on_both_sides() {
        for (answer, json) in [
            (CniAnswer::Enrolled, r#"{"answer":"enrolled"}"#),
            (CniAnswer::NotSelected { reason: "no row".to_owned() }, r#"{"answer":"not_selected","reason":"no row"}"#),
            (CniAnswer::Provisional { reason: "labels".to_owned() }, r#"{"answer":"provisional","reason":"labels"}"#),
        ] {
            assert_eq!(serde_json::to_string(&answer).expect("JSON"), json);
            assert_eq!(serde_json::from_str::<CniAnswer>(json).expect("answer"), answer);
        }
    }
}
