//! The client's socket as the codec sees it: nothing passes that could be read in two ways.
//!
//! Before: the accepted socket. After: hyper's server codec. The gate follows the framing of HTTP/1 on the raw bytes, holds
//! each request's head back until it is complete, and checks it ([`super::head`]). A head that must not pass is replaced
//! by one that the codec understands, and the verdict is left for the service that will be asked to answer it: so
//! pipelined requests are answered in order, and every refusal goes the way of an ordinary response. HTTP/2 and tunnels
//! pass through as they are.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::chunk::{ChunkScanner, Scanned};
use super::head::{Framing, HeadLimits, Inspected, Upgrade, inspect};
use super::refusal::Refusal;

/// What stands in for a head that was refused.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n";

/// The name that an `upgrade` header gets which is to be ignored: hyper would otherwise take the request for one that
/// changes the protocol, and give its connection away without writing out the end of the response.
pub const IGNORED_UPGRADE: &str = "x-wl-up";
const _: () = assert!(IGNORED_UPGRADE.len() == "upgrade".len());

/// How much is read at once while a head is incomplete.
const READ_STEP: usize = 4096;

/// How much may arrive while the answer to an upgrade is awaited.
const MAX_HELD: usize = 64 * 1024;

/// What the gate and the service of one connection tell each other.
#[derive(Default)]
pub struct Wire {
    /// Bytes from the client.
    pub received: Cell<u64>,
    /// Bytes to the client.
    pub sent: Cell<u64>,
    /// For each head that passed, in order: `None`, or why it was replaced.
    verdicts: RefCell<VecDeque<Option<Refusal>>>,
    /// A refusal for whatever head comes next, complete or not.
    forced: RefCell<Option<Refusal>>,
    /// The codec, when it waits for the gate alone.
    reader: Cell<Option<Waker>>,
    /// An upgrade was asked for and is not answered yet.
    held: Cell<bool>,
    /// The body's framing broke.
    broken: Cell<bool>,
    head_since: Cell<Option<Instant>>,
    head_begun: Notify,
    /// The client has taken nothing since.
    blocked_since: Cell<Option<Instant>>,
    blocked: Notify,
    /// The codec has written out all that it had.
    shut: Cell<bool>,
    /// The socket outlives the codec.
    stays_open: Cell<bool>,
}

impl Wire {
    /// The verdict on the request that the codec hands over now.
    pub fn verdict(&self) -> Option<Refusal> {
        self.verdicts.borrow_mut().pop_front().flatten()
    }

    /// A request ended. If it was the one that asked for an upgrade, that came to nothing: requests follow.
    pub fn resume(&self) {
        if self.verdicts.borrow().is_empty() && self.held.replace(false) {
            self.wake();
        }
    }

    /// Answers the head that is being received.
    pub fn refuse(&self, refusal: Refusal) {
        *self.forced.borrow_mut() = Some(refusal);
        self.wake();
    }

    /// Whether a chunked body broke its framing.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Resolves when a head has been incomplete since `limit`.
    pub async fn head_takes(&self, limit: std::time::Duration) {
        loop {
            match self.head_since.get() {
                None => self.head_begun.notified().await,
                Some(since) if since.elapsed() >= limit => return,
                Some(since) => tokio::time::sleep_until(since + limit).await,
            }
        }
    }

    /// Resolves when the client has taken nothing for as long as `limit` says of what was there for it.
    pub async fn blocks(&self, limit: impl Fn() -> Option<std::time::Duration>) {
        loop {
            match self.blocked_since.get().zip(limit()) {
                None => self.blocked.notified().await,
                Some((since, limit)) if since.elapsed() >= limit => return,
                Some((since, limit)) => tokio::time::sleep_until(since + limit).await,
            }
        }
    }

    /// Whether the client could take no more.
    pub fn is_blocked(&self) -> bool {
        self.blocked_since.get().is_some()
    }

    /// Whether the codec has written out all that it had, and closed its side.
    pub fn is_shut(&self) -> bool {
        self.shut.get()
    }

    /// Whether the socket is kept when the codec closes its side.
    pub fn stay_open(&self, stays: bool) {
        self.stays_open.set(stays);
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn head_is_partial(&self) {
        if self.head_since.get().is_none() {
            self.head_since.set(Some(Instant::now()));
            self.head_begun.notify_one();
        }
    }
}

#[derive(Debug)]
enum State {
    /// A head is next.
    Head,
    /// So many bytes of a body.
    Length(u64),
    /// A chunked body.
    Chunked(ChunkScanner),
    /// A head that asked for an upgrade has passed.
    Held,
    /// A head was refused: nothing more passes.
    Refused,
    /// Everything passes.
    Open,
}

/// See the module.
pub struct Gate<S> {
    stream: S,
    wire: Rc<Wire>,
    limits: HeadLimits,
    state: State,
    /// Read, and not yet passed.
    pending: BytesMut,
    /// So many bytes of `pending` may pass.
    released: usize,
}

impl<S> Gate<S> {
    /// A gate for HTTP/1; `first` has been read already.
    pub fn http1(stream: S, first: BytesMut, wire: Rc<Wire>, limits: HeadLimits) -> Self {
        Self { stream, wire, limits, state: State::Head, pending: first, released: 0 }
    }

    /// A gate that only counts.
    pub fn open(stream: S, first: BytesMut, wire: Rc<Wire>) -> Self {
        let limits = HeadLimits { max_bytes: 0, max_headers: 0 };
        Self { stream, wire, limits, state: State::Open, released: first.len(), pending: first }
    }

    /// The socket, and what was read from it and has not passed.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.pending)
    }

    /// How many of `bytes` may pass; the state moves on accordingly.
    fn admit(&mut self, bytes: &mut [u8]) -> usize {
        let mut passed = 0;
        while passed < bytes.len() {
            let rest = &mut bytes[passed..];
            match &mut self.state {
                State::Open => passed = bytes.len(),
                State::Refused | State::Held => break,
                State::Length(left) => {
                    let taken = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    *left -= taken as u64;
                    passed += taken;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Chunked(scanner) => match scanner.scan(rest) {
                    Scanned::More => passed = bytes.len(),
                    Scanned::End(end) => {
                        passed += end;
                        self.state = State::Head;
                    }
                    Scanned::Broken(_) => {
                        self.wire.broken.set(true);
                        break;
                    }
                },
                State::Head => match self.admit_head(rest) {
                    Some(len) => passed += len,
                    None => break,
                },
            }
        }
        passed
    }

    /// The length of the head at the beginning of `bytes`, if it may pass.
    fn admit_head(&mut self, bytes: &mut [u8]) -> Option<usize> {
        match inspect(bytes, self.limits) {
            Inspected::Partial => {
                self.wire.head_is_partial();
                None
            }
            Inspected::Refused(refusal) => {
                self.refuse(refusal);
                None
            }
            Inspected::Complete { len, framing, upgrade } => {
                self.wire.head_since.set(None);
                self.wire.verdicts.borrow_mut().push_back(None);
                self.state = match framing {
                    Framing::Length(0) => State::Head,
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::Chunked(ChunkScanner::default()),
                };
                match upgrade {
                    Upgrade::None => {}
                    Upgrade::Ignored(names) => {
                        for name in names {
                            bytes[name].copy_from_slice(IGNORED_UPGRADE.as_bytes());
                        }
                    }
                    // A body and an upgrade at once are refused by the service; the framing is followed all the same.
                    Upgrade::Wanted if framing == Framing::Length(0) => {
                        self.wire.held.set(true);
                        self.state = State::Held;
                    }
                    Upgrade::Wanted => {}
                }
                Some(len)
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.wire.head_since.set(None);
        self.wire.verdicts.borrow_mut().push_back(Some(refusal));
        self.state = State::Refused;
    }

    /// Lets as much of `pending` pass as may.
    fn admit_pending(&mut self) {
        if matches!(self.state, State::Held) && !self.wire.held.get() {
            self.state = State::Head;
        }
        if matches!(self.state, State::Head) {
            let forced = self.wire.forced.borrow_mut().take();
            if let Some(refusal) = forced {
                self.refuse(refusal);
            }
        }
        if !matches!(self.state, State::Refused) && !self.pending.is_empty() {
            let mut pending = std::mem::take(&mut self.pending);
            self.released = self.admit(&mut pending);
            self.pending = pending;
        }
        if matches!(self.state, State::Refused) && self.released == 0 {
            self.pending.clear();
            if self.limits.max_bytes > 0 {
                // Once only: a refused connection never reads again.
                self.limits.max_bytes = 0;
                self.pending.extend_from_slice(STAND_IN);
                self.released = STAND_IN.len();
            }
        }
    }

    /// The service may have something to say before the socket does.
    fn wait(&self, cx: &Context<'_>) {
        let known = self.wire.reader.take().filter(|reader| reader.will_wake(cx.waker()));
        self.wire.reader.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
    }
}

impl<S: AsyncRead + Unpin> Gate<S> {
    /// Reads behind what is pending; the number of bytes, 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.pending.len();
        self.pending.resize(before + READ_STEP, 0);
        let mut buf = ReadBuf::new(&mut self.pending[before..]);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buf);
        let read = buf.filled().len();
        self.pending.truncate(before + read);
        ready!(polled)?;
        self.wire.received.set(self.wire.received.get() + read as u64);
        Poll::Ready(Ok(read))
    }

    /// Reads straight into the codec's buffer, and takes back what may not pass yet; whether anything passed or the
    /// stream ended.
    fn poll_direct(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.wire.received.set(self.wire.received.get() + read as u64);
        if read == 0 {
            return Poll::Ready(Ok(true));
        }
        let passed = self.admit(&mut buf.filled_mut()[before..]);
        self.pending.extend_from_slice(&buf.filled()[before + passed..]);
        buf.set_filled(before + passed);
        Poll::Ready(Ok(passed > 0))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.released == 0 && !this.wire.broken.get() {
                this.admit_pending();
            }
            if this.released > 0 {
                let passing = this.released.min(buf.remaining());
                buf.put_slice(&this.pending[..passing]);
                this.pending.advance(passing);
                this.released -= passing;
                return Poll::Ready(Ok(()));
            }
            if this.wire.broken.get() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "invalid chunk framing")));
            }
            this.wait(cx);
            let full = matches!(this.state, State::Refused) || this.pending.len() > MAX_HELD + this.limits.max_bytes;
            if full {
                return Poll::Pending;
            }
            if this.pending.is_empty() && !matches!(this.state, State::Held) {
                if ready!(this.poll_direct(cx, buf))? {
                    return Poll::Ready(Ok(()));
                }
            } else if ready!(this.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Gate<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Ok(sent)) => {
                self.wire.sent.set(self.wire.sent.get() + sent as u64);
                self.wire.blocked_since.set(None);
            }
            Poll::Pending if !self.wire.is_blocked() => {
                self.wire.blocked_since.set(Some(Instant::now()));
                self.wire.blocked.notify_one();
            }
            _ => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.wire.stays_open.get() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        self.wire.shut.set(true);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A socket from which `bytes` come in `pieces` of these lengths.
    struct Pieces {
        bytes: Vec<u8>,
        lengths: Vec<usize>,
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let length = self.lengths.pop().unwrap_or(7).min(self.bytes.len()).min(buf.remaining());
            buf.put_slice(&self.bytes[..length]);
            self.bytes.drain(..length);
            Poll::Ready(Ok(()))
        }
    }

    const REQUESTS: [&str; 5] = [
        "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nGET / HTTP",
        "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4;x\r\nGET \r\n0\r\na: b\r\n\r\n",
        "\r\nGET /d HTTP/1.1\nHost: h\n\n",
        "PUT /e HTTP/1.0\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    ];
    const REFUSED: [&str; 3] = [
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\n\r\n",
        "NONSENSE\r\n\r\n",
    ];

    /// What passes when `bytes` come in pieces and are read `step` bytes at a time; and the verdicts.
    fn pass(bytes: &str, lengths: Vec<usize>, step: usize) -> (String, Vec<Option<u16>>) {
        let wire = Rc::new(Wire::default());
        let limits = HeadLimits { max_bytes: 1024, max_headers: 10 };
        let socket = Pieces { bytes: bytes.as_bytes().to_vec(), lengths };
        let mut gate = Gate::http1(socket, BytesMut::new(), wire.clone(), limits);
        let mut passed = Vec::new();
        let mut buffer = vec![0; step];
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let read = std::pin::pin!(gate.read(&mut buffer)).as_mut().poll(&mut context);
            match read {
                Poll::Ready(Ok(0)) | Poll::Pending => break,
                Poll::Ready(read) => {
                    let read = read.expect("read");
                    passed.extend_from_slice(&buffer[..read]);
                }
            }
        }
        let mut verdicts = wire.verdicts.borrow_mut();
        let verdicts = verdicts.drain(..).map(|verdict| verdict.map(|refusal| refusal.status.as_u16())).collect();
        (String::from_utf8(passed).expect("text"), verdicts)
    }

    proptest! {
        #[test]
        fn sound_requests_pass_unchanged_and_nothing_passes_after_a_refused_one(
            sound in prop::collection::vec(0..REQUESTS.len(), 0..6),
            refused in prop::option::of(0..REFUSED.len()),
            behind in prop::collection::vec(0..REQUESTS.len(), 0..3),
            lengths in prop::collection::vec(1_usize..40, 0..40),
            step in 1_usize..200,
        ) {
            let before: String = sound.iter().map(|index| REQUESTS[*index]).collect();
            let mut bytes = before.clone();
            let mut expected = before;
            let mut verdicts = vec![None; sound.len()];
            if let Some(refused) = refused {
                bytes.push_str(REFUSED[refused]);
                bytes.extend(behind.iter().map(|index| REQUESTS[*index]));
                expected.push_str(std::str::from_utf8(STAND_IN).expect("text"));
                verdicts.push(Some([400, 501, 400][refused]));
            }
            prop_assert_eq!(pass(&bytes, lengths, step), (expected, verdicts));
        }
    }
}
