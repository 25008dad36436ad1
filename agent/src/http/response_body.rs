//! The response's body on its way to the client: streamed, counted, watched by the clock.
//!
//! Before: [`super::codec_body`], or a local answer. After: the codec of the client's side. It owns the [`Exchange`]: when the body ends,
//! so does the exchange. An endpoint that breaks off becomes an error here, and so a reset for the client: never a
//! response that looks complete.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::telemetry::ResponseFlags;

use super::codec_body::{Upstream, UpstreamError};
use super::exchange::Exchange;
use super::meter::{Clock, Expired};
use super::request_body::Upload;
use super::upstream::Ticket;

/// Why a response was cut off.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    /// The endpoint's side failed.
    #[error("reading the response's body")]
    Upstream(#[source] UpstreamError),
    /// It took too long.
    #[error("the response took too long")]
    TimedOut,
}

/// See the module.
pub struct ResponseBody(Kind);

enum Kind {
    None,
    Local(Local),
    Streamed(Box<Streamed>),
}

struct Local {
    exchange: Exchange,
    data: Bytes,
}

struct Streamed {
    exchange: Exchange,
    incoming: Upstream,
    clock: Clock,
    /// Given back when the body is complete.
    ticket: Option<Ticket>,
    /// The rest of the request is of no use without it.
    upload: Option<Upload>,
    ended: bool,
}

impl ResponseBody {
    /// No body: the exchange goes on elsewhere.
    pub fn none() -> Self {
        Self(Kind::None)
    }

    /// A body of the agent's own.
    pub fn local(mut exchange: Exchange, data: Bytes) -> Self {
        exchange.complete();
        Self(Kind::Local(Local { exchange, data }))
    }

    /// An endpoint's.
    pub fn streamed(exchange: Exchange, incoming: Upstream, clock: Clock, ticket: Ticket, upload: Upload) -> Self {
        let mut streamed =
            Streamed { exchange, incoming, clock, ticket: Some(ticket), upload: Some(upload), ended: false };
        if streamed.incoming.is_end_stream() {
            streamed.end();
        }
        Self(Kind::Streamed(Box::new(streamed)))
    }
}

impl Streamed {
    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.exchange.complete();
            if self.exchange.http1 && !self.exchange.meter.has_arrived() {
                // The endpoint answered before it had the whole request: nobody reads the rest of it now.
                self.exchange.connection.linger();
            }
            if let Some(ticket) = self.ticket.take() {
                ticket.finish(&mut self.incoming);
            }
            self.upload = None;
        }
    }

    fn expired(&mut self, expired: Expired) -> ResponseBodyError {
        let stats = &self.exchange.connection.manager.stats;
        let (flags, details) = match expired {
            Expired::Route => {
                if let Some(ticket) = &self.ticket {
                    ticket.note_timeout();
                }
                (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "upstream_response_timeout")
            }
            Expired::Idle => {
                stats.downstream_rq_idle_timeout.inc();
                (ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout")
            }
            Expired::Request => {
                stats.downstream_rq_timeout.inc();
                (ResponseFlags::NONE, "request_overall_timeout")
            }
        };
        self.exchange.reset(flags, details);
        self.exchange.cut_off();
        ResponseBodyError::TimedOut
    }

    fn failed(&mut self, error: UpstreamError) -> ResponseBodyError {
        if let Some(ticket) = self.ticket.take() {
            ticket.note_reset();
        }
        let remote_reset = error.is_remote_reset();
        let (flags, details) = if self.exchange.meter.has_failed() {
            (ResponseFlags::DOWNSTREAM_TERMINATION, "downstream_remote_disconnect")
        } else if remote_reset {
            (ResponseFlags::UPSTREAM_REMOTE_RESET, "upstream_reset_after_response_started{remote_reset}")
        } else {
            (
                ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
                "upstream_reset_after_response_started{connection_termination}",
            )
        };
        self.exchange.reset(flags, details);
        self.exchange.cut_off();
        ResponseBodyError::Upstream(error)
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<ResponseBodyError> {
        if self.ended {
            // The endpoint has done its part.
            self.clock.route = None;
        }
        self.clock.poll_expired(cx).map(|expired| self.expired(expired))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => self.clock.poll_expired(cx).map(|expired| Some(Err(self.expired(expired)))),
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.failed(error)))),
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.exchange.meter.send_last(bytes);
                    self.end();
                } else {
                    self.exchange.meter.send(bytes);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl ResponseBody {
    /// Ready when its time is over while the client takes nothing of what was read. Then it breaks off.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<ResponseBodyError> {
        match &mut self.0 {
            Kind::Streamed(streamed) => streamed.poll_stalled(cx),
            Kind::None | Kind::Local(_) => Poll::Pending,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        match &mut self.0 {
            Kind::Streamed(streamed) => streamed.poll_frame(cx),
            Kind::None => Poll::Ready(None),
            Kind::Local(local) if local.data.is_empty() => Poll::Ready(None),
            Kind::Local(local) => {
                let data = std::mem::take(&mut local.data);
                local.exchange.meter.send_last(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Streamed(streamed) => streamed.ended,
            Kind::Local(local) => local.data.is_empty(),
            Kind::None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Streamed(streamed) => streamed.incoming.size_hint(),
            Kind::Local(local) => SizeHint::with_exact(local.data.len() as u64),
            Kind::None => SizeHint::with_exact(0),
        }
    }
}
