//! A response on its way to the client: its head together with the first data of its body, then the rest as the client
//! takes it.
//!
//! Before: the service. After: [`super::io`]. Nothing is read of the body while the client takes nothing.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use http_body::Body as _;

use super::io::{Io, Output};
use crate::http::field::lists;
use crate::http::h1::encode::{self, CHUNK_END, Framing, LAST_CHUNK, Length, ResponseTo};
use crate::http::response_body::{ResponseBody, ResponseBodyError};
use crate::http::spare;

/// The end of a chunk and of the body.
const CHUNK_END_AND_LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// What a response's form depends on.
#[derive(Debug)]
pub struct AnswerTo {
    /// The request's method.
    pub method: Method,
    /// What the client speaks.
    pub version: Version,
    /// The client may go on.
    pub keep_alive: bool,
    /// The client takes trailers.
    pub takes_trailers: bool,
}

/// Why a response did not go out in full.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The client's connection failed.
    #[error("writing to the client's connection")]
    Io(#[from] io::Error),
    /// The response's body ended early.
    #[error("the response was cut off")]
    CutOff(#[from] ResponseBodyError),
    /// Its body was shorter than the head said.
    #[error("the response's body ended {missing} bytes early")]
    Short {
        /// So many.
        missing: u64,
    },
}

/// A response that is being written.
pub struct Answer<'a> {
    io: &'a Io,
    body: ResponseBody,
    framing: Framing,
    /// The `trailer` headers.
    announced: Vec<HeaderValue>,
    output: Output,
    /// Nothing comes behind what is in `output`.
    ended: bool,
    /// The connection can be used for another request.
    reusable: bool,
}

impl<'a> Answer<'a> {
    /// Of `response`: its head is what is written first.
    pub fn new(io: &'a Io, to: AnswerTo, response: Response<ResponseBody>) -> Self {
        let (head, body) = response.into_parts();
        let closing = head.headers.get_all(header::CONNECTION).iter().any(|value| lists(value.as_bytes(), "close"));
        let keep_alive = to.keep_alive && !closing && !io.connection.worker.shared.drain.is_draining();
        let mut output = Output::new(io.connection.worker.pools.output());
        let answered = ResponseTo { method: &to.method, version: to.version, keep_alive };
        let framing = encode::response(&mut output.before, answered, head.status, &head.headers, Length::of(&body));
        let announced: Vec<HeaderValue> = if framing == Framing::Chunked && to.takes_trailers {
            head.headers.get_all(header::TRAILER).iter().cloned().collect()
        } else {
            Vec::new()
        };
        let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
        spare::keep(head.headers);
        let reusable = keep_alive && framing != Framing::UntilClose && !switched;
        Self { io, body, framing, announced, output, ended: framing == Framing::None, reusable }
    }

    /// Writes all of it; whether the connection can be used for another request.
    ///
    /// # Errors
    /// See [`AnswerError`]. The client must not take what it got for complete.
    pub async fn send(mut self) -> Result<bool, AnswerError> {
        poll_fn(|cx| self.poll(cx)).await?;
        self.io.connection.worker.pools.keep_output(self.output.before);
        Ok(self.reusable)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AnswerError>> {
        loop {
            if self.ended || self.output.is_plenty() {
                ready!(self.io.poll_send(cx, &mut self.output))?;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.push(frame)?,
                Poll::Ready(None) => self.end()?,
                Poll::Ready(Some(Err(error))) => {
                    // What came until then is the client's; it need not wait for it.
                    let _ = self.io.poll_send(cx, &mut self.output);
                    return Poll::Ready(Err(error.into()));
                }
                Poll::Pending => {
                    ready!(self.io.poll_send(cx, &mut self.output))?;
                    return Poll::Pending;
                }
            }
        }
    }

    fn push(&mut self, frame: http_body::Frame<bytes::Bytes>) -> Result<(), AnswerError> {
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(mut data) => {
                match &mut self.framing {
                    Framing::Length(left) => {
                        data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                        *left -= data.len() as u64;
                    }
                    Framing::Chunked => encode::chunk_start(&mut self.output.before, data.len()),
                    Framing::UntilClose | Framing::None => {}
                }
                self.output.push(data, if self.framing == Framing::Chunked { CHUNK_END } else { &[] });
                if self.body.is_end_stream() {
                    self.end()?;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers()
                    && self.framing == Framing::Chunked
                {
                    encode::trailers(&mut self.output.before, &trailers, &self.announced);
                    self.framing = Framing::None;
                }
                self.end()?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), AnswerError> {
        self.ended = true;
        match self.framing {
            Framing::Chunked if self.output.data.is_empty() => self.output.behind = LAST_CHUNK,
            Framing::Chunked => self.output.behind = CHUNK_END_AND_LAST_CHUNK,
            Framing::Length(missing) if missing > 0 => return Err(AnswerError::Short { missing }),
            _ => {}
        }
        Ok(())
    }
}
