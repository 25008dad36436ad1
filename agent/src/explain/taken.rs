//! Whether the kernel would take the connection at all.
//!
//! After: [`super::connection`], which goes on as if it did.

use super::Question;
use crate::addr::{ClientAddr, OrigDstAddr};
use crate::kernel::{Policy, Rule};
use crate::listener::TrafficDirection;
use crate::snapshot::{Intercept, Pods};
use crate::workload::Workload;

/// Why the kernel leaves the connection alone, and what else there is to say about that.
pub(super) fn remarks(
    intercept: &Intercept,
    question: &Question,
    destination: OrigDstAddr,
    client: ClientAddr,
) -> Vec<String> {
    let mut remarks = Vec::new();
    let left_alone = match question.direction {
        TrafficDirection::Outbound => outbound(intercept, question, destination, &mut remarks),
        TrafficDirection::Inbound => inbound(intercept, destination, client, &mut remarks),
    };
    remarks.extend(left_alone.map(|why| format!("the kernel leaves it alone: {why}")));
    remarks
}

fn outbound(
    intercept: &Intercept,
    question: &Question,
    destination: OrigDstAddr,
    remarks: &mut Vec<String>,
) -> Option<String> {
    if !intercept.processes.is_empty() {
        remarks.push("the kernel takes those of some processes only: intercept.processes names them".to_owned());
    }
    let mut policy = (&intercept.outbound, "intercept".to_owned());
    match (&question.source_pod, &intercept.pods) {
        (None, _) if !intercept.host => {
            return Some(
                "intercept.host is false, and it comes from no pod (--source-pod NAMESPACE/NAME). If it were true:"
                    .to_owned(),
            );
        }
        (None, _) => {}
        (Some(_), None) => {
            return Some("there is no intercept.pods, and so no pod is enrolled. If this one were:".to_owned());
        }
        (Some(pod), Some(pods)) => {
            remarks.extend(selection(pods, pod));
            let mut rows = pods.policies.iter().enumerate().filter(|(_, row)| row.source_pod.matches(pod));
            if let Some((index, row)) = rows.next() {
                let place = format!("intercept.pods.policies[{index}]");
                match &row.outbound {
                    Some(outbound) => policy = (outbound, place),
                    None => remarks.push(format!("{place} matches, and says nothing of what goes out")),
                }
            }
        }
    }
    by_policy(policy.0, &policy.1, |rule| {
        rule.cidr.is_none_or(|cidr| cidr.contains(&destination.ip())) && has_port(rule, destination.port())
    })
}

/// Annotations and the runtime's own word are not part of a question: so this can only warn.
fn selection(pods: &Pods, pod: &Workload) -> Option<String> {
    let selected = pods.select.iter().any(|row| row.selects(pod));
    (!selected).then(|| "intercept.pods.select does not select the pod by these labels; its annotations may".to_owned())
}

fn inbound(
    intercept: &Intercept,
    destination: OrigDstAddr,
    client: ClientAddr,
    remarks: &mut Vec<String>,
) -> Option<String> {
    if intercept.pods.iter().flat_map(|pods| &pods.policies).any(|row| row.inbound.is_some()) {
        remarks.push("intercept.pods.policies says otherwise for what arrives at some pods".to_owned());
    }
    let Some(inbound) = &intercept.inbound else {
        return Some("there is no intercept.inbound. If there were:".to_owned());
    };
    by_policy(&inbound.policy, "intercept.inbound", |rule| {
        rule.cidr.is_none_or(|cidr| cidr.contains(&client.ip())) && has_port(rule, destination.port())
    })
}

fn has_port(rule: &Rule, port: u16) -> bool {
    rule.ports.is_empty() || rule.ports.iter().any(|ports| ports.contains(&port))
}

fn by_policy(policy: &Policy, place: &str, applies: impl Fn(&Rule) -> bool) -> Option<String> {
    if *policy == Policy::nothing() {
        Some("no listener takes what goes out. If one did:".to_owned())
    } else if policy.exclude.iter().any(&applies) {
        Some(format!("{place} excludes it. If it did not:"))
    } else if !policy.include.is_empty() && !policy.include.iter().any(&applies) {
        Some(format!("{place} does not include it. If it did:"))
    } else {
        None
    }
}
