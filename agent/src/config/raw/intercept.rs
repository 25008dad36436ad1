//! `intercept`: what the kernel redirects.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::config::record::{choice, record};
use crate::config::value::Value;
use crate::kernel::OnAgentLoss;

record! {
    /// What the kernel redirects to the agent.
    pub struct Intercept("intercept") {
        /// The control group whose processes are intercepted, below the cgroup2 mount; `/` is every process.
        cgroup: String, default("/".to_owned());
        /// Which destinations of outgoing connections are taken.
        outbound: Outbound, default(Outbound::placeholder());
        /// Another proxy that receives what is taken, in place of a listener of this file: one address for each family.
        redirect_to: Vec<SocketAddr>, default(Vec::new());
        /// What connects meet while the agent hangs or is dead: they pass by it, or they are refused.
        on_agent_loss: OnAgentLoss, default(OnAgentLoss::Allow);
        /// How many handshakes may be under way at once, 1 to 1048576. Connections beyond that are refused, counted.
        handover_entries: u32, default(65_536);
    }

    /// Which destinations of outgoing connections are taken.
    pub struct Outbound("outbound") {
        /// What is taken. Empty: everything.
        include: Vec<Rule>, default(Vec::new());
        /// What of it is left alone.
        exclude: Vec<Rule>, default(Vec::new());
    }

    /// A set of destinations: all that is given must hold, and something must be given.
    pub struct Rule("rule") {
        /// The address is in this network.
        cidr: IpNet, optional("any address");
        /// The port is one of these.
        ports: Vec<RangeInclusive<u16>>, default(Vec::new());
    }
}

choice!(OnAgentLoss { Allow = "allow", Refuse = "refuse" });
