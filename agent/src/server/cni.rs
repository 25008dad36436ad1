//! What the CNI plugin asks of the main thread.
//!
//! Before: the admin socket's `/cni/add` and `/cni/del`. After: the enrolment of pods.

use super::Serving;
use crate::workload::cni::{CniAdd, CniAnswer, CniDel};

impl Serving {
    /// Enrols a pod before anything runs in it.
    pub(super) fn cni_add(&mut self, pod: &CniAdd) -> Result<CniAnswer, String> {
        tracing::debug!(namespace = pod.namespace, name = pod.name, "a pod is made that is not enrolled");
        Ok(CniAnswer::NotSelected { reason: ENROLS_NO_PODS.to_owned() })
    }

    /// Lets a pod go before its network does.
    pub(super) fn cni_del(&mut self, pod: &CniDel) -> Result<(), String> {
        tracing::debug!(container_id = pod.container_id, "a pod is taken away that was not enrolled");
        Ok(())
    }
}

/// The plugin is installed, and nothing is configured for it.
const ENROLS_NO_PODS: &str = "this agent enrols no pods";
