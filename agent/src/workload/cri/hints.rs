//! Events of a runtime, as hints that its list has changed: what they say is not read.
//!
//! Two sources on the same socket: the CRI's own `GetContainerEvents` (containerd from 1.7, CRI-O when `enable_pod_events`
//! is set) and, in containerd of any version, its own event service. A runtime that has neither is polled.

use std::path::Path;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tonic::{Code, Status};

use super::Channel;
use super::messages::{AnyEvent, GetEventsRequest, SubscribeRequest};
use crate::workload::runtime::RuntimeError;

/// Pause before a broken subscription is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Pause before a runtime that does not have these events is asked for them again: it may have been upgraded.
const RETRY_UNIMPLEMENTED: Duration = Duration::from_secs(60);

/// Which of containerd's events matter: a pod's first process runs, and it is gone. Without a filter each `exec` of a
/// health probe would be a hint.
const CONTAINERD_TOPICS: [&str; 2] = [r#"topic=="/tasks/start""#, r#"topic=="/tasks/delete""#];

/// Notifies `changed` whenever the runtime behind `socket` says that something happened, and when a broken
/// subscription works again. Never ends.
pub async fn hints(socket: &Path, changed: &Notify) {
    tokio::join!(source(Source::Cri, socket, changed), source(Source::Containerd, socket, changed));
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Cri,
    Containerd,
}

async fn source(source: Source, socket: &Path, changed: &Notify) {
    loop {
        let pause = match follow(source, socket, changed).await {
            Ok(()) => RETRY,
            Err(RuntimeError::Call { status, .. }) if status.code() == Code::Unimplemented => RETRY_UNIMPLEMENTED,
            Err(error) => {
                tracing::debug!("no {source:?} events from {}: {error}", socket.display());
                RETRY
            }
        };
        sleep(pause).await;
        // Whatever happened in between was not heard.
        changed.notify_one();
    }
}

/// One subscription to its end.
async fn follow(source: Source, socket: &Path, changed: &Notify) -> Result<(), RuntimeError> {
    // A connection of its own: the subscription outlives the failures of calls.
    let channel = Channel::connect(socket).await?;
    let failed = |method| move |status: Status| RuntimeError::Call { method, status: Box::new(status) };
    let (method, events) = match source {
        Source::Cri => {
            let path = "/runtime.v1.RuntimeService/GetContainerEvents";
            ("GetContainerEvents", channel.subscribe::<_, AnyEvent>(path, GetEventsRequest {}).await)
        }
        Source::Containerd => {
            let path = "/containerd.services.events.v1.Events/Subscribe";
            let filters = CONTAINERD_TOPICS.map(str::to_owned).into();
            ("Subscribe", channel.subscribe::<_, AnyEvent>(path, SubscribeRequest { filters }).await)
        }
    };
    let mut events = events.map_err(failed(method))?;
    while events.message().await.map_err(failed(method))?.is_some() {
        changed.notify_one();
    }
    Ok(())
}
