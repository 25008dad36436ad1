//! What one connect(2) takes, from the call to its return. On loopback that is the whole handshake.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt::Linger};

use crate::bench::stats::percentile;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    to: SocketAddrV4,
    #[arg(long)]
    count: usize,
}

/// Writes the median and the 90th percentile in us.
pub fn run(args: &Args) -> Result<()> {
    // Closing sends a reset: no port stays in TIME_WAIT, and searching a free one takes the same for every call.
    let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let address = SockaddrIn::from(args.to);
    let mut nanoseconds = Vec::with_capacity(args.count);
    for _ in 0..args.count {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, Linger, &reset)?;
        let started = Instant::now();
        connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address)
            .with_context(|| format!("cannot connect to {}", SocketAddr::from(args.to)))?;
        nanoseconds.push(u64::try_from(started.elapsed().as_nanos())?);
    }
    if nanoseconds.is_empty() {
        bail!("--count has to be above 0");
    }
    nanoseconds.sort_unstable();
    let us = |share| percentile(&nanoseconds, share) as f64 / 1e3;
    println!("{}", serde_json::json!({"p50_us": us(0.5), "p90_us": us(0.9)}));
    Ok(())
}
