//! One request and its response, in a task of its own.
//!
//! Before: [`super`], which read the request's head. After: `service`, and the codec, which writes what it is given as the
//! client grants it.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderValue, Request, Response, header};
use http_body::Body as _;

use super::body::Body;
use crate::http::codec_body::Downstream;
use crate::http::connection::Connection;
use crate::http::response_body::ResponseBody;
use crate::http::{date, headers, service};

/// The last bytes of a response are given to the codec whatever the client grants, if they are no more than these: there they
/// wait as well as here.
const LAST_BYTES: usize = 16 * 1024;

/// Serves `request` in a task of its own.
pub fn begin(connection: &Rc<Connection>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let (head, stream) = request.into_parts();
    let body = Body::new(stream, &head.headers);
    // In an allocation of its own: the task is moved several times before it is polled.
    let served = Box::pin(service::serve(connection.clone(), Box::new(head), Downstream::Http2(body)));
    tokio::task::spawn_local(answer(served, respond));
}

async fn answer(mut served: Pin<Box<impl Future<Output = Response<ResponseBody>>>>, mut respond: SendResponse<Bytes>) {
    let response = poll_fn(|cx| match served.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        // A client that no longer wants it. Whoever dropped the connection does not either.
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    })
    .await;
    drop(served);
    let Some(response) = response else { return };
    if let Some(mut sending) = Sending::begin(response, &mut respond) {
        poll_fn(|cx| sending.poll(cx)).await;
    }
}

/// A response whose head is written.
struct Sending {
    stream: SendStream<Bytes>,
    body: ResponseBody,
    /// What waits for the client to grant something, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl Sending {
    /// Gives the head to the codec. `None` when that is all.
    fn begin(response: Response<ResponseBody>, respond: &mut SendResponse<Bytes>) -> Option<Self> {
        let (mut head, body) = response.into_parts();
        headers::strip_connection(&mut head.headers);
        head.headers.entry(header::DATE).or_insert_with(date::value);
        let is_whole = body.is_end_stream();
        if !is_whole && let Some(length) = body.size_hint().exact() {
            head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        match respond.send_response(Response::from_parts(head, ()), is_whole) {
            Ok(stream) => (!is_whole).then_some(Self { stream, body, waiting: None }),
            Err(error) => {
                tracing::debug!(%error, "a response's head cannot be sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }

    /// Ready when everything was given to the codec, or nobody wants the rest.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.poll_step(cx);
        match polled {
            // Of both, only what is asked wakes this task.
            Poll::Pending => self.stream.poll_reset(cx).map(|_| ()),
            Poll::Ready(Ok(())) | Poll::Ready(Err(None)) => Poll::Ready(()),
            Poll::Ready(Err(Some(reason))) => {
                self.stream.send_reset(reason);
                Poll::Ready(())
            }
        }
    }

    /// Hands on what can be handed on.
    ///
    /// # Errors
    /// The response breaks off. Why, if the client has to be told.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<Reason>>> {
        loop {
            if self.waiting.is_some() {
                ready!(self.poll_granted(cx))?;
            }
            if let Some((data, last)) = self.waiting.take() {
                self.stream.send_data(data, last).map_err(|_| None)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = self.body.is_end_stream();
                        if data.is_empty() || (last && data.len() <= LAST_BYTES) {
                            self.stream.send_data(data, last).map_err(|_| None)?;
                            if last {
                                return Poll::Ready(Ok(()));
                            }
                        } else {
                            // More is asked for when it is given to the codec.
                            self.stream.reserve_capacity(1);
                            self.waiting = Some((data, last));
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.stream.reserve_capacity(0);
                            return Poll::Ready(self.stream.send_trailers(trailers).map_err(|_| None));
                        }
                    }
                },
                Some(Err(error)) => return Poll::Ready(Err(Some(reason(&error)))),
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(|_| None)),
            }
        }
    }

    /// Ready when the client grants something. Its time may run out meanwhile.
    fn poll_granted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<Reason>>> {
        while self.stream.capacity() == 0 {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(None)),
                Poll::Pending => {
                    let stalled = self.body.poll_stalled(cx);
                    return stalled.map(|error| Err(Some(reason(&error))));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What an endpoint said when it reset the stream, if it did.
fn reason(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(told) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return told;
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}
