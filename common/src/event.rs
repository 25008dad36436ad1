//! One decision of a connect hook, as it goes through the ring buffer while somebody traces.

use crate::{addr::Endpoint, flow::ProcessStamp};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawEvent {
    pub process: ProcessStamp,
    pub destination: Endpoint,
    /// [`crate::counter::Counter`] of the exit that was taken: verdict and reason in one.
    pub counter: u32,
}

const _: () = assert!(size_of::<RawEvent>() == 72);
