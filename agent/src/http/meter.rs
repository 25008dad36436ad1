//! What moves on one request, and the clock that watches it.
//!
//! The request's body writes to a [`Meter`], wherever it is read; the router and the response's body wait with a [`Clock`].

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::timer::{Timer, Timers};

/// What moved so far.
pub struct Meter {
    /// Of the request's body.
    pub received: Cell<u64>,
    /// Of the response's body.
    pub sent: Cell<u64>,
    began: Instant,
    /// When something moved last.
    moved: Cell<Instant>,
    /// When the request had arrived as a whole.
    arrived: Cell<Option<Instant>>,
    /// Reading the request's body failed: the client went away, or broke its framing.
    failed: Cell<bool>,
    waiting: Cell<Option<Waker>>,
}

impl Meter {
    /// Of a request whose headers arrived at `began`.
    pub fn new(began: Instant) -> Self {
        Self {
            received: Cell::new(0),
            sent: Cell::new(0),
            began,
            moved: Cell::new(began),
            arrived: Cell::new(None),
            failed: Cell::new(false),
            waiting: Cell::new(None),
        }
    }

    /// So many bytes of the request's body came.
    pub fn receive(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        self.moved.set(Instant::now());
    }

    /// So many bytes of the response's body went, and more is to come.
    pub fn send(&self, bytes: usize) {
        self.send_last(bytes);
        self.moved.set(Instant::now());
    }

    /// So many bytes of the response's body went, and those were the last: nobody waits for anything to move any more.
    pub fn send_last(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    /// The headers were all there was of the request.
    pub fn arrive_at_once(&self) {
        self.arrived.set(Some(self.began));
    }

    /// The request is complete.
    pub fn arrive(&self) {
        if self.arrived.get().is_none() {
            self.arrived.set(Some(Instant::now()));
            if let Some(waiting) = self.waiting.take() {
                waiting.wake();
            }
        }
    }

    /// Whether the request is complete.
    pub fn has_arrived(&self) -> bool {
        self.arrived.get().is_some()
    }

    /// The request will never be complete.
    pub fn fail(&self) {
        self.failed.set(true);
    }

    /// Whether the request will never be complete.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }
}

/// Whose time it was that ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// The route's timeout, from the end of the request.
    Route,
    /// Nothing moved for the stream idle timeout.
    Idle,
    /// The request did not arrive within `request_timeout`.
    Request,
}

/// Waits for the first of a request's timeouts. Cheap while nothing has to be waited for.
pub struct Clock {
    meter: Rc<Meter>,
    /// From the end of the request.
    pub route: Option<Duration>,
    /// Without anything moving.
    pub idle: Option<Duration>,
    /// From the request's headers to its end.
    pub request: Option<Duration>,
    timer: Timer,
}

impl Clock {
    /// A clock without a limit.
    pub fn new(meter: Rc<Meter>, timers: &Timers) -> Self {
        Self { meter, route: None, idle: None, request: None, timer: timers.timer() }
    }

    /// The next deadline.
    fn next(&self) -> Option<(Instant, Expired)> {
        let arrived = self.meter.arrived.get();
        let route = arrived.zip(self.route).map(|(arrived, route)| (arrived + route, Expired::Route));
        let idle = self.idle.map(|idle| (self.meter.moved.get() + idle, Expired::Idle));
        let request = match arrived {
            None => self.request.map(|request| (self.meter.began + request, Expired::Request)),
            Some(_) => None,
        };
        [route, request, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Ready when a deadline has passed.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        if !self.meter.has_arrived() {
            self.meter.waiting.set(Some(cx.waker().clone()));
        }
        let Some((at, expired)) = self.next() else { return Poll::Pending };
        self.timer.poll(cx, at).map(|()| expired)
    }

    /// `future`, unless a deadline passes first. It has to be pinned already: here, it would be held twice.
    pub async fn race<F: Future + Unpin>(&mut self, mut future: F) -> Result<F::Output, Expired> {
        poll_fn(|cx| match Pin::new(&mut future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_expired(cx).map(Err),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// Runs `test` as a worker would, in paused time, with a clock that has no limit yet.
    fn paused(test: impl AsyncFnOnce(Clock, Rc<Meter>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        tokio::task::LocalSet::new().block_on(&runtime.expect("runtime"), async {
            let meter = Rc::new(Meter::new(Instant::now()));
            test(Clock::new(meter.clone(), &Timers::default()), meter).await;
        });
    }

    #[test]
    fn the_route_timeout_counts_from_the_end_of_the_request() {
        paused(async |mut clock, meter| {
            clock.route = Some(Duration::from_secs(15));
            let began = Instant::now();
            let ends_late = async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                meter.arrive();
                std::future::pending::<()>().await;
            };
            assert_eq!(clock.race(pin!(ends_late)).await, Err(Expired::Route));
            assert_eq!(began.elapsed().as_secs(), 75);
        });
    }

    #[test]
    fn whatever_moves_puts_the_idle_timeout_off() {
        paused(async |mut clock, meter| {
            clock.idle = Some(Duration::from_secs(5));
            let began = Instant::now();
            let moves = async {
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    meter.receive(1);
                }
                std::future::pending::<()>().await;
            };
            assert_eq!(clock.race(pin!(moves)).await, Err(Expired::Idle));
            assert_eq!(began.elapsed().as_secs(), 17);
        });
    }

    #[test]
    fn a_request_that_does_not_arrive_has_its_own_timeout() {
        paused(async |mut clock, _| {
            clock.request = Some(Duration::from_secs(3));
            clock.idle = Some(Duration::from_secs(5));
            assert_eq!(clock.race(std::future::pending::<()>()).await, Err(Expired::Request));
        });
    }
}
