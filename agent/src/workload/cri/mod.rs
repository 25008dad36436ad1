//! The Container Runtime Interface, version 1, as containerd and CRI-O serve it: which pods run on this node.
//!
//! Before: [`crate::workload::watch`], which asks. After: a list of [`Workload`]s. A list costs one call, and one more
//! for each sandbox that is new: what a sandbox's status tells does not change while it lives. Its labels and
//! annotations are taken from the list each time.

mod channel;
mod hints;
mod info;
mod messages;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use tonic::{Code, Status};

pub use channel::Channel;
pub use hints::follow;
use info::Info;
use messages::{
    ListPodSandboxRequest, ListPodSandboxResponse, NamespaceMode, PodSandbox, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse, VersionRequest,
    VersionResponse,
};

use super::Workload;
use super::runtime::RuntimeError;

/// How many sandboxes are asked about at once: a node's first list is soon complete, and the kubelet still gets its turn.
const STATUS_CALLS_AT_ONCE: usize = 8;

/// The pods of one CRI socket.
#[derive(Debug)]
pub struct Cri {
    socket: PathBuf,
    channel: Option<Channel>,
    /// By sandbox id; those that are gone are forgotten with the next list.
    details: HashMap<String, Details>,
}

/// What is known of a sandbox besides its row in the list; immutable while it lives.
#[derive(Clone, Debug, Default)]
struct Details {
    ips: Vec<IpAddr>,
    info: Info,
    host_network: bool,
}

/// The answer to one `PodSandboxStatus`.
enum Told {
    Details(Details),
    /// It was removed or stopped after the list was made.
    Gone,
    /// The runtime could not say; it is asked again with the next list.
    Nothing,
}

impl Cri {
    /// Of the runtime that listens at `socket`; nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), channel: None, details: HashMap::new() }
    }

    /// The pods whose sandbox is ready, in no particular order.
    ///
    /// # Errors
    /// The runtime does not answer, or does not serve the CRI. The next call connects anew.
    pub async fn list(&mut self) -> Result<Vec<Workload>, RuntimeError> {
        let channel = self.channel().await?;
        let sandboxes = match ready_sandboxes(&channel).await {
            Ok(sandboxes) => sandboxes,
            Err(status) => return Err(self.failed("ListPodSandbox", status)),
        };
        let unknown = sandboxes.iter().map(|sandbox| &sandbox.id).filter(|id| !self.details.contains_key(*id));
        let questions: Vec<_> = unknown.map(|id| ask(channel.clone(), id.clone())).collect();
        let answers: Vec<_> = stream::iter(questions).buffer_unordered(STATUS_CALLS_AT_ONCE).collect().await;
        let mut told = HashMap::new();
        for answer in answers {
            let (id, answer) = answer.map_err(|status| self.failed("PodSandboxStatus", status))?;
            told.insert(id, answer);
        }
        Ok(self.merge(sandboxes, told))
    }

    /// Puts the rows of the list and what is known of their sandboxes together, and remembers it for the next list.
    fn merge(&mut self, sandboxes: Vec<PodSandbox>, mut told: HashMap<String, Told>) -> Vec<Workload> {
        let mut known = std::mem::take(&mut self.details);
        let mut workloads = Vec::with_capacity(sandboxes.len());
        for sandbox in sandboxes {
            let details = match (known.remove(&sandbox.id), told.remove(&sandbox.id)) {
                (Some(details), _) | (None, Some(Told::Details(details))) => details,
                (None, Some(Told::Nothing)) => Details::default(),
                // Gone meanwhile, or a second row with the same id.
                (None, _) => continue,
            };
            if details.is_complete() {
                self.details.insert(sandbox.id.clone(), details.clone());
            }
            workloads.push(workload(sandbox, details));
        }
        workloads
    }

    async fn channel(&mut self) -> Result<Channel, RuntimeError> {
        match &self.channel {
            Some(channel) => Ok(channel.clone()),
            None => Ok(self.channel.insert(Channel::connect(&self.socket).await?).clone()),
        }
    }

    fn failed(&mut self, method: &'static str, status: Status) -> RuntimeError {
        self.channel = None;
        RuntimeError::of(method, status)
    }
}

impl Details {
    /// Whether there is nothing left to learn with the next list: some runtimes list a sandbox as ready a moment before
    /// they know its address.
    fn is_complete(&self) -> bool {
        self.host_network || !self.ips.is_empty() && (self.info.netns_path.is_some() || self.info.pid.is_some())
    }
}

async fn version_of(channel: &Channel) -> Result<VersionResponse, Status> {
    channel.call("/runtime.v1.RuntimeService/Version", VersionRequest { version: "v1".to_owned() }).await
}

async fn ready_sandboxes(channel: &Channel) -> Result<Vec<PodSandbox>, Status> {
    let state = Some(PodSandboxStateValue { state: PodSandboxState::Ready.into() });
    let question = ListPodSandboxRequest { filter: Some(PodSandboxFilter { state }) };
    let answer: ListPodSandboxResponse = channel.call("/runtime.v1.RuntimeService/ListPodSandbox", question).await?;
    let ready = |sandbox: &PodSandbox| sandbox.state() == PodSandboxState::Ready && !sandbox.id.is_empty();
    Ok(answer.items.into_iter().filter(ready).collect())
}

/// What the runtime says of the sandbox `id`; an error only if it can be asked nothing at all.
async fn ask(channel: Channel, id: String) -> Result<(String, Told), Status> {
    let question = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    let answer = channel.call("/runtime.v1.RuntimeService/PodSandboxStatus", question).await;
    let told = match answer {
        Ok(PodSandboxStatusResponse { status: Some(status), info }) if status.state() == PodSandboxState::Ready => {
            Told::Details(details(&status, &info))
        }
        Ok(PodSandboxStatusResponse { status: Some(_), .. }) => Told::Gone,
        Ok(_) => Told::Nothing,
        Err(status) if status.code() == Code::NotFound => Told::Gone,
        Err(status) if channel::is_outage(&status) => return Err(status),
        Err(status) => {
            tracing::warn!("the container runtime cannot tell the status of sandbox {id}: {}", status.message());
            Told::Nothing
        }
    };
    Ok((id, told))
}

fn details(status: &PodSandboxStatus, info: &HashMap<String, String>) -> Details {
    let network = status.network.iter();
    let ips = network.flat_map(|network| {
        std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|additional| &additional.ip))
    });
    let namespaces = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref());
    let options = namespaces.and_then(|namespaces| namespaces.options.as_ref());
    Details {
        ips: ips.filter_map(|ip| ip.parse().ok()).collect(),
        info: Info::of(info),
        host_network: options.is_some_and(|options| options.network() == NamespaceMode::Node),
    }
}

fn workload(sandbox: PodSandbox, details: Details) -> Workload {
    let metadata = sandbox.metadata.unwrap_or_default();
    Workload {
        id: Arc::from(sandbox.id),
        namespace: Arc::from(metadata.namespace),
        name: Arc::from(metadata.name),
        uid: Arc::from(metadata.uid),
        labels: sandbox.labels.into_iter().collect(),
        annotations: sandbox.annotations.into_iter().collect(),
        ips: details.ips,
        pid: details.info.pid,
        netns_path: details.info.netns_path,
        cgroup: details.info.cgroup,
        host_network: details.host_network,
    }
}
