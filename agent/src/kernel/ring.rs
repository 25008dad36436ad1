//! A ring of events that this process maps only while it reads it.
//!
//! Before it: `load` has made the ring. After it: `events` and `dispatch`, who read it. Of a ring that is mapped, the kernel
//! counts every page as memory of the process, and twice, as rings are mapped twice in a row. Most agents never read
//! some of them.

use aya::maps::{MapData, RingBuf};

use super::{KernelError, maps};

/// A ring that is there, and not mapped.
pub(super) struct Unmapped {
    name: &'static str,
    data: MapData,
}

impl Unmapped {
    pub(super) fn new(name: &'static str, data: MapData) -> Self {
        Self { name, data }
    }

    /// Maps it. A reader begins with the oldest event that no reader before it has taken.
    pub(super) fn map(&self) -> Result<RingBuf<MapData>, KernelError> {
        maps::typed(self.name, maps::duplicate(self.name, &self.data)?)
    }
}
