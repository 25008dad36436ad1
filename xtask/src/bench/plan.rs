//! How long a run measures what: everything, or the parts that say most within four minutes.

/// Numbers of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub name: &'static str,
    pub rounds: u32,
    /// Of one measurement of traffic.
    pub seconds: u32,
    /// How often each is started.
    pub starts: u32,
    /// Connections of the request tables.
    pub connections: &'static [u32],
    /// Whether the tables hold more than the rows that targets are about.
    pub whole: bool,
    /// Idle connections.
    pub idle: &'static [usize],
    /// Numbers of listeners, virtual hosts, routes and clusters.
    pub sizes: &'static [usize],
    /// Numbers of enrolled pods.
    pub pods: &'static [usize],
    /// Calls of connect(2) in one round.
    pub connects: usize,
}

pub const FULL: Plan = Plan {
    name: "full",
    rounds: 3,
    seconds: 1,
    starts: 5,
    connections: &[1, 32, 128],
    whole: true,
    idle: &[1000, 9000],
    sizes: &[10, 1000, 10_000],
    pods: &[10, 100, 300],
    connects: 6000,
};

pub const QUICK: Plan = Plan {
    name: "quick",
    rounds: 2,
    seconds: 1,
    starts: 3,
    connections: &[32],
    whole: false,
    idle: &[1000],
    sizes: &[10, 10_000],
    pods: &[10],
    connects: 3000,
};
