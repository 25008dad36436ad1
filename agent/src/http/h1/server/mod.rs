//! The server side of HTTP/1: one client connection, request after request, in one task.
//!
//! Before: [`crate::http::connection`], with the accepted socket. After: `http::service` for each request, called
//! in place. The task waits for a head (`head`), has the request served and writes the answer (`answer`), and meanwhile
//! watches the client, the agent's end and the clock. What a request needs is allocated for it and goes with it, so that an
//! idle connection is small.

mod answer;
mod body;
pub mod head;
mod io;
mod phases;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, Version};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::drain::Phase;
use crate::http::codec_body::Downstream;
use crate::http::connection::Connection;
use crate::http::refusal::Refusal;
use crate::http::service;
use crate::http::tunnel::Tunnel;
use crate::telemetry::ResponseFlags;
use crate::timer::Timer;

use super::decode::Decoded;
use answer::{Answer, AnswerError, AnswerTo};
use head::{Framing, Head, HeadLimits, Parsed};
use io::Io;
use phases::Phases;

pub use body::{Body, BodyError};

/// How an HTTP/2 client begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much may arrive while the answer to an upgrade is awaited.
const MAX_HELD: usize = 64 * 1024;

/// What a client may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1, for certain.
    Http1,
    /// HTTP/1 or HTTP/2: the first bytes say.
    Either,
}

/// What is to be done when no more requests come.
pub enum Rest {
    /// Nothing: the socket is closed.
    Nothing,
    /// The client speaks HTTP/2; this was read.
    Http2(TcpStream, BytesMut),
    /// The connection changes its protocol; this was read.
    Tunnel(TcpStream, Bytes, Box<Tunnel>),
    /// The client may still be sending.
    Linger(Pin<Box<dyn Future<Output = ()>>>),
}

type Exchange = Pin<Box<dyn Future<Output = Result<bool, AnswerError>>>>;

async fn serve(io: Rc<Io>, head: Head) -> Result<bool, AnswerError> {
    let Head { parts, framing, keep_alive, expects, takes_trailers, .. } = head;
    let number = io.begin_body(framing, expects);
    let to = AnswerTo { method: parts.method.clone(), version: parts.version, keep_alive, takes_trailers };
    let body = Downstream::Http1(Body::new(io.clone(), number));
    let response = service::serve(io.connection.clone(), parts, body).await;
    Answer::new(&io, to, response).send().await
}

/// A head that did not pass is answered like any request, and is the last one.
async fn refuse(io: Rc<Io>, refusal: Refusal) -> Result<bool, AnswerError> {
    let (head, ()) = Request::new(()).into_parts();
    let response = service::refused(&io.connection, &head, refusal);
    io.connection.linger();
    let version = Version::HTTP_11;
    let to = AnswerTo { method: Method::GET, version, keep_alive: false, takes_trailers: false };
    Answer::new(&io, to, response).send().await
}

/// What came first.
enum Next {
    Request(Head),
    Refused(Refusal),
    Http2,
    Close,
}

/// How an exchange ended.
enum Served {
    /// In its own way.
    Done(Result<bool, AnswerError>),
    /// It did not, but there is no point in waiting.
    GivenUp,
}

/// What comes after the last exchange.
pub enum Conclusion {
    /// The client speaks HTTP/2.
    Http2,
    /// The connection changes its protocol.
    Tunnel(Box<Tunnel>),
    /// The client may still be sending.
    Linger,
    /// Nothing.
    Close,
}

/// One client connection that speaks HTTP/1, perhaps.
pub struct Server {
    io: Rc<Io>,
    limits: HeadLimits,
    spoken: Spoken,
    timer: Timer,
    phases: Phases,
    /// Since when a head is incomplete.
    head_since: Option<Instant>,
    /// So much of the buffer was looked at in vain.
    looked_at: usize,
}

impl Server {
    /// Waits for the first request of `connection`, whose socket is `stream`.
    pub fn new(connection: &Rc<Connection>, stream: TcpStream, spoken: Spoken) -> Self {
        let manager = &connection.manager;
        if spoken == Spoken::Http1 {
            manager.stats.downstream_cx_http1_total.inc();
        }
        let limits = HeadLimits {
            max_bytes: manager.max_request_headers_kb as usize * 1024,
            max_headers: manager.max_headers_count as usize,
        };
        Self {
            io: Rc::new(Io::new(connection.clone(), stream)),
            limits,
            spoken,
            timer: connection.worker.timers.timer(),
            phases: Phases::new(connection.worker.shared.drain.clone()),
            head_since: None,
            looked_at: 0,
        }
    }

    /// Serves requests until the last response is written.
    pub async fn run(&mut self) -> Conclusion {
        loop {
            let (exchange, upgrade) = match poll_fn(|cx| self.poll_next(cx)).await {
                ControlFlow::Continue(exchange) => exchange,
                ControlFlow::Break(conclusion) => return conclusion,
            };
            let served = self.watched(exchange, upgrade).await;
            if let ControlFlow::Break(conclusion) = self.conclude(served) {
                return conclusion;
            }
        }
    }

    /// What is to be done when no more requests come.
    pub fn rest(self, conclusion: Conclusion) -> Rest {
        match conclusion {
            Conclusion::Http2 => self.into_http2(),
            Conclusion::Tunnel(tunnel) => self.into_tunnel(tunnel),
            Conclusion::Linger => self.into_lingering(),
            Conclusion::Close => Rest::Nothing,
        }
    }

    /// The exchange of the next head, and whether it may be an upgrade.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<ControlFlow<Conclusion, (Exchange, bool)>> {
        Poll::Ready(match ready!(self.poll_head(cx)) {
            Next::Request(head) => {
                let upgrade = head.upgrade && head.framing == Framing::Length(0);
                ControlFlow::Continue((Box::pin(serve(self.io.clone(), head)), upgrade))
            }
            Next::Refused(refusal) => ControlFlow::Continue((Box::pin(refuse(self.io.clone(), refusal)), false)),
            Next::Http2 => ControlFlow::Break(Conclusion::Http2),
            Next::Close => ControlFlow::Break(Conclusion::Close),
        })
    }

    fn connection(&self) -> &Rc<Connection> {
        &self.io.connection
    }

    /// Waits for a head, or for what makes waiting pointless.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        // A client that has sent many requests at once does not keep the others waiting.
        ready!(tokio::task::coop::poll_proceed(cx)).made_progress();
        loop {
            if let Some(next) = self.look() {
                (self.head_since, self.looked_at) = (None, 0);
                return Poll::Ready(next);
            }
            match self.phases.poll(cx) {
                Phase::Serving => {}
                Phase::Draining => return Poll::Ready(Next::Close),
                Phase::Closing => {
                    self.connection().force_closed();
                    return Poll::Ready(Next::Close);
                }
            }
            match self.io.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Close),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => return self.poll_patience(cx),
            }
        }
    }

    /// What the buffer holds, if it is enough.
    fn look(&mut self) -> Option<Next> {
        let mut input = self.io.input.borrow_mut();
        if input.buffer.len() == self.looked_at {
            return None;
        }
        if self.spoken == Spoken::Either {
            if input.buffer.starts_with(PREFACE) {
                return Some(Next::Http2);
            }
            if !PREFACE.starts_with(&input.buffer) {
                self.spoken = Spoken::Http1;
                self.io.connection.manager.stats.downstream_cx_http1_total.inc();
            }
        }
        let parsed = match self.spoken {
            Spoken::Http1 => head::take(&mut input.buffer, self.limits),
            Spoken::Either => Parsed::Partial,
        };
        match parsed {
            Parsed::Complete(head) => Some(Next::Request(head)),
            Parsed::Refused(refusal) => Some(Next::Refused(refusal)),
            Parsed::Partial => {
                self.looked_at = input.buffer.len();
                self.head_since.get_or_insert_with(Instant::now);
                None
            }
        }
    }

    /// Whether a head has taken too long, or none has come.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let connection = &self.io.connection;
        let manager = &connection.manager;
        let head = self.head_since.zip(manager.request_headers_timeout).map(|(since, limit)| since + limit);
        let idle = manager.idle_timeout.map(|timeout| connection.idle_since() + timeout);
        let first = head.into_iter().chain(idle).min();
        let Some(first) = first else { return Poll::Pending };
        ready!(self.timer.poll(cx, first));
        if head.is_none_or(|head| head > first) {
            return Poll::Ready(Next::Close);
        }
        manager.stats.downstream_rq_header_timeout.inc();
        let text = "request header timeout";
        let refusal = Refusal::request(StatusCode::REQUEST_TIMEOUT, "request_header_timeout", text).closing();
        Poll::Ready(Next::Refused(refusal))
    }

    /// `exchange`, unless it is to be given up: the client left or takes nothing, or the agent ends.
    async fn watched(&mut self, mut exchange: Exchange, upgrade: bool) -> Served {
        let held = if upgrade { MAX_HELD } else { 1 };
        let served = poll_fn(|cx| {
            if let Poll::Ready(result) = exchange.as_mut().poll(cx) {
                return Poll::Ready(Served::Done(result));
            }
            let connection = &self.io.connection;
            if self.phases.poll(cx) == Phase::Closing {
                connection.force_closed();
                return Poll::Ready(Served::GivenUp);
            }
            if has_left(&self.io, cx, held) {
                connection.note(ResponseFlags::DOWNSTREAM_TERMINATION, "downstream_remote_disconnect");
                return Poll::Ready(Served::GivenUp);
            }
            if connection.reader_deadline().is_some_and(|deadline| self.timer.poll(cx, deadline).is_ready()) {
                connection.give_up_reader();
                let _ = self.io.stream.set_zero_linger();
                return Poll::Ready(Served::GivenUp);
            }
            Poll::Pending
        })
        .await;
        // Its record says why, if it was given up: by now the connection knows.
        drop(exchange);
        served
    }

    /// Breaks when no request follows.
    fn conclude(&mut self, served: Served) -> ControlFlow<Conclusion> {
        let connection = &self.io.connection;
        match served {
            Served::GivenUp => ControlFlow::Break(Conclusion::Close),
            Served::Done(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a response did not reach its client");
                if let AnswerError::Io(_) = error {
                    connection.note(ResponseFlags::DOWNSTREAM_TERMINATION, "downstream_remote_disconnect");
                }
                if connection.is_cut_off() {
                    let _ = self.io.stream.set_zero_linger();
                }
                ControlFlow::Break(Conclusion::Close)
            }
            Served::Done(Ok(keep_alive)) => {
                if let Some(tunnel) = connection.take_tunnel() {
                    return ControlFlow::Break(Conclusion::Tunnel(tunnel));
                }
                let complete = discard(&self.io);
                if keep_alive && complete {
                    return ControlFlow::Continue(());
                }
                let sends_on = !complete || !self.io.input.borrow().buffer.is_empty();
                let lingers = sends_on || connection.lingers();
                ControlFlow::Break(if lingers { Conclusion::Linger } else { Conclusion::Close })
            }
        }
    }

    /// The socket, and what was read from it.
    fn into_parts(self) -> Option<(TcpStream, BytesMut)> {
        let Io { stream, input, .. } = Rc::into_inner(self.io)?;
        Some((stream, input.into_inner().buffer))
    }

    fn into_http2(self) -> Rest {
        self.into_parts().map_or(Rest::Nothing, |(stream, first)| Rest::Http2(stream, first))
    }

    fn into_tunnel(self, tunnel: Box<Tunnel>) -> Rest {
        self.into_parts().map_or(Rest::Nothing, |(stream, first)| Rest::Tunnel(stream, first.freeze(), tunnel))
    }

    fn into_lingering(self) -> Rest {
        Rest::Linger(Box::pin(linger(self.io)))
    }
}

/// Whether the client went away after its request was complete. Less than `held` bytes of what comes next are read.
fn has_left(io: &Io, cx: &mut Context<'_>, held: usize) -> bool {
    if !io.is_complete() {
        // Whoever reads the body will see.
        io.watch(cx);
        return false;
    }
    while io.input.borrow().buffer.len() < held {
        match io.poll_fill(cx) {
            Poll::Ready(Ok(0) | Err(_)) => return true,
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return false,
        }
    }
    false
}

/// Gives up the rest of the request's body, if all of it is there; whether the next request follows.
fn discard(io: &Io) -> bool {
    let mut input = io.input.borrow_mut();
    let input = &mut *input;
    loop {
        match input.decoder.decode(&mut input.buffer) {
            Ok(Decoded::Data(_) | Decoded::Trailers(_)) => {}
            Ok(Decoded::End) => return true,
            Ok(Decoded::More) | Err(_) => return false,
        }
    }
}

/// How long a closed connection's remaining bytes are read away, so that the last response is not lost to a reset:
/// Envoy's default `delayed_close_timeout`.
const LINGER: Duration = Duration::from_secs(1);

/// Says that nothing more comes, and reads away what the client still sends.
async fn linger(io: Rc<Io>) {
    // Fails when the client is gone, and then there is nothing to wait for.
    if socket2::SockRef::from(&io.stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let reading = poll_fn(|cx| {
        loop {
            io.input.borrow_mut().buffer.clear();
            match io.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
            }
        }
    });
    let _ = tokio::time::timeout(LINGER, reading).await;
}
