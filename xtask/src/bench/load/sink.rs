//! A server that accepts connections and closes them: the far end for what is not about the server.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use nix::sys::socket::{Backlog, listen};

/// As the proxies have it.
const BACKLOG: i32 = 4096;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    at: SocketAddr,
}

/// Serves until it is ended.
pub fn run(args: &Args) -> Result<()> {
    let listener = TcpListener::bind(args.at).with_context(|| format!("cannot listen at {}", args.at))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    loop {
        // Clients reset their connections: what becomes of one is no error of the sink.
        drop(listener.accept());
    }
}
