//! What one connect(2) takes on several ways, side by side: one process holds both ends of all of them and goes round in
//! short batches, so that nobody has to be woken and all ways meet the same minute.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{SocketAddrV4, TcpListener},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, connect, listen, setsockopt, socket, sockopt::Linger,
    },
};
use serde::{Deserialize, Serialize};

use crate::bench::stats::percentile;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A [`Plan`] in JSON
    #[arg(long)]
    plan: PathBuf,
}

/// What is measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    pub rounds: usize,
    /// Batches of each way in a round.
    pub batches: usize,
    /// Calls of a batch.
    pub calls: usize,
    pub servers: Vec<Server>,
    pub ways: Vec<Way>,
}

/// A listening socket of this process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Server {
    pub at: SocketAddrV4,
    pub side: Side,
}

/// What is dialled, and from where.
#[derive(Debug, Serialize, Deserialize)]
pub struct Way {
    pub name: String,
    pub to: SocketAddrV4,
    pub side: Side,
    /// Which of the servers the connections come to.
    pub server: usize,
}

/// Where a socket is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// A file of the network namespace.
    pub netns: PathBuf,
    /// The folder of a control group.
    pub group: PathBuf,
}

impl Side {
    fn enter(&self) -> Result<()> {
        let namespace = File::open(&self.netns).with_context(|| format!("cannot open {}", self.netns.display()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
        join(&self.group)
    }
}

fn join(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("cannot join {}", group.display()))
}

/// Microseconds of one call, for each round: the median of the medians of its batches.
pub type Told = BTreeMap<String, Vec<f64>>;

/// As the proxies have it.
const BACKLOG: i32 = 4096;
/// Calls before those that are counted: the first ones find cold caches.
const WARM: usize = 5;

/// Writes what it [`Told`].
pub fn run(args: &Args) -> Result<()> {
    let text = fs::read_to_string(&args.plan).with_context(|| format!("cannot read {}", args.plan.display()))?;
    let plan: Plan = serde_json::from_str(&text).with_context(|| format!("no plan: {}", args.plan.display()))?;
    if plan.batches == 0 || plan.calls == 0 || plan.ways.is_empty() {
        bail!("the plan has no calls");
    }
    let servers = plan.servers.iter().map(Server::listen).collect::<Result<Vec<_>>>()?;
    let mut told = Told::new();
    for _ in 0..plan.rounds {
        let mut medians: Vec<Vec<u64>> = vec![Vec::new(); plan.ways.len()];
        for batch in 0..plan.batches {
            for turn in 0..plan.ways.len() {
                // Nobody is always the one after the same other one.
                let index = (turn + batch) % plan.ways.len();
                let way = &plan.ways[index];
                let server = servers.get(way.server).context("a way to no server")?;
                medians[index].push(way.batch(server, plan.calls)?);
            }
        }
        for (way, mut medians) in plan.ways.iter().zip(medians) {
            medians.sort_unstable();
            told.entry(way.name.clone()).or_default().push(percentile(&medians, 0.5) as f64 / 1e3);
        }
    }
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

impl Server {
    fn listen(&self) -> Result<TcpListener> {
        self.side.enter()?;
        let listener = TcpListener::bind(self.at).with_context(|| format!("cannot listen at {}", self.at))?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl Way {
    /// The median, in nanoseconds.
    fn batch(&self, server: &TcpListener, calls: usize) -> Result<u64> {
        self.side.enter()?;
        let address = SockaddrIn::from(self.to);
        let mut nanoseconds = Vec::with_capacity(calls);
        for call in 0..WARM + calls {
            let took = call_once(&address).with_context(|| format!("{}: cannot connect to {}", self.name, self.to))?;
            // It has come, as connect(2) has returned; it was reset by now.
            drop(server.accept());
            if call >= WARM {
                nanoseconds.push(took);
            }
        }
        nanoseconds.sort_unstable();
        Ok(percentile(&nanoseconds, 0.5))
    }
}

fn call_once(address: &SockaddrIn) -> Result<u64> {
    // Closing sends a reset: no port stays in TIME_WAIT, and searching a free one takes the same for every call.
    let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, Linger, &reset)?;
    let started = Instant::now();
    connect(socket.as_raw_fd(), address)?;
    Ok(u64::try_from(started.elapsed().as_nanos())?)
}
