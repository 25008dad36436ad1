//! One decision of a connect hook or of an inbound hook, as it goes through the ring buffer while somebody traces.

use crate::{addr::Endpoint, flow::ProcessStamp};

/// Which hook decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum HookSide {
    /// A connect hook: a process connects.
    Connect = 1,
    /// An inbound hook: a connection arrives.
    Inbound = 2,
}

impl HookSide {
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Connect),
            2 => Some(Self::Inbound),
            _ => None,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawEvent {
    /// Who connects; of what arrives, only the network namespace and the time are known.
    pub process: ProcessStamp,
    /// Where the connection comes from; none where it has no address yet, that is in connect hooks.
    pub source: Endpoint,
    pub destination: Endpoint,
    /// [`crate::counter::Counter`] of the exit that was taken: verdict and reason in one.
    pub counter: u32,
    /// [`HookSide`].
    pub side: u32,
}

const _: () = assert!(size_of::<RawEvent>() == 96);
