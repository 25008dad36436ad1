//! Whether a pod is enrolled, by what, and whether the kernel then takes the connection: decided by the code that enrols
//! and by the rules as they are compiled for the kernel.
//!
//! Before: [`super::connection`]. After: the way of the connection, as if it were taken.

use std::net::SocketAddr;

use serde::Serialize;

use super::{Explanation, Question};
use crate::addr::{ClientAddr, OrigDstAddr};
use crate::kernel::Policy;
use crate::kernel::policy::Compiled;
use crate::listener::{Binding, TrafficDirection};
use crate::server::decide::{self, ENROLS_NO_PODS, Known};
use crate::snapshot::{FromNode, Intercept, Pods, Snapshot};
use crate::workload::{Decision, Workload};

/// What becomes of a pod, and of its connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodAnswer {
    /// `namespace/name`
    pub name: String,
    /// Whether its connections are taken at all.
    pub enrolled: bool,
    /// Why it is not enrolled.
    pub reason: Option<String>,
    /// The row of `intercept.pods.select` that selects it.
    pub select: Option<usize>,
    /// The row of `intercept.pods.policies` that matches it.
    pub policy: Option<usize>,
    /// Whether the kernel takes this connection; null where its destination is not known.
    pub taken: Option<bool>,
    /// Why the kernel leaves it alone.
    pub taken_reason: Option<String>,
}

/// Tells of `pod` and of its connection to `destination`; `None`: only its port is known.
pub(super) fn explain(
    snapshot: &Snapshot,
    question: &Question,
    pod: &Workload,
    (destination, client): (Option<OrigDstAddr>, ClientAddr),
    answer: &mut Explanation,
) {
    let mut found = PodAnswer { name: pod.to_string(), ..PodAnswer::default() };
    let intercept = snapshot.intercept.as_ref();
    let settings = intercept.and_then(|intercept| Some((intercept, intercept.pods.as_ref()?)));
    let own_ports = own_ports(snapshot);
    let decision = match settings {
        Some(settings) => decide::decide((pod, Known::Whole), settings, &question.node, &own_ports),
        None => Decision::Skip { reason: ENROLS_NO_PODS.to_owned(), unexpected: false },
    };
    match (decision, settings) {
        (Decision::Enrol { outbound, inbound }, Some((intercept, pods))) => {
            found.enrolled = true;
            rows(pods, pod, &mut found);
            let case = Case { intercept, pods, question, own_ports: &own_ports, policy: found.policy };
            tell_enrolled(&case, pod, &found, answer);
            let policy = match question.direction {
                TrafficDirection::Outbound => Some(outbound),
                TrafficDirection::Inbound => inbound,
            };
            if let Some(destination) = destination {
                found.taken_reason = case.left_alone(policy.as_ref(), destination.socket(), client);
                found.taken = Some(found.taken_reason.is_none());
            }
        }
        (Decision::Skip { reason, .. }, _) => {
            found.taken = Some(false);
            answer.section("pod", format!("{pod}: not enrolled: {reason}"));
            found.taken_reason = Some("the pod is not enrolled".to_owned());
            found.reason = Some(reason);
        }
        // Nobody enrols without settings.
        (Decision::Enrol { .. }, None) => {}
    }
    let line = match (found.taken, &found.taken_reason) {
        (None, _) => "not known without the address: --dst IP:PORT says which is meant".to_owned(),
        (_, None) => "takes it".to_owned(),
        (_, Some(reason)) => format!("leaves it alone: {reason}. If it took it:"),
    };
    answer.section("kernel", line);
    answer.pod = Some(found);
}

/// Which rows of the configuration are about `pod`.
fn rows(pods: &Pods, pod: &Workload, found: &mut PodAnswer) {
    found.select = pods.select.iter().position(|row| row.selects(pod));
    found.policy = pods.policies.iter().position(|row| row.source_pod.matches(pod));
}

fn own_ports(snapshot: &Snapshot) -> Vec<u16> {
    let bound = snapshot.listeners.iter().filter(|listener| listener.binding != Binding::Virtual);
    decide::own_ports(&snapshot.admin, bound.map(|listener| listener.address))
}

/// An enrolled pod and what is asked of it.
struct Case<'a> {
    intercept: &'a Intercept,
    pods: &'a Pods,
    question: &'a Question,
    own_ports: &'a [u16],
    policy: Option<usize>,
}

fn tell_enrolled(case: &Case<'_>, pod: &Workload, found: &PodAnswer, answer: &mut Explanation) {
    let rules = case.rules();
    let section = answer.section("pod", format!("{pod}: enrolled"));
    section.details.extend(found.select.map(|row| format!("intercept.pods.select[{row}] selects it")));
    for (index, row) in case.pods.policies.iter().enumerate().take(found.policy.unwrap_or(usize::MAX)) {
        section
            .details
            .extend(row.source_pod.lacks(pod).map(|lack| format!("not intercept.pods.policies[{index}]: {lack}")));
    }
    section.details.extend(found.policy.map(|row| format!("intercept.pods.policies[{row}] matches it")));
    section.details.push(format!("{} rules: {rules}", case.question.direction.name()));
    for (name, value) in pod.annotations.iter().filter(|(name, _)| name.starts_with("waylay.io/")) {
        section.details.push(format!("annotation {name}: {value:?}"));
    }
}

impl Case<'_> {
    /// Where the rules stand that are in force for the direction.
    fn rules(&self) -> String {
        let outbound = self.question.direction == TrafficDirection::Outbound;
        let row = self.policy.and_then(|index| Some((index, self.pods.policies.get(index)?)));
        let own = row.filter(|(_, row)| if outbound { row.outbound.is_some() } else { row.inbound.is_some() });
        match own {
            Some((index, _)) => format!("intercept.pods.policies[{index}].{}", self.question.direction.name()),
            None => format!("intercept.{}", self.question.direction.name()),
        }
    }

    /// Why the kernel does not take the connection.
    fn left_alone(&self, policy: Option<&Policy>, destination: SocketAddr, client: ClientAddr) -> Option<String> {
        let rules = self.rules();
        let Some(policy) = policy else {
            return Some(format!(
                "there is no {rules}, or the pod's annotations say that nothing that arrives is taken"
            ));
        };
        let peer = match self.question.direction {
            TrafficDirection::Outbound => destination.ip(),
            TrafficDirection::Inbound => client.ip(),
        };
        // What does not fit into the kernel was not enrolled.
        let compiled = Compiled::new(policy).ok()?;
        let node = compiled.rules_at(peer)?;
        let port = destination.port();
        if node.excludes(port) {
            return Some(self.excluded(&rules, peer.is_loopback(), destination, client));
        }
        (!node.includes(port)).then(|| format!("{rules}, with the pod's annotations, does not include it"))
    }

    /// What excludes it: the agent adds rules of its own to those of the configuration.
    fn excluded(&self, rules: &str, is_loopback: bool, destination: SocketAddr, client: ClientAddr) -> String {
        let inbound = self.question.direction == TrafficDirection::Inbound;
        let from_node = self.intercept.inbound.as_ref().map(|inbound| inbound.from_node).unwrap_or_default();
        if inbound && self.own_ports.contains(&destination.port()) {
            format!("port {} is one of the agent's own", destination.port())
        } else if inbound && from_node == FromNode::Pass && self.question.node.contains(&client.ip()) {
            format!("{} is an address of this machine, and intercept.inbound.from_node is pass", client.ip())
        } else if is_loopback {
            "what a pod says to itself by way of loopback is its own matter, unless a rule's cidr names it".to_owned()
        } else {
            format!("{rules}, or an annotation of the pod, excludes it")
        }
    }
}
