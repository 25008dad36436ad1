//! Rare failures, in words: into aya-log's ring, from which the agent takes them into its own log.
//!
//! Counters tell how often something happened; this tells of whose connection. Nothing on the usual way of a connection
//! comes here. Each reason is told at most once a second on each CPU, so that a failure that lasts cannot keep the agent
//! busy with reading of it. What lies below the level that the loader has set is no code at all: the verifier sees a
//! constant and drops the branch.

use aya_log_ebpf::{debug, warn};
use waylay_common::{addr::Endpoint, counter::Counter};

use crate::{hook, maps::WAYLAY_LOGGED};

const INTERVAL_NS: u64 = 1_000_000_000;

/// Tells of a connection to `destination` that took the exit `reason`, one of those below.
///
/// A program of its own to the verifier, as it is for the stack: the text of a message takes more of it than the hooks
/// have left.
#[inline(never)]
pub fn failure(reason: Counter, destination: &Endpoint) {
    if !is_due(reason) {
        return;
    }
    let (ip, port) = (destination.ip().octets(), destination.port());
    match reason {
        Counter::PassedUnconfigured => {
            warn!((), target: TARGET, "the maps hold no policy: the connection to {:i} port {} is not intercepted", ip, port);
        }
        Counter::PassedNoListener => {
            warn!((), target: TARGET, "nowhere to redirect the connection to {:i} port {}: it is not intercepted", ip, port);
        }
        Counter::PassedNoStorage => {
            warn!((), target: TARGET, "no memory to remember the connection to {:i} port {}: it is not intercepted", ip, port);
        }
        Counter::HandoverFull => {
            warn!((), target: TARGET, "the handover map is full: the connection to {:i} port {} will be refused", ip, port);
        }
        Counter::HandoverNoStorage => {
            warn!((), target: TARGET, "no memory for the accepted socket: the connection to {:i} port {} will be refused", ip, port);
        }
        Counter::FlowsFull => {
            warn!((), target: TARGET, "no room to remember the connection to the application at {:i} port {}: it is refused", ip, port);
        }
        Counter::HandoverAbandoned => {
            debug!((), target: TARGET, "the connection to {:i} port {} was closed before the agent had it", ip, port);
        }
        _ => {}
    }
}

/// What the agent's log calls the kernel's side.
const TARGET: &str = "waylay::ebpf";

#[inline(always)]
fn is_due(reason: Counter) -> bool {
    let Some(last) = WAYLAY_LOGGED.get_ptr_mut(reason as u32) else {
        return false;
    };
    let now = hook::now_ns();
    // SAFETY: the slot belongs to this CPU; a hook that is interrupted by another one may tell a second time.
    unsafe {
        if *last != 0 && now.saturating_sub(*last) < INTERVAL_NS {
            return false;
        }
        *last = now;
    }
    true
}
