//! Docker's HTTP API, as docker and podman serve it: which containers run on this box.
//!
//! Before: [`crate::workload::watch`], which asks. After: a list of [`Workload`]s. Each container is inspected anew for
//! each list: unlike a pod's sandbox it keeps its id when it is restarted, and may be connected to networks at any time.

mod http;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::StatusCode;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::sync::Notify;

use super::Workload;
use super::runtime::RuntimeError;
use http::Connection;

/// Containers with this label are a kubelet's (through cri-dockerd): they are pods, and the CRI tells of them.
const KUBELET_LABEL: &str = "io.kubernetes.pod.uid";

/// The events that change what is listed; without a filter each health check of a container would be one. The query is
/// `filters={"event":[...]}` with its quotes and brackets percent-encoded.
const EVENTS: &str = "/events?filters=%7B%22event%22%3A%5B%22start%22%2C%22die%22%2C%22rename%22%2C%22connect%22\
                      %2C%22disconnect%22%5D%7D";

/// The containers of one socket.
#[derive(Debug)]
pub struct Docker {
    socket: PathBuf,
    /// What answers there: `docker` or `podman`; `None` as long as it was not asked.
    flavour: Option<Arc<str>>,
}

impl Docker {
    /// Of the runtime that listens at `socket`; nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), flavour: None }
    }

    /// The containers that run, in no particular order.
    ///
    /// # Errors
    /// The runtime does not answer, or not as docker does.
    pub async fn list(&mut self) -> Result<Vec<Workload>, RuntimeError> {
        let mut connection = Connection::open(&self.socket).await?;
        let flavour = match &self.flavour {
            Some(flavour) => flavour.clone(),
            None => self.flavour.insert(flavour(&mut connection).await?).clone(),
        };
        let rows: Vec<Row> = connection.json("/containers/json").await?;
        let mut workloads = Vec::with_capacity(rows.len());
        for row in rows.into_iter().filter(|row| !row.is_of_kubelet()) {
            match connection.json::<Inspected>(&format!("/containers/{}/json", row.id)).await {
                Ok(container) => workloads.extend(container.workload(&flavour)),
                // Removed after the list was made.
                Err(RuntimeError::Refused { status: StatusCode::NOT_FOUND, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(workloads)
    }
}

/// podman's answer names its engine among the components.
async fn flavour(connection: &mut Connection) -> Result<Arc<str>, RuntimeError> {
    let version: Version = connection.json("/version").await?;
    let podman = version.components.iter().flatten().any(|component| component.name.starts_with("Podman"));
    Ok(Arc::from(if podman { "podman" } else { "docker" }))
}

/// One subscription to its end: notifies `changed` when it begins, and whenever the runtime behind `socket` says that
/// something happened. Each piece of the answer is a line of JSON, which is not read.
///
/// # Errors
/// The runtime does not answer, or the connection breaks.
pub async fn follow(socket: &Path, changed: &Notify) -> Result<(), RuntimeError> {
    let mut events = Connection::open(socket).await?.subscribe(EVENTS).await?;
    // Whatever happened up to now was not heard.
    changed.notify_one();
    while let Some(event) = events.frame().await {
        event?;
        changed.notify_one();
    }
    Ok(())
}

/// Of `GET /version`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    components: Option<Vec<Component>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

/// Of `GET /containers/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    labels: Option<BTreeMap<String, String>>,
}

impl Row {
    fn is_of_kubelet(&self) -> bool {
        self.labels.as_ref().is_some_and(|labels| labels.contains_key(KUBELET_LABEL))
    }
}

/// Of `GET /containers/{id}/json`. What is absent or null is not known.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    state: State,
    config: Option<Config>,
    host_config: Option<HostConfig>,
    network_settings: Option<NetworkSettings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    pid: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    sandbox_key: Option<String>,
    networks: Option<BTreeMap<String, Option<Network>>>,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "IPAddress")]
    v4: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    v6: Option<String>,
}

impl Inspected {
    /// `None` when it has stopped since the list was made, or shares the namespace of another container: that one
    /// stands for it.
    fn workload(self, flavour: &Arc<str>) -> Option<Workload> {
        let mode = self.host_config.and_then(|config| config.network_mode).unwrap_or_default();
        if !self.state.running || mode.starts_with("container:") {
            return None;
        }
        let labels = self.config.and_then(|config| config.labels).unwrap_or_default();
        let (key, networks) = self.network_settings.map(|settings| (settings.sandbox_key, settings.networks)).unzip();
        let host_network = mode == "host";
        Some(Workload {
            id: Arc::from(&*self.id),
            namespace: flavour.clone(),
            name: Arc::from(self.name.trim_start_matches('/')),
            uid: Arc::from(self.id),
            // The two runtimes have no annotations that a user can set.
            annotations: labels.clone(),
            labels,
            ips: networks.flatten().into_iter().flatten().filter_map(|(_, network)| network).flat_map(ips).collect(),
            pid: Some(self.state.pid).filter(|pid| *pid != 0),
            netns_path: key.flatten().filter(|key| !key.is_empty()).map(PathBuf::from),
            cgroup: None,
            host_network,
        })
    }
}

/// The addresses of one network; docker writes an empty text for one that it does not have.
fn ips(network: Network) -> impl Iterator<Item = IpAddr> {
    [network.v4, network.v6].into_iter().flatten().filter_map(|ip| ip.parse().ok())
}
