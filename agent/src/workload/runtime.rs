//! A container runtime: where it is, what may go wrong with it, and the two protocols behind one face.
//!
//! Before: the configuration (`intercept.pods.runtimes`). After: [`super::watch`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Workload;
use super::cri::{self, Cri};
use super::docker::{self, Docker};

/// Longest wait for a runtime's answer. A node under load takes a second for a list; the kubelet allows 2 minutes.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The socket of a runtime and what is spoken there: `cri:///run/containerd/containerd.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuntimeAddress {
    protocol: Protocol,
    socket: PathBuf,
}

/// What a runtime speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// The Container Runtime Interface: containerd, CRI-O, cri-dockerd.
    Cri,
    /// Docker's HTTP API: docker, podman.
    Docker,
}

impl RuntimeAddress {
    /// The runtime that speaks `protocol` at `socket`.
    pub fn new(protocol: Protocol, socket: impl Into<PathBuf>) -> Self {
        Self { protocol, socket: socket.into() }
    }

    /// What is spoken there.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl fmt::Display for RuntimeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Cri => "cri",
            Protocol::Docker => "docker",
        };
        write!(f, "{scheme}://{}", self.socket.display())
    }
}

impl Serialize for RuntimeAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is not the address of a runtime; says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(String);

impl FromStr for RuntimeAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some((scheme, path)) = text.split_once("://") else {
            return Err(AddressError(if text.starts_with('/') {
                format!("`{text}` does not say what is spoken there: {}", suggestion(text))
            } else {
                format!("`{text}` is not the address of a container runtime: {BOTH}")
            }));
        };
        let protocol = match scheme {
            "cri" => Protocol::Cri,
            "docker" => Protocol::Docker,
            "podman" => return Err(AddressError(format!("podman speaks docker's protocol: write docker://{path}"))),
            "unix" => return Err(AddressError(format!("`unix` is not a protocol here: {}", suggestion(path)))),
            other => return Err(AddressError(format!("the protocol `{other}` is not known: {BOTH}"))),
        };
        if !path.starts_with('/') {
            let path = path.trim_start_matches(['/', '.']);
            return Err(AddressError(format!(
                "`{text}` has no absolute path: write {scheme}:///{path}, with three slashes"
            )));
        }
        Ok(Self::new(protocol, path))
    }
}

const BOTH: &str = "write cri:///run/containerd/containerd.sock (containerd, CRI-O) or docker:///run/docker.sock \
                    (docker, podman)";

/// What to write for the socket at `path`, by its file's name where that tells.
fn suggestion(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name {
        "docker.sock" | "podman.sock" => format!("write docker://{path}"),
        "containerd.sock" | "crio.sock" | "cri-dockerd.sock" => format!("write cri://{path}"),
        _ => format!("write cri://{path} (containerd, CRI-O) or docker://{path} (docker, podman)"),
    }
}

/// Why a runtime's list could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody listens, or this process may not connect.
    #[error("cannot connect to its socket")]
    Connect(#[source] std::io::Error),
    /// It does not answer.
    #[error("no answer within {CALL_TIMEOUT:?}")]
    Slow,
    /// The server knows no such service.
    #[error("it does not serve the CRI: remove `cri` from `disabled_plugins` in containerd's configuration")]
    NoCri,
    /// A gRPC call failed.
    #[error("{method} failed with {:?}: {}", status.code(), status.message())]
    Call {
        /// Its name.
        method: &'static str,
        /// Code and message.
        status: Box<tonic::Status>,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the connection failed")]
    Connection(#[from] hyper::Error),
    /// An HTTP request that was refused.
    #[error("GET {path} was answered with {status}: {message}")]
    Refused {
        /// What was asked for.
        path: String,
        /// Of the answer.
        status: http::StatusCode,
        /// What the answer says, shortened.
        message: String,
    },
    /// An answer that cannot be read.
    #[error("the answer to GET {path} cannot be read: {reason}")]
    Malformed {
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl RuntimeError {
    /// What the failure of a gRPC call means.
    pub fn of(method: &'static str, status: tonic::Status) -> Self {
        match status.code() {
            tonic::Code::Unimplemented => Self::NoCri,
            _ => Self::Call { method, status: Box::new(status) },
        }
    }
}

/// A runtime that can be asked for what runs.
#[derive(Debug)]
pub enum Runtime {
    /// Pods.
    Cri(Cri),
    /// Containers.
    Docker(Docker),
}

impl Runtime {
    /// The one at `address`; nothing is opened yet.
    pub fn new(address: &RuntimeAddress) -> Self {
        match address.protocol {
            Protocol::Cri => Self::Cri(Cri::new(&address.socket)),
            Protocol::Docker => Self::Docker(Docker::new(&address.socket)),
        }
    }

    /// All that runs now.
    ///
    /// # Errors
    /// It cannot be asked; it may be asked again at any time.
    pub async fn list(&mut self) -> Result<Vec<Workload>, RuntimeError> {
        match self {
            Self::Cri(cri) => cri.list().await,
            Self::Docker(docker) => docker.list().await,
        }
    }
}

/// First pause before a broken subscription to events is tried again; doubled up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// A subscription that lasted for this long was a good one: the next pause is the first again.
const STEADY: Duration = Duration::from_secs(10);

/// Pause before a runtime that has no events is asked for them again: it may have been upgraded.
const RETRY_WITHOUT_EVENTS: Duration = Duration::from_secs(60);

/// Notifies `changed` of every event of the runtime at `address`, and when it answers again after events were missed.
/// Never ends.
pub async fn hints(address: &RuntimeAddress, changed: &Notify) {
    let mut retry = FIRST_RETRY;
    loop {
        let started = Instant::now();
        let ended = match address.protocol {
            Protocol::Cri => cri::follow(&address.socket, changed).await,
            Protocol::Docker => docker::follow(&address.socket, changed).await,
        };
        if let Err(error) = &ended {
            tracing::debug!("no events from {address}: {error}");
        }
        if started.elapsed() >= STEADY {
            retry = FIRST_RETRY;
        }
        sleep(if matches!(ended, Err(RuntimeError::NoCri)) { RETRY_WITHOUT_EVENTS } else { retry }).await;
        retry = LONGEST_RETRY.min(retry * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_was_read() {
        for text in ["cri:///run/containerd/containerd.sock", "docker:///run/user/1000/podman/podman.sock"] {
            assert_eq!(text.parse::<RuntimeAddress>().expect(text).to_string(), text);
        }
    }

    #[track_caller]
    fn check_error(text: &str, advice: &str) {
        let error = text.parse::<RuntimeAddress>().expect_err(text).to_string();
        assert!(error.contains(advice), "{text}: {error}");
    }

    #[test]
    fn what_is_not_an_address_says_what_to_write() {
        check_error("/run/containerd/containerd.sock", "write cri:///run/containerd/containerd.sock");
        check_error("/run/podman/podman.sock", "write docker:///run/podman/podman.sock");
        check_error("/run/x.sock", "write cri:///run/x.sock (containerd, CRI-O) or docker:///run/x.sock");
        check_error("unix:///var/run/crio/crio.sock", "write cri:///var/run/crio/crio.sock");
        check_error("podman:///run/podman/podman.sock", "write docker:///run/podman/podman.sock");
        check_error("cri://run/containerd.sock", "write cri:///run/containerd.sock, with three slashes");
        check_error("docker://", "three slashes");
        check_error("tcp://127.0.0.1:2375", "the protocol `tcp` is not known: write cri:///");
        check_error("containerd", "is not the address of a container runtime: write cri:///");
        check_error("", "is not the address");
    }
}
