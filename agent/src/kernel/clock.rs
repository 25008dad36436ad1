//! The clock that the hooks read too: `bpf_ktime_get_ns` is `CLOCK_MONOTONIC`, which stands still during suspend.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub(super) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
