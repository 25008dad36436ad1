//! The kernel side as the agent sees it: the only place that names aya.
//!
//! Before it: nothing, the hooks are the first stage of a connection. After it: `worker` accepts what they redirect and
//! asks [`Kernel::handover`] where it was going. This module knows nothing of listeners' contents, routes or clusters.
//!
//! | needed of the kernel | since Linux |
//! |---|---|
//! | socket storage (`SK_STORAGE`), getsockopt hook | 5.2, 5.3 |
//! | bpf_link for cgroups, network namespace cookies | 5.7 |
//! | getpeername hooks, ring buffer, socket storage in connect hooks | 5.8 |
//! | detached mounts | 5.2 |
//! | sk_lookup | 5.9 |
//! | arrays in the agent's memory, comparing and swapping words | 5.5, 5.12 |
//! | `SO_NETNS_COOKIE` | 5.14 |
//! | `bpf_set_retval` and the calling task in connect hooks | **6.1** |
//!
//! The newest of these is checked at start. One thing more is used where it is there, since Linux 6.17: links that go
//! before other programs (`BPF_F_PREORDER`, see `neighbours`).
//!
//! The verifier of 6.1 walks up to 3.4 times as many instructions of the same program as that of 6.18: of
//! `waylay_connect6` some 317,000 for 94,000, seen before dispatch in the kernel came to it, and the slots of clients, which make
//! 149,000 on 6.18 and so should make some 510,000 on 6.1. The longest walk that was seen there is `waylay_dns_con6` with 415,000; at 1,000,000 it
//! gives up.

mod attach;
pub mod cgroup;
mod clock;
pub mod dispatch;
mod dns;
mod enrol;
mod error;
mod events;
mod exempt;
mod handle;
mod handover;
mod inbound;
pub mod inspect;
mod interception;
pub mod leftovers;
mod link;
mod load;
mod log;
mod maps;
mod namespaces;
pub mod neighbours;
mod own_process;
mod pins;
mod policies;
pub mod policy;
mod processes;
pub mod requirements;
mod ring;
mod rival;
mod rows;
mod sockets;
mod unit;

use std::time::Duration;

use waylay_common::limits;

use load::Loaded;

pub use dns::ResolverRow;
pub use error::KernelError;
pub use events::{DecisionEvent, Trace, Verdict};
pub use handle::Kernel;
pub use handover::{Handover, Process};
pub use interception::{InterceptOptions, Interception};
pub use log::Log;
pub use namespaces::{Enrolment, InboundEnrolment};
pub use policy::{Policy, PolicyError, Rule};
pub use processes::ProcessError;
pub use waylay_common::{counter::Counter, settings::OnAgentLoss};

/// How often [`Interception::heartbeat`] must be called at least.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(limits::HEARTBEAT_INTERVAL_MS);
/// The silence after which the hooks take the agent for lost.
pub const HEARTBEAT_LOSS: Duration = Duration::from_millis(limits::HEARTBEAT_LOSS_MS);
/// Room for the agent's own connections on the inbound side.
pub const FLOW_ENTRIES: u32 = limits::FLOW_ENTRIES;
/// Room for handshakes in flight.
pub const HANDOVER_ENTRIES: u32 = limits::HANDOVER_ENTRIES;

const _: () = {
    const fn shared_by_workers<T: Clone + Send + Sync>() {}
    const fn moved_into_a_task<T: Send>() {}
    shared_by_workers::<Kernel>();
    moved_into_a_task::<Trace>();
    moved_into_a_task::<Log>();
    moved_into_a_task::<Interception>();
};
