//! Moves bytes between two connected sockets, both ways, until both sides have ended.
//!
//! Before: [`super::proxy`], which connected the two. After: nothing; it reports how it ended. It must not know where
//! the sockets came from. One task serves both directions: it waits until a socket is ready, and lets each
//! `direction` move what can be moved.

use std::future::{Future, poll_fn};
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::direction::{Announced, Broken, Direction, Turn};
use super::reset_on_drop;
use crate::worker::Worker;

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
    /// Both sides said that they had nothing more to send, and everything was handed on. Who ended last may not have been
    /// told to the other side yet: it learns it when its socket is closed.
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
/// dropped. What it is given by value would be kept twice for as long as the connection is open, so most is borrowed.
pub async fn run(
    client: &TcpStream,
    endpoint: &TcpStream,
    worker: &Worker,
    limits: &Limits,
    account: &mut impl FnMut(Moved),
) -> End {
    let (up, down) = (Direction::default(), Direction::default());
    let end = Pump { client, endpoint, up, down, announced: Both::default(), account }.run(worker, limits).await;
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
    announced: Both,
    account: &'a mut A,
}

/// What is known of the two senders.
#[derive(Default)]
struct Both {
    client: Announced,
    endpoint: Announced,
}

impl<A: FnMut(Moved)> Pump<'_, A> {
    /// Reports what moved in this turn; whether anything did.
    fn report(&mut self) -> bool {
        let moved = Moved {
            from_client: std::mem::take(&mut self.up.read).into(),
            to_endpoint: std::mem::take(&mut self.up.written).into(),
            from_endpoint: std::mem::take(&mut self.down.read).into(),
            to_client: std::mem::take(&mut self.down.written).into(),
        };
        let any = moved != Moved::default();
        if any {
            (self.account)(moved);
        }
        any
    }

    async fn run(&mut self, worker: &Worker, limits: &Limits) -> End {
        let mut last_move = Instant::now();
        let mut timer = worker.timers.timer();
        loop {
            let turns = self.turn(worker);
            if self.report() {
                last_move = Instant::now();
            }
            let turns = match turns {
                Ok(turns) => turns,
                Err(end) => return end,
            };
            if self.up.is_done() && self.down.is_done() {
                return End::Complete;
            }
            if turns.contains(&Turn::Paused) {
                tokio::task::yield_now().await;
                continue;
            }
            let next = self.next(limits, last_move);
            let ready = {
                let mut ready = pin!(self.ready());
                poll_fn(|cx| match (ready.as_mut().poll(cx), next) {
                    (Poll::Ready(ready), _) => Poll::Ready(Some(ready)),
                    (Poll::Pending, Some(next)) => timer.poll(cx, next).map(|()| None),
                    (Poll::Pending, None) => Poll::Pending,
                })
                .await
            };
            match ready {
                Some(Ok(announced)) => self.announced = announced,
                Some(Err(end)) => return end,
                None => {
                    let now = Instant::now();
                    if limits.deadline.is_some_and(|deadline| deadline <= now) {
                        return End::Deadline;
                    }
                    if limits.idle.is_some_and(|idle| last_move + idle <= now) {
                        return End::Idle;
                    }
                    self.up.ask_for_rest(self.client, now);
                    self.down.ask_for_rest(self.endpoint, now);
                }
            }
        }
    }

    /// What the timer is set to.
    fn next(&self, limits: &Limits, last_move: Instant) -> Option<Instant> {
        let idle = limits.idle.map(|idle| last_move + idle);
        [idle, limits.deadline, self.up.waits_until(), self.down.waits_until()].into_iter().flatten().min()
    }

    /// Moves what can be moved without waiting, and tells each side of the other's end. When both have ended they learn
    /// it from the closing of their sockets, which follows at once and says the same.
    fn turn(&mut self, worker: &Worker) -> Result<[Turn; 2], End> {
        let announced = std::mem::take(&mut self.announced);
        let up = self.up.turn(self.client, self.endpoint, worker, announced.client).map_err(|broken| match broken {
            Broken::Sender => End::ClientReset,
            Broken::Receiver => End::EndpointReset,
        })?;
        let down =
            self.down.turn(self.endpoint, self.client, worker, announced.endpoint).map_err(|broken| match broken {
                Broken::Sender => End::EndpointReset,
                Broken::Receiver => End::ClientReset,
            })?;
        if !(self.up.is_done() && self.down.is_done()) {
            for (turn, receiver) in [(up, self.endpoint), (down, self.client)] {
                if turn == Turn::Ended {
                    // Fails when the receiver is gone: its own direction notices that.
                    let _ = SockRef::from(receiver).shutdown(Shutdown::Write);
                }
            }
        }
        Ok([up, down])
    }

    /// Waits until one of the sockets is ready for what its directions need. A connection that is only open waits for both
    /// senders: the sockets have a place for whoever reads. What else there is to wait for is in memory of its own.
    async fn ready(&self) -> Result<Both, End> {
        if self.up.reads() && self.down.reads() {
            return poll_fn(|cx| self.poll_senders(cx)).await;
        }
        Box::pin(self.ready_for_some()).await
    }

    /// Ready when either has sent, ended or reset.
    fn poll_senders(&self, cx: &mut Context<'_>) -> Poll<Result<Both, End>> {
        let client = self.client.poll_read_ready(cx).is_ready();
        let endpoint = self.endpoint.poll_read_ready(cx).is_ready();
        if !client && !endpoint {
            return Poll::Pending;
        }
        let told = |is_ready: bool, stream: &TcpStream, from: &Direction| match is_ready {
            true => announced(readiness(stream), from),
            false => Some(Announced::Nothing),
        };
        Poll::Ready(match (told(client, self.client, &self.up), told(endpoint, self.endpoint, &self.down)) {
            (None, _) => Err(End::ClientReset),
            (_, None) => Err(End::EndpointReset),
            (Some(client), Some(endpoint)) => Ok(Both { client, endpoint }),
        })
    }

    async fn ready_for_some(&self) -> Result<Both, End> {
        tokio::select! {
            ready = self.client.ready(interest(&self.up, &self.down)) => {
                let client = announced(ready, &self.up).ok_or(End::ClientReset)?;
                Ok(Both { client, endpoint: Announced::Nothing })
            }
            ready = self.endpoint.ready(interest(&self.down, &self.up)) => {
                let endpoint = announced(ready, &self.down).ok_or(End::EndpointReset)?;
                Ok(Both { client: Announced::Nothing, endpoint })
            }
        }
    }
}

/// What is known of a socket that may be read from, without waiting and without a system call.
fn readiness(stream: &TcpStream) -> io::Result<Ready> {
    let interest = Interest::READABLE.add(Interest::ERROR);
    stream.ready(interest).now_or_never().unwrap_or(Ok(Ready::EMPTY))
}

/// What the socket that sends in `from` and receives in `to` has to be ready for.
fn interest(from: &Direction, to: &Direction) -> Interest {
    let mut interest = Interest::ERROR;
    if from.reads() {
        interest = interest.add(Interest::READABLE);
    }
    if to.holds() {
        interest = interest.add(Interest::WRITABLE);
    }
    interest
}

/// What readiness tells of the sender of `from`. `None`: it is gone, and nobody will find out by reading: it has ended
/// already, or its receiver is too slow. Who still reads gets the bytes that came before the reset first.
fn announced(ready: io::Result<Ready>, from: &Direction) -> Option<Announced> {
    match ready {
        Ok(ready) if ready.is_error() && !from.reads() => None,
        Ok(ready) if ready.is_read_closed() => Some(Announced::End),
        Ok(_) => Some(Announced::Nothing),
        Err(_) => None,
    }
}
