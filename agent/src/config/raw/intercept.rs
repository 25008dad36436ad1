//! `intercept`: what the kernel redirects.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::pods::Pods;
use crate::config::record::{choice, record};
use crate::config::value::Value;
use crate::kernel::OnAgentLoss;
use crate::snapshot::FromNode;

record! {
    /// What the kernel redirects to the agent.
    pub struct Intercept("intercept") {
        /// The control group whose processes are intercepted, below the cgroup2 mount; `/` is every process.
        cgroup: String, default("/".to_owned());
        /// Whether connections in the agent's own network namespace are taken.
        host: bool, optional("`true` without `pods`, `false` with");
        /// Whose outgoing connections are taken: those that any of at most 16 rows names. Empty: those of every process in
        /// `cgroup`.
        processes: Vec<ProcessRule>, default(Vec::new());
        /// Which destinations of outgoing connections are taken.
        outbound: Policy, default(Policy::placeholder());
        /// What of that which arrives is taken; `{}` is everything. Needs a bound listener with `traffic_direction: inbound`.
        inbound: Inbound, optional("nothing that arrives");
        /// The pods and containers whose connections are taken, in their own network namespaces; `{}` has the defaults.
        pods: Pods, optional("none");
        /// Another proxy that receives what is taken, in place of a listener of this file: one address for each family.
        redirect_to: Vec<SocketAddr>, default(Vec::new());
        /// What outgoing connections meet while the agent hangs or is dead: they pass by it, or they are refused. What arrives passes by it.
        on_agent_loss: OnAgentLoss, default(OnAgentLoss::Allow);
        /// How many handshakes may be under way at once, 1 to 1048576. Connections beyond that are refused, counted.
        handover_entries: u32, default(65_536);
    }

    /// Processes: all that is given must hold, and something must be given; `unit` and `cgroup` exclude each other.
    pub struct ProcessRule("process rule") {
        /// They are of this user: a name or a number.
        user: String, optional("any");
        /// They are called so, as `ps -o comm` shows it: at most 15 bytes.
        comm: String, optional("any");
        /// This process alone, not its children; a number of the agent's own pid namespace.
        pid: u32, optional("any");
        /// They belong to this systemd unit, such as `nginx.service`.
        unit: String, optional("any");
        /// They are in this control group or below it; a path below the cgroup2 mount.
        cgroup: String, optional("any");
    }

    /// Which connections are taken, by the address and port that they go to or (inbound) the client's address and the
    /// local port.
    pub struct Policy("policy") {
        /// What is taken. Empty: everything.
        include: Vec<Rule>, default(Vec::new());
        /// What of it is left alone.
        exclude: Vec<Rule>, default(Vec::new());
    }

    /// What of that which arrives is taken.
    pub struct Inbound("inbound") {
        /// What is taken: by the client's address and the local port. Empty: everything, which `host: true` does not allow.
        include: Vec<Rule>, default(Vec::new());
        /// What of it is left alone.
        exclude: Vec<Rule>, default(Vec::new());
        /// What comes from this node's own addresses, such as the kubelet's probes: it reaches the application as if there
        /// were no agent, or it is taken as well.
        from_node: FromNode, default(FromNode::Pass);
    }

    /// A set of connections: all that is given must hold, and something must be given.
    pub struct Rule("rule") {
        /// The address is in this network: the destination's or (inbound) the client's.
        cidr: IpNet, optional("any address");
        /// The port is one of these: the destination's or (inbound) the local one.
        ports: Vec<RangeInclusive<u16>>, default(Vec::new());
    }
}

choice!(OnAgentLoss { Allow = "allow", Refuse = "refuse" });
choice!(FromNode { Pass = "pass", Intercept = "intercept" });
