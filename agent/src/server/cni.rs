//! What the CNI plugin asks of the main thread.
//!
//! Before: the admin socket's `/cni/add` and `/cni/del`. After: [`super::pods`], which enrols.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Serving;
use super::pods::decide::{self, ENROLS_NO_PODS, Known};
use super::pods::{Announced, DEPARTING_FOR, State, WorkloadId};
use crate::workload::cni::{CniAdd, CniAnswer, CniDel};

/// How long a pod that the plugin announced may stay unknown to its runtime. The network is the last that is made of a
/// pod's sandbox, so that little is left to be done then.
const ANNOUNCED_FOR: Duration = Duration::from_secs(120);

impl Serving {
    /// Enrols a pod before anything runs in it.
    pub(super) async fn cni_add(&mut self, pod: &CniAdd) -> Result<CniAnswer, String> {
        let snapshot = self.shared.snapshot.load_full();
        let pods = snapshot.intercept.as_ref().and_then(|intercept| intercept.pods.as_ref());
        if pods.is_none() || self.attached.is_none() {
            return Ok(CniAnswer::NotSelected { reason: ENROLS_NO_PODS.to_owned() });
        }
        let id: WorkloadId = pod.container_id.as_str().into();
        let workload = Arc::new(pod.workload());
        let known = Known::Part { annotations: pod.annotations.is_some() };
        // Whether what is known is enough: then its labels change nothing.
        let certain = pods.is_some_and(|pods| pods.select.iter().any(|row| row.selects(&workload)));
        let announced = Announced { workload, known, until: Instant::now() + ANNOUNCED_FOR };
        self.pods.announced.insert(id.clone(), announced);
        self.pods.departing.remove(&id);
        // Only this one: others may be many, and a runtime waits. Its own list tells more, if it has it already.
        if let Some(workload) = self.pods.listed().1.remove(&id) {
            self.sync_pod(id.clone(), workload, &decide::node_addresses()).await;
        }
        self.publish_pods();
        self.pods.unfinished = true;
        match self.pods.members.get(&id).map(|member| &member.state) {
            Some(State::Enrolled(_)) if certain => Ok(CniAnswer::Enrolled),
            Some(State::Enrolled(_)) => Ok(CniAnswer::Provisional {
                reason: "not all that selects it is known before its runtime lists it".to_owned(),
            }),
            Some(State::Skipped(reason) | State::Retired { reason, .. }) => {
                Ok(CniAnswer::NotSelected { reason: reason.clone() })
            }
            Some(State::Failed { reason, .. }) => Err(reason.clone()),
            None => Err("the pod is gone already".to_owned()),
        }
    }

    /// Lets a pod go before its network does.
    pub(super) async fn cni_del(&mut self, pod: &CniDel) -> Result<(), String> {
        let id: WorkloadId = pod.container_id.as_str().into();
        self.pods.announced.remove(&id);
        self.pods.departing.insert(id.clone(), Instant::now() + DEPARTING_FOR);
        self.release(&id).await;
        self.publish_pods();
        Ok(())
    }
}
