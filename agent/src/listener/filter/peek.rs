//! Reads a socket's first bytes and leaves them where they are.
//!
//! Readiness is edge-triggered, and bytes that were only peeked at keep a socket readable: who waits for "readable"
//! again gets the same bytes again, at once, for ever. So a peek that brings nothing new counts as "would block", which
//! makes the runtime forget the readiness; the kernel raises a new edge for every segment that arrives after it. Whoever
//! reads the socket after a peek that waited in vain has to [`rearm`] it first, or the bytes that are there are never
//! announced.

use std::io;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::worker::Worker;

/// What a peek brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Peeked<R> {
    /// More bytes than before.
    More {
        /// All of them, those seen before included.
        bytes: usize,
        /// What the caller's look at them returned.
        look: R,
    },
    /// The client has closed its side: there are no bytes but those already seen.
    Ended,
}

/// Waits until the client has sent more than `seen` bytes, and looks at all of them.
///
/// # Errors
/// The socket's: the client reset the connection.
pub async fn beyond<R>(
    stream: &TcpStream,
    worker: &Worker,
    seen: usize,
    mut look: impl FnMut(&[u8]) -> R,
) -> io::Result<Peeked<R>> {
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let peeked = stream.try_io(Interest::READABLE, || {
            worker.with_scratch(|scratch| {
                let (bytes, _) = recv(stream, &mut *scratch, RecvFlags::PEEK)?;
                if bytes > seen {
                    Ok(Peeked::More { bytes, look: look(&scratch[..bytes]) })
                } else if bytes == 0 || ready.is_read_closed() {
                    // A reset hides behind the bytes that came before it.
                    stream.take_error()?.map_or(Ok(Peeked::Ended), Err)
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                }
            })
        });
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            peeked => return peeked,
        }
    }
}

/// Announces again the bytes that peeks have seen.
///
/// # Errors
/// The runtime cannot watch the socket.
pub fn rearm(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}
