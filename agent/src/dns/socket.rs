//! The agent's UDP sockets in a network namespace: one for all IPv4 resolvers, and one for each slot of an IPv6 resolver.
//!
//! Before: [`crate::server`], inside the namespace. After: [`super::serve`]. How a slot is told by an address is written
//! in [`waylay_common::dns`].

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::in_pktinfo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use waylay_common::dns::{Slot, V6_SLOTS};

/// A query takes some hundred bytes; a longer datagram is none that a client would send over UDP.
pub const QUERY_BYTES: usize = 4096;

/// Questions that wait while the thread is at work: some thousand. The system may allow less.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;

/// Tries to find a free row of ports.
const EPHEMERAL_ATTEMPTS: u32 = 8;

/// `lo` has this number in every network namespace.
const LOOPBACK: i32 = 1;

/// Sockets that are bound, on no runtime yet.
#[derive(Debug)]
pub struct Bound {
    /// The first port.
    pub port: u16,
    v4: std::net::UdpSocket,
    /// Empty where there is no IPv6.
    v6: Vec<std::net::UdpSocket>,
}

/// One socket.
#[derive(Debug)]
pub struct Listening {
    socket: UdpSocket,
    address: Address,
}

#[derive(Clone, Copy, Debug)]
enum Address {
    /// Any: each datagram tells.
    V4(u16),
    V6(Slot),
}

/// Where a question came from, and where it arrived: the answer goes the same way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Who asks.
    pub client: SocketAddr,
    /// At which address.
    pub at: At,
}

/// At which address a question arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// That of a resolver's slot: the hooks sent it.
    Slot(Slot),
    /// The agent's own: the client means the agent.
    Direct(Ipv4Addr),
}

/// Binds, in the network namespace of the calling thread; port 0 is any that is free.
///
/// # Errors
/// The port is taken.
pub fn bind(port: u16) -> io::Result<Bound> {
    for _ in 0..EPHEMERAL_ATTEMPTS {
        match bind_once(port) {
            // A port that is free in one family may be taken in the other.
            Err(error) if port == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    bind_once(port)
}

fn bind_once(port: u16) -> io::Result<Bound> {
    let v4 = udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    setsockopt(&v4, sockopt::Ipv4PacketInfo, &true)?;
    let port = v4.local_addr()?.port();
    let mut v6 = Vec::new();
    for slot in 0..V6_SLOTS {
        let Some(port) = u16::try_from(slot).ok().and_then(|slot| port.checked_add(slot)) else {
            return Err(io::ErrorKind::AddrInUse.into());
        };
        match udp(SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0).into()) {
            Ok(socket) => v6.push(socket),
            Err(error) if is_family_missing(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Bound { port, v4, v6 })
}

fn udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Less is no reason to fail.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn is_family_missing(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
}

impl Bound {
    /// Whether IPv6 resolvers can be answered for.
    pub fn has_v6(&self) -> bool {
        !self.v6.is_empty()
    }

    /// Watched by the runtime of the calling thread.
    ///
    /// # Errors
    /// The runtime cannot watch them.
    pub fn listen(self) -> io::Result<Vec<Listening>> {
        let v4 = Listening { socket: UdpSocket::from_std(self.v4)?, address: Address::V4(self.port) };
        let mut all = vec![v4];
        for (slot, socket) in (0..).zip(self.v6) {
            all.push(Listening { socket: UdpSocket::from_std(socket)?, address: Address::V6(Slot::V6(slot)) });
        }
        Ok(all)
    }
}

impl Listening {
    /// The next question: its bytes in `buffer`, and its way. What arrives from beyond the loopback interface, or is
    /// longer than `buffer`, is dropped unseen.
    ///
    /// # Errors
    /// The system's.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Way)> {
        loop {
            match self.address {
                Address::V6(slot) => {
                    let (len, client) = self.socket.recv_from(buffer).await?;
                    if len < buffer.len() {
                        return Ok((len, Way { client, at: At::Slot(slot) }));
                    }
                }
                Address::V4(port) => {
                    let received =
                        self.socket.async_io(Interest::READABLE, || receive_v4(&self.socket, port, buffer)).await?;
                    if let Some(received) = received {
                        return Ok(received);
                    }
                }
            }
        }
    }

    /// Sends an answer. One that cannot be sent at once is lost, as datagrams are.
    pub fn send(&self, bytes: &[u8], way: Way) -> io::Result<()> {
        let from = match way.at {
            At::Direct(ip) => ip,
            At::Slot(slot @ Slot::V4(_)) => match SocketAddr::from(slot.address(0)) {
                SocketAddr::V4(address) => *address.ip(),
                SocketAddr::V6(_) => Ipv4Addr::LOCALHOST,
            },
            At::Slot(Slot::V6(_)) => return self.socket.try_send_to(bytes, way.client).map(drop),
        };
        let SocketAddr::V4(client) = way.client else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut info = nothing();
        info.ipi_spec_dst.s_addr = u32::from_ne_bytes(from.octets());
        let (slices, control) = ([IoSlice::new(bytes)], [ControlMessage::Ipv4PacketInfo(&info)]);
        let client = SockaddrIn::from(client);
        sendmsg(self.socket.as_raw_fd(), &slices, &control, MsgFlags::MSG_DONTWAIT, Some(&client))?;
        Ok(())
    }
}

/// `None`: not for us.
fn receive_v4(socket: &UdpSocket, port: u16, buffer: &mut [u8]) -> io::Result<Option<(usize, Way)>> {
    let mut control = cmsg_space!(in_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let info = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
        _ => None,
    });
    let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
    let (Some(info), Some(client)) = (info.filter(|info| whole && info.ipi_ifindex == LOOPBACK), message.address)
    else {
        return Ok(None);
    };
    let to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
    let at = match Slot::at(SocketAddr::from((to, port)).into(), port) {
        Some(slot) => At::Slot(slot),
        None => At::Direct(to),
    };
    Ok(Some((message.bytes, Way { client: SocketAddrV4::from(client).into(), at })))
}

fn nothing() -> in_pktinfo {
    let nowhere = nix::libc::in_addr { s_addr: 0 };
    in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: nowhere, ipi_addr: nowhere }
}
