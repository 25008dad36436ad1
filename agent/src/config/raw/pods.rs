//! `intercept.pods`, and conditions on the pod that a connection comes from.

use std::time::Duration;

use super::Labels;
use super::intercept::Policy;
use crate::config::record::record;

record! {
    /// The pods and containers whose connections are taken, in their own network namespaces. The agent asks the node's
    /// container runtimes for them.
    pub struct Pods("pods") {
        /// Their sockets: `cri:///run/containerd/containerd.sock` (containerd, CRI-O), `docker:///run/docker.sock` (docker,
        /// podman). Empty: the usual ones that exist.
        runtimes: Vec<String>, default(Vec::new());
        /// Between two looks at what runs, for changes of which a runtime says nothing by itself.
        poll_interval: Duration, default(Duration::from_secs(5));
        /// Which pods: those that any row selects.
        select: Vec<Selector>, default(Selector::usual());
        /// What is taken of particular pods: the first row that matches takes the place of `intercept.outbound` and
        /// `intercept.inbound`, each if it is given.
        policies: Vec<PodPolicy>, default(Vec::new());
    }

    /// Pods: all that is given must hold. `{}` is every pod.
    pub struct Selector("selector") {
        /// Kubernetes' namespace is one of these; a container that is no pod has its runtime's name in place of one.
        namespaces: Vec<String>, default(Vec::new());
        /// It has all of these labels, with these values.
        labels: Labels, default(Labels::default());
        /// It has all of these annotations, with these values.
        annotations: Labels, default(Labels::default());
    }

    /// What is taken of some pods; at least one of `outbound` and `inbound`.
    pub struct PodPolicy("pod policy") {
        /// Which pods; `{}` is every one.
        source_pod: SourcePod, required;
        /// Which destinations of their outgoing connections are taken.
        outbound: Policy, optional("`intercept.outbound`");
        /// What of that which arrives at them is taken.
        inbound: Policy, optional("`intercept.inbound`");
    }

    /// A condition on a pod: all that is given must hold.
    pub struct SourcePod("source pod") {
        /// Its namespace is this.
        namespace: String, optional("any");
        /// Its name is this, or begins so: `web-*`.
        name: String, optional("any");
        /// It has all of these labels, with these values.
        labels: Labels, default(Labels::default());
    }
}

/// What enrols a pod without further configuration: this label or annotation.
pub const INJECT: (&str, &str) = ("waylay.io/inject", "true");

impl Selector {
    /// One row for the label and one for the annotation.
    fn usual() -> Vec<Self> {
        let inject = || Labels::from([INJECT]);
        let row = |labels, annotations| Self { namespaces: Vec::new(), labels, annotations };
        vec![row(inject(), Labels::default()), row(Labels::default(), inject())]
    }
}
