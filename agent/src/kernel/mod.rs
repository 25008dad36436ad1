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
//! The verifier gives up at 1,000,000 instructions, and that of 6.1 walks more of the same program than that of 6.18.
//! Seen on Debian's 6.1.192 and on 6.18.44 (`verified_insns` of `struct bpf_prog_info`):
//!
//! | program | 6.1 | 6.18 |
//! |---|---|---|
//! | `waylay_connect4`, `waylay_connect6` | 37,233, 178,630 | 29,981, 148,787 |
//! | `waylay_sockops` | 16,446 | 9,671 |
//! | `waylay_sockopt` | 1,465 | 1,078 |
//! | `waylay_peer4`, `waylay_peer6` | 126, 149 | 123, 140 |
//! | `waylay_inbound` | 2,658 | 1,723 |
//! | `waylay_dns_con4`, `waylay_dns_snd4` | 61,598 each | 32,484 each |
//! | `waylay_dns_con6`, `waylay_dns_snd6` | 365,430 each | 329,529 each |
//! | `waylay_dns_rcv*`, `waylay_dns_pee*` | 60 and 127 | 59 and 126 |

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
