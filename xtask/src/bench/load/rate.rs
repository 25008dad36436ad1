//! Requests at a fixed rate, on keepalive connections, from one thread.
//!
//! A request's time runs from when it was *due*, not from when it could be sent: a server that stalls is charged for
//! every request that the stall delayed (no coordinated omission). It goes out on a free connection, or waits for one.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use super::{REQUESTS, answered, connect_to};
use crate::bench::stats::percentile;

/// How long answers are awaited after the last request was due; then their time so far counts.
const PATIENCE: Duration = Duration::from_secs(2);
/// Not measured: the proxy opens its connections to the origins meanwhile.
const WARM_UP: Duration = Duration::from_millis(200);
/// A timer of 0 is a timer that is off.
const SHORTEST: Duration = Duration::from_nanos(1);
const EVENTS: usize = 64;
const TIMER: u64 = u64::MAX;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    to: SocketAddr,
    /// Requests a second
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    seconds: f64,
    #[arg(long, default_value_t = 32)]
    connections: usize,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// When the request was due that waits for its answer.
    due: Option<Instant>,
}

#[derive(Debug)]
struct Run {
    connections: Vec<Connection>,
    free: Vec<usize>,
    /// Due times of requests that wait for a connection.
    waiting: VecDeque<Instant>,
    sent: usize,
    measured_from: Instant,
    /// In us.
    latencies: Vec<u64>,
    errors: u64,
}

/// Writes the number of answers and errors, and percentiles in us.
pub fn run(args: &Args) -> Result<()> {
    if args.rate == 0 || args.connections == 0 {
        bail!("--rate and --connections have to be above 0");
    }
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    epoll.add(timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
    let mut run = Run::open(args, &epoll)?;
    let interval = Duration::from_secs(1) / args.rate;
    let total = ((WARM_UP.as_secs_f64() + args.seconds) * f64::from(args.rate)) as u32;
    let started = Instant::now();
    run.measured_from = started + WARM_UP;
    let mut next = 0;
    let mut events = [EpollEvent::empty(); EVENTS];
    while next < total || (run.outstanding() && started.elapsed() < interval * total + PATIENCE) {
        while next < total && started + interval * next <= Instant::now() {
            run.waiting.push_back(started + interval * next);
            next += 1;
        }
        run.send()?;
        if next < total {
            // The timer is the only thing that is finer than a millisecond.
            let left = (started + interval * next).saturating_duration_since(Instant::now()).max(SHORTEST);
            timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?;
        }
        let count = epoll.wait(&mut events, EpollTimeout::from(100u8))?;
        for event in &events[..count] {
            match event.data() {
                TIMER => drop(timer.wait()),
                index => run.receive(usize::try_from(index)?)?,
            }
        }
    }
    run.give_up();
    run.tell()
}

impl Run {
    fn open(args: &Args, epoll: &Epoll) -> Result<Self> {
        let mut connections = Vec::with_capacity(args.connections);
        for index in 0..args.connections {
            let stream = connect_to(args.to)?;
            stream.set_nonblocking(true)?;
            epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            connections.push(Connection { stream, received: Vec::new(), due: None });
        }
        let free = (0..args.connections).rev().collect();
        let (waiting, latencies) = (VecDeque::new(), Vec::new());
        Ok(Self { connections, free, waiting, sent: 0, measured_from: Instant::now(), latencies, errors: 0 })
    }

    fn outstanding(&self) -> bool {
        !self.waiting.is_empty() || self.free.len() < self.connections.len()
    }

    fn send(&mut self) -> Result<()> {
        while !self.free.is_empty() {
            let Some(due) = self.waiting.pop_front() else { break };
            let Some(index) = self.free.pop() else { break };
            let request = REQUESTS[self.sent % REQUESTS.len()];
            self.sent += 1;
            let connection = &mut self.connections[index];
            // So few bytes fit into an idle connection's send buffer.
            connection.stream.write_all(request.as_bytes()).context("cannot send a request")?;
            connection.due = Some(due);
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> Result<()> {
        let connection = self.connections.get_mut(index).context("an event of no connection")?;
        let mut chunk = [0; 4096];
        match connection.stream.read(&mut chunk) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(length) => connection.received.extend_from_slice(&chunk[..length]),
            Err(reason) if reason.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(reason) => return Err(reason).context("cannot read an answer"),
        }
        if let Some(success) = answered(&connection.received) {
            connection.received.clear();
            let due = connection.due.take();
            self.free.push(index);
            self.count(due, success);
        }
        Ok(())
    }

    fn count(&mut self, due: Option<Instant>, success: bool) {
        let Some(due) = due.filter(|due| *due >= self.measured_from) else { return };
        self.latencies.push(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.errors += u64::from(!success);
    }

    /// What was not answered took at least until now.
    fn give_up(&mut self) {
        let unanswered: Vec<Instant> = self
            .waiting
            .drain(..)
            .chain(self.connections.iter_mut().filter_map(|connection| connection.due.take()))
            .collect();
        for due in unanswered {
            self.count(Some(due), false);
        }
    }

    fn tell(mut self) -> Result<()> {
        self.latencies.sort_unstable();
        let us = |share| percentile(&self.latencies, share);
        let told = serde_json::json!({
            "requests": self.latencies.len(), "errors": self.errors,
            "p50_us": us(0.5), "p99_us": us(0.99), "p999_us": us(0.999),
        });
        println!("{told}");
        Ok(())
    }
}
