//! Asking a resolver: over UDP with a port and a number of their own for each try, over TCP when the answer does not fit.
//!
//! Before: [`super::serve`]. After: the resolver. The sockets are made in the client's place, and marked, so that the
//! hooks leave them alone.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::wire::{self, Query};
use crate::cluster::connect::connect_socket;
use crate::kernel::Kernel;
use crate::listener::TrafficDirection;
use crate::place::Place;

/// From where and with what patience resolvers are asked.
pub struct Asking<'a> {
    /// Where the sockets are made.
    pub place: &'a Arc<Place>,
    /// Marks them; `None` when nothing is intercepted.
    pub kernel: Option<&'a Kernel>,
    /// Of one try.
    pub timeout: Duration,
}

impl Asking<'_> {
    /// Asks `resolvers` in turn, each of them `attempts` times, until one gives an answer that helps. Calls `failed` for
    /// each try that did not.
    ///
    /// # Errors
    /// The last failure, when nobody answered at all.
    pub async fn ask(
        &self,
        query: &Query,
        resolvers: &[SocketAddr],
        attempts: u32,
        failed: impl Fn(SocketAddr, &io::Error),
    ) -> io::Result<Vec<u8>> {
        let mut last = Err(io::ErrorKind::TimedOut.into());
        for attempt in 0..attempts {
            for &resolver in resolvers {
                match self.once(query, resolver).await {
                    // Another one, or the same one later, may know more.
                    Ok(answer) if is_no_help(&answer) && (resolvers.len() > 1 && attempt == 0) => last = Ok(answer),
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        failed(resolver, &error);
                        if last.is_err() {
                            last = Err(error);
                        }
                    }
                }
            }
            if last.is_ok() {
                break;
            }
        }
        last
    }

    async fn once(&self, query: &Query, resolver: SocketAddr) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + self.timeout;
        // A signed message keeps its number, and its client has chosen it at random.
        let (id, bytes) = match query.question {
            Some(_) => {
                let id = rand::random();
                (id, query.to_upstream(id))
            }
            None => (query.id(), query.bytes().to_vec()),
        };
        let answer = in_time(deadline, self.over_udp(query, id, &bytes, resolver)).await?;
        if query.question.is_none() || !wire::is_truncated(&answer) {
            return Ok(answer);
        }
        // What came is true as far as it goes; the client can ask over TCP itself.
        Ok(in_time(deadline, self.over_tcp(query, id, &bytes, resolver)).await.unwrap_or(answer))
    }

    async fn over_udp(&self, query: &Query, id: u16, bytes: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
        let domain = Domain::for_address(resolver);
        let socket = self.place.run(move || Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))).await??;
        socket.set_nonblocking(true)?;
        self.stamp(&socket)?;
        // The system chooses the port, at random; only the resolver can send to a connected socket.
        socket.connect(&resolver.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.send(bytes).await?;
        let mut buffer = vec![0; query.answer_room()];
        loop {
            let len = socket.recv(&mut buffer).await?;
            if query.is_answered_by(&buffer[..len], id) {
                buffer.truncate(len);
                return Ok(buffer);
            }
        }
    }

    async fn over_tcp(&self, query: &Query, id: u16, bytes: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
        let socket = self.place.socket(resolver).await?;
        self.stamp(&socket)?;
        let mut stream = connect_socket(socket, resolver).await?;
        let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&len.to_be_bytes(), bytes].concat()).await?;
        let len = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await?;
        if query.is_answered_by(&answer, id) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn stamp(&self, socket: &impl std::os::fd::AsRawFd) -> io::Result<()> {
        self.kernel.map_or(Ok(()), |kernel| kernel.stamp(socket, TrafficDirection::Outbound)).map_err(io::Error::other)
    }
}

/// Whether the resolver says that it cannot tell.
fn is_no_help(answer: &[u8]) -> bool {
    matches!(wire::short_code(answer), ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp)
}

async fn in_time<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")))
}
