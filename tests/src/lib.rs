//! The harness of the tests on the real kernel.
//!
//! A [`World`] is a place of its own: a network namespace with loopback up, a cgroup for the intercepted programs,
//! one for everything else, and a folder. Ports, cgroups and names never meet those of another test, so that all of
//! them run at once, and twice. Dropping the world ends every process it started and takes everything away, also when
//! the test failed.

pub mod agent;
pub mod config;
pub mod containerd;
pub mod origin;
pub mod pods;
pub mod process;
pub mod resolver;
pub mod tools;
pub mod world;

pub use agent::Agent;
pub use containerd::{Containerd, Pod, PodSpec};
pub use origin::Origin;
pub use process::{Child, Finished};
pub use resolver::Resolver;
pub use world::World;

use std::time::{Duration, Instant};

/// Longest wait for something that should come soon. Generous: the machine may be busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
///
/// # Panics
/// It did not within [`SOON`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "still not so after {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
