//! Moves bytes between two connected sockets, both ways, until both sides have ended.
//!
//! Before: [`super::proxy`], which connected the two. After: nothing; it reports how it ended. It must not know where
//! the sockets came from. One task serves both directions: it waits until a socket is ready, moves what can be moved
//! through the worker's scratch buffer, and keeps bytes of its own only while a receiver does not take them.

use std::io;
use std::net::Shutdown;
use std::time::Duration;

use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::reset_on_drop;
use crate::worker::Worker;

/// Buffers moved in one direction before other connections of the worker get their turn: 256 KiB, some tens of
/// microseconds.
const MOVES_PER_TURN: usize = 4;

/// When a pump gives up by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Nothing moved either way for so long.
    pub idle: Option<Duration>,
    /// The connection's last moment, however busy it is.
    pub deadline: Option<Instant>,
}

/// Bytes that moved since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Read from the client.
    pub from_client: u64,
    /// Written to the endpoint.
    pub to_endpoint: u64,
    /// Read from the endpoint.
    pub from_endpoint: u64,
    /// Written to the client.
    pub to_client: u64,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides said that they had nothing more to send, and everything was handed on.
    Complete,
    /// The client reset the connection; the endpoint was reset too.
    ClientReset,
    /// The endpoint reset the connection; the client was reset too.
    EndpointReset,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The deadline passed.
    Deadline,
}

/// Pumps until the end. `account` is told of all bytes as they move, so that the sums are right whenever the pump is
/// dropped.
pub async fn run(
    client: &TcpStream,
    endpoint: &TcpStream,
    worker: &Worker,
    limits: Limits,
    account: impl FnMut(Moved),
) -> End {
    let end = Pump { client, endpoint, up: Direction::default(), down: Direction::default(), account }
        .run(worker, limits)
        .await;
    if matches!(end, End::ClientReset | End::EndpointReset) {
        reset_on_drop(client);
        reset_on_drop(endpoint);
    }
    end
}

/// Both directions of one connection. Dropping it loses nothing but what its receiver did not take.
struct Pump<'a, A> {
    client: &'a TcpStream,
    endpoint: &'a TcpStream,
    up: Direction,
    down: Direction,
    account: A,
}

/// One direction.
#[derive(Default)]
struct Direction {
    /// Since the last report.
    read: u64,
    /// Since the last report.
    written: u64,
    /// Read, but not taken by the receiver yet; no memory while it is empty.
    pending: Vec<u8>,
    /// How much of `pending` is sent.
    sent: usize,
    /// The sender has ended, and the receiver knows.
    done: bool,
}

/// Which side a failure came from.
#[derive(Clone, Copy)]
enum Broken {
    Sender,
    Receiver,
}

/// How far a direction came in its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It has to wait for a socket.
    Waits,
    /// It could go on, but others want to as well.
    Paused,
}

impl<A: FnMut(Moved)> Pump<'_, A> {
    /// Reports what moved in this turn; whether anything did.
    fn report(&mut self) -> bool {
        let moved = Moved {
            from_client: std::mem::take(&mut self.up.read),
            to_endpoint: std::mem::take(&mut self.up.written),
            from_endpoint: std::mem::take(&mut self.down.read),
            to_client: std::mem::take(&mut self.down.written),
        };
        let any = moved != Moved::default();
        if any {
            (self.account)(moved);
        }
        any
    }

    async fn run(&mut self, worker: &Worker, limits: Limits) -> End {
        let mut last_move = Instant::now();
        let mut timer = std::pin::pin!(sleep_until(last_move));
        let mut timer_set = false;
        loop {
            let turns = self.turn(worker);
            if self.report() {
                last_move = Instant::now();
            }
            let turns = match turns {
                Ok(turns) => turns,
                Err(end) => return end,
            };
            if self.up.done && self.down.done {
                return End::Complete;
            }
            if turns.contains(&Turn::Paused) {
                tokio::task::yield_now().await;
                continue;
            }
            let next = [limits.idle.map(|idle| last_move + idle), limits.deadline].into_iter().flatten().min();
            // The timer is not moved with every byte: when it fires, it is set to what is right by then.
            if let (Some(next), false) = (next, timer_set) {
                timer.as_mut().reset(next);
                timer_set = true;
            }
            tokio::select! {
                biased;
                end = self.ready() => if let Some(end) = end { return end },
                () = &mut timer, if timer_set => {
                    timer_set = false;
                    match next {
                        Some(next) if next > Instant::now() => {}
                        _ if limits.deadline.is_some_and(|deadline| deadline <= Instant::now()) => return End::Deadline,
                        _ => return End::Idle,
                    }
                }
            }
        }
    }

    /// Moves what can be moved without waiting.
    fn turn(&mut self, worker: &Worker) -> Result<[Turn; 2], End> {
        let up = self.up.turn(self.client, self.endpoint, worker).map_err(|broken| match broken {
            Broken::Sender => End::ClientReset,
            Broken::Receiver => End::EndpointReset,
        })?;
        let down = self.down.turn(self.endpoint, self.client, worker).map_err(|broken| match broken {
            Broken::Sender => End::EndpointReset,
            Broken::Receiver => End::ClientReset,
        })?;
        Ok([up, down])
    }

    /// Waits until one of the sockets is ready for what its directions need.
    async fn ready(&self) -> Option<End> {
        tokio::select! {
            ready = self.client.ready(interest(&self.up, &self.down)) => {
                lost(ready, &self.up).then_some(End::ClientReset)
            }
            ready = self.endpoint.ready(interest(&self.down, &self.up)) => {
                lost(ready, &self.down).then_some(End::EndpointReset)
            }
        }
    }
}

/// What the socket that sends in `from` and receives in `to` has to be ready for.
fn interest(from: &Direction, to: &Direction) -> Interest {
    let mut interest = Interest::ERROR;
    if from.reads() {
        interest = interest.add(Interest::READABLE);
    }
    if !to.pending.is_empty() {
        interest = interest.add(Interest::WRITABLE);
    }
    interest
}

/// Whether the sender of `from` is gone and nobody will find out by reading: it has ended already, or its receiver is
/// too slow. Who still reads gets the bytes that came before the reset first.
fn lost(ready: io::Result<Ready>, from: &Direction) -> bool {
    match ready {
        Ok(ready) => ready.is_error() && !from.reads(),
        Err(_) => true,
    }
}

impl Direction {
    /// Whether it waits for the sender.
    fn reads(&self) -> bool {
        !self.done && self.pending.is_empty()
    }

    fn turn(&mut self, sender: &TcpStream, receiver: &TcpStream, worker: &Worker) -> Result<Turn, Broken> {
        for _ in 0..MOVES_PER_TURN {
            if !self.flush(receiver)? || self.done {
                return Ok(Turn::Waits);
            }
            match worker.with_scratch(|scratch| self.step(sender, receiver, scratch))? {
                Step::Moved => {}
                Step::Drained => return Ok(Turn::Waits),
                Step::Ended => {
                    self.done = true;
                    // Fails when the receiver is gone: its own direction notices that.
                    let _ = socket2::SockRef::from(receiver).shutdown(Shutdown::Write);
                    return Ok(Turn::Waits);
                }
            }
        }
        Ok(Turn::Paused)
    }

    /// Reads once and writes as much of it as the receiver takes; keeps the rest.
    fn step(&mut self, sender: &TcpStream, receiver: &TcpStream, scratch: &mut [u8]) -> Result<Step, Broken> {
        let bytes = match sender.try_read(scratch) {
            Ok(0) => return Ok(Step::Ended),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Drained),
            Err(_) => return Err(Broken::Sender),
        };
        self.read += bytes as u64;
        let sent = write(receiver, &scratch[..bytes])?;
        self.written += sent as u64;
        self.pending.extend_from_slice(&scratch[sent..bytes]);
        if bytes == scratch.len() {
            return Ok(Step::Moved);
        }
        // The socket is empty. Saying so saves the read that would find out; bytes that arrive meanwhile raise a new
        // edge, and an end stays known.
        let _ = sender.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        Ok(Step::Drained)
    }

    /// Sends what is pending; whether nothing is pending any more.
    fn flush(&mut self, receiver: &TcpStream) -> Result<bool, Broken> {
        if self.pending.is_empty() {
            return Ok(true);
        }
        let sent = write(receiver, &self.pending[self.sent..])?;
        self.written += sent as u64;
        self.sent += sent;
        if self.sent < self.pending.len() {
            return Ok(false);
        }
        self.pending = Vec::new();
        self.sent = 0;
        Ok(true)
    }
}

/// What one step brought.
enum Step {
    Moved,
    Drained,
    Ended,
}

/// Writes what the receiver takes at once.
fn write(receiver: &TcpStream, bytes: &[u8]) -> Result<usize, Broken> {
    let mut sent = 0;
    while sent < bytes.len() {
        match receiver.try_write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => return Err(Broken::Receiver),
        }
    }
    Ok(sent)
}
