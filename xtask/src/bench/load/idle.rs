//! Connections that are open and silent: what a proxy holds for them is what each costs.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use anyhow::{Context as _, Result};

use super::{REQUESTS, connect_to, exchange};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    connections: usize,
    /// Send one request on each and wait for its answer
    #[arg(long)]
    request: bool,
}

/// Writes `ready` when all are open, and holds them until stdin ends.
pub fn run(args: &Args) -> Result<()> {
    let mut open = Vec::with_capacity(args.connections);
    for number in 0..args.connections {
        let mut stream = connect_to(args.to).with_context(|| format!("connection {number}"))?;
        if args.request {
            exchange(&mut stream, REQUESTS[number % REQUESTS.len()]).with_context(|| format!("connection {number}"))?;
        }
        open.push(stream);
    }
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
