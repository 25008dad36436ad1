//! The request's body on its way to an endpoint: streamed, counted, and read again for another try where that is possible.
//!
//! Before: [`super::codec_body`]. After: the codec of the endpoint's side, one [`RequestBody`] for each try. Nothing is kept unless the
//! route has a retry policy, and then never more than [`MAX_KEPT_BYTES`].

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::codec_body::{Downstream, DownstreamError};
use super::meter::Meter;

/// What is kept of a request's body for another try: Envoy's default `per_connection_buffer_limit_bytes`.
pub const MAX_KEPT_BYTES: usize = 1024 * 1024;

/// Why the body ends early.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The client's side failed.
    #[error("reading the request's body")]
    Client(#[source] DownstreamError),
    /// Another try reads it now, or nobody does any more.
    #[error("the request is no longer read for this try")]
    Abandoned,
}

/// Whether what was read is kept for another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As long as it fits.
    Yes,
    /// A body that was begun cannot be read again.
    No,
}

struct Source {
    /// `None` when nobody wants it any more.
    incoming: Option<Downstream>,
    /// Whoever waits for more of it.
    reader: Option<Waker>,
    meter: Rc<Meter>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// Nothing that was read is lost.
    replayable: bool,
    keep: Keep,
    /// The try that may read.
    turn: u32,
    ended: bool,
}

/// The client's body; hands out one [`RequestBody`] for each try. When it is dropped the rest is given up, even if an
/// endpoint's connection still reads it: a response that is complete, or will never be, needs no request.
pub struct Upload(Option<Rc<RefCell<Source>>>);

impl Upload {
    /// The body `incoming`, whose bytes `meter` counts.
    pub fn new(incoming: Downstream, meter: Rc<Meter>, keep: Keep) -> Self {
        if incoming.is_end_stream() {
            meter.arrive();
            return Self(None);
        }
        Self(Some(Rc::new(RefCell::new(Source {
            incoming: Some(incoming),
            reader: None,
            meter,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            replayable: true,
            keep,
            turn: 0,
            ended: false,
        }))))
    }

    /// Whether another try would send the same bytes.
    pub fn is_replayable(&self) -> bool {
        self.0.as_ref().is_none_or(|source| source.borrow().replayable)
    }

    /// The body for the next try; an earlier one can no longer read.
    pub fn next(&self) -> RequestBody {
        let turn = self.0.as_ref().map_or(0, |source| {
            let mut source = source.borrow_mut();
            source.turn += 1;
            source.turn
        });
        RequestBody { source: self.0.clone(), turn, replayed: 0, trailers_sent: false }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(source) = &self.0 else { return };
        let (unread, reader) = {
            let mut source = source.borrow_mut();
            if source.ended {
                return;
            }
            (source.incoming.take(), source.reader.take())
        };
        drop(unread);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// See [`Upload::next`].
pub struct RequestBody {
    source: Option<Rc<RefCell<Source>>>,
    turn: u32,
    /// So many of the kept pieces went out in this try.
    replayed: usize,
    trailers_sent: bool,
}

impl Source {
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(Some(Err(RequestBodyError::Abandoned)));
        };
        let polled = Pin::new(&mut *incoming).poll_frame(cx);
        let at_end = incoming.is_end_stream();
        match &polled {
            Poll::Pending => {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => self.took(frame),
            Poll::Ready(Some(Err(_))) => self.meter.fail(),
            Poll::Ready(None) => self.ended = true,
        }
        if self.ended || at_end {
            self.ended = true;
            self.meter.arrive();
        }
        polled.map_err(RequestBodyError::Client)
    }

    fn took(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.meter.receive(data.len());
            self.kept_bytes += data.len();
            if self.keep == Keep::Yes && self.kept_bytes <= MAX_KEPT_BYTES {
                self.kept.push(data.clone());
            } else {
                self.replayable = false;
                self.kept.clear();
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.ended = true;
            match self.keep {
                Keep::Yes => self.trailers = Some(trailers.clone()),
                Keep::No => self.replayable = false,
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = &mut *self;
        let Some(source) = &this.source else { return Poll::Ready(None) };
        let mut source = source.borrow_mut();
        if source.turn != this.turn {
            return Poll::Ready(Some(Err(RequestBodyError::Abandoned)));
        }
        if let Some(piece) = source.kept.get(this.replayed) {
            this.replayed += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if source.ended {
            let trailers = source.trailers.as_ref().filter(|_| !this.trailers_sent).cloned();
            this.trailers_sent = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = source.poll_client(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.replayed = source.kept.len();
            this.trailers_sent |= frame.is_trailers();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            source.ended && self.replayed >= source.kept.len() && (source.trailers.is_none() || self.trailers_sent)
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(source) = &self.source else { return SizeHint::with_exact(0) };
        let source = source.borrow();
        let kept: usize = source.kept.iter().skip(self.replayed).map(Bytes::len).sum();
        let mut hint = source.incoming.as_ref().map(Body::size_hint).unwrap_or_default();
        if let Some(exact) = hint.exact() {
            hint.set_exact(exact + kept as u64);
        }
        hint
    }
}
