//! The kernel side on the real kernel: run as root. Every test has a child cgroup and an instance of its own, and takes
//! both away, also when it fails.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cells;
mod connections;
mod inbound;
mod life;
mod loss;
mod neighbours;
mod own_process;
mod places;
mod pod;
mod processes;
mod world;

use std::net::SocketAddr;

use waylay::kernel::{Policy, Rule};

const NOBODY: &str = "127.77.0.1:80";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn exclude(address: SocketAddr) -> Policy {
    let port = address.port();
    let rule = Rule { cidr: Some(address.ip().into()), ports: vec![port..=port] };
    Policy { include: vec![], exclude: vec![rule] }
}
