//! Events of a runtime, as hints that its list has changed: what they say is not read.
//!
//! containerd is asked for its own events, not for those of the CRI (`GetContainerEvents`): as of 1.7 it gives each of
//! those to one subscriber only, which would take it from the kubelet (containerd issue 7318). CRI-O has those of the CRI
//! when `enable_pod_events` is set. A runtime that has neither is polled.

use std::path::Path;

use tokio::sync::Notify;

use super::Channel;
use super::messages::{AnyEvent, GetEventsRequest, SubscribeRequest};
use crate::workload::runtime::RuntimeError;

/// Which of containerd's events matter: a pod's first process runs, and it is gone. Without a filter each `exec` of a
/// health probe would be a hint.
const CONTAINERD_TOPICS: [&str; 2] = [r#"topic=="/tasks/start""#, r#"topic=="/tasks/delete""#];

/// One subscription to its end: notifies `changed` when the runtime behind `socket` answers, and whenever it says that
/// something happened.
///
/// # Errors
/// It does not answer, or has no events.
pub async fn follow(socket: &Path, changed: &Notify) -> Result<(), RuntimeError> {
    // A connection of its own: the subscription outlives the failures of calls.
    let channel = Channel::connect(socket).await?;
    let version = super::version_of(&channel).await.map_err(|status| RuntimeError::of("Version", status))?;
    // Whatever happened up to now was not heard.
    changed.notify_one();
    let (method, events) = if version.runtime_name == "containerd" {
        let path = "/containerd.services.events.v1.Events/Subscribe";
        let filters = CONTAINERD_TOPICS.map(str::to_owned).into();
        ("Subscribe", channel.subscribe::<_, AnyEvent>(path, SubscribeRequest { filters }).await)
    } else {
        let path = "/runtime.v1.RuntimeService/GetContainerEvents";
        ("GetContainerEvents", channel.subscribe::<_, AnyEvent>(path, GetEventsRequest {}).await)
    };
    let mut events = events.map_err(|status| RuntimeError::of(method, status))?;
    while events.message().await.map_err(|status| RuntimeError::of(method, status))?.is_some() {
        changed.notify_one();
    }
    Ok(())
}
