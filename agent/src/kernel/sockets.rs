//! What the hooks remember of sockets, for all sockets at once: socket storage through sock_diag, which prints it beside each
//! socket's addresses and its cookie; the slots of clients by that cookie. A socket that has no storage, and whose other end
//! is a client's, was accepted from there.
//!
//! Used by `inspect` only; the data path reads one socket by its fd. The kernel lists the sockets of the network
//! namespace that asks.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::MapData;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use waylay_common::{
    cells::ClientSlot,
    flow::{Role, SocketState},
};

use super::{
    KernelError, Process,
    maps::{Clients, name, places},
};

/// A socket that the hooks or the agent have written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketRow {
    /// `client`, `accepted`, `bypass`, `inbound`, `dispatched` or `agent`.
    pub role: &'static str,
    pub local: SocketAddr,
    /// The true peer: for a client, the agent.
    pub remote: SocketAddr,
    /// `None` for the agent's own sockets.
    pub original_dst: Option<SocketAddr>,
    pub process: Option<Process>,
    pub inode: u32,
}

// <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
/// `struct inet_diag_msg`.
const DIAG_MESSAGE: usize = 72;
/// `idiag_cookie` in it: two words, the lower one first.
const COOKIE: usize = 44;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// The kernel fills at most this much for one read of a dump.
const READ_BYTES: usize = 32 * 1024;

/// All TCP sockets of this network namespace that `map`, the storage, or `clients` know of.
pub(super) fn list(map: &MapData, clients: &Clients) -> Result<Vec<SocketRow>, KernelError> {
    let dump = || -> io::Result<Vec<Listed>> {
        let mut all = Vec::new();
        for family in [AF_INET, AF_INET6] {
            dump_family(family, map, &mut all)?;
        }
        Ok(all)
    };
    let all = dump()
        .map_err(|source| KernelError::io("listing the sockets with sock_diag (kernel module tcp_diag)", source))?;
    let mut rows: Vec<_> = all.iter().filter_map(|socket| socket.row(socket.state.as_ref()?)).collect();
    for client in all.iter().filter(|socket| socket.state.is_none()) {
        let slot = places(name::CLIENTS, clients, [ClientSlot::index(client.cookie)])?;
        let Some(origin) = slot.first().and_then(|slot| slot.published(client.cookie)) else { continue };
        rows.extend(client.row(&origin.state(Role::Client)));
        let accepted =
            all.iter().find(|socket| socket.state.is_none() && socket.ends == (client.ends.1, client.ends.0));
        rows.extend(accepted.and_then(|accepted| accepted.row(&origin.state(Role::Accepted))));
    }
    Ok(rows)
}

/// A socket as sock_diag tells of it.
struct Listed {
    cookie: u64,
    /// This one and the other one.
    ends: (SocketAddr, SocketAddr),
    inode: u32,
    state: Option<SocketState>,
}

impl Listed {
    /// `None`: a state that this build does not know.
    fn row(&self, state: &SocketState) -> Option<SocketRow> {
        let role = match state.role()? {
            Role::Client => "client",
            Role::Accepted => "accepted",
            Role::Bypass => "bypass",
            Role::Inbound => "inbound",
            Role::Dispatched => "dispatched",
            Role::Agent => "agent",
        };
        let (local, remote) = self.ends;
        Some(SocketRow {
            role,
            local,
            remote,
            original_dst: (!state.original_dst.is_none()).then(|| state.original_dst.into()),
            process: (state.process.pid != 0).then(|| state.process.into()),
            inode: self.inode,
        })
    }
}

fn dump_family(family: u8, map: &MapData, all: &mut Vec<Listed>) -> io::Result<()> {
    let mut netlink = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    netlink.write_all(&request(family, map.fd().as_fd().as_raw_fd()))?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let len = netlink.read(&mut buffer)?;
        let mut rest = &buffer[..len];
        while let Some((kind, message, after)) = next_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(error(message)),
                _ => all.extend(listed(message)),
            }
            rest = after;
        }
        if len == 0 {
            return Ok(());
        }
    }
}

/// nlmsghdr, inet_diag_req_v2 for all states, and which map's storage to print.
fn request(family: u8, map_fd: i32) -> Vec<u8> {
    let mut fd = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map_fd.to_ne_bytes());
    fd = attribute(INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED, &fd);
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend([0; 48]);
    body.extend(fd);
    let mut message = Vec::with_capacity(NLMSG_HEADER + body.len());
    message.extend(u32::try_from(NLMSG_HEADER + body.len()).unwrap_or(0).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::with_capacity(4 + value.len());
    attribute.extend(u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute
}

/// Kind, body and what follows of the first message in `bytes`.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(NLMSG_HEADER..len)?;
    Some((kind, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn error(message: &[u8]) -> io::Error {
    let code = message.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// `None`: a message that ends early.
fn listed(message: &[u8]) -> Option<Listed> {
    let family = *message.first()?;
    let port = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let ip = |at: usize| address(family, message.get(at..at + 16)?);
    Some(Listed {
        cookie: u64::from_ne_bytes(*message.get(COOKIE..)?.first_chunk()?),
        ends: (SocketAddr::new(ip(8)?, port(4)?), SocketAddr::new(ip(24)?, port(6)?)),
        inode: u32::from_ne_bytes(*message.get(68..)?.first_chunk()?),
        state: storage(message),
    })
}

/// The socket's entry in the map.
fn storage(message: &[u8]) -> Option<SocketState> {
    let storages = find(message.get(DIAG_MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)?;
    let storage = find(storages, SK_DIAG_BPF_STORAGE)?;
    SocketState::from_bytes(find(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE)?)
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    if family == AF_INET {
        return Some(Ipv4Addr::from(*bytes.first_chunk()?).into());
    }
    Some(IpAddr::from(Ipv6Addr::from(*bytes.first_chunk()?)).to_canonical())
}

/// The value of the first attribute of `kind`.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let found = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = attributes.get(4..len)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_whatever_stands_before_them_and_broken_ones_are_none() {
        let mut bytes = attribute(7, b"abc");
        bytes.push(0);
        bytes.extend(attribute(9 | NLA_F_NESTED, b"wanted"));
        assert_eq!(find(&bytes, 9), Some(&b"wanted"[..]));
        assert_eq!(find(&bytes, 8), None);
        assert_eq!(find(&bytes[..bytes.len() - 1], 9), None);
        assert_eq!(find(&[0, 0, 0, 0], 9), None);
        assert_eq!(find(&[3, 0, 9, 0], 9), None);
    }

    #[test]
    fn a_message_that_ends_early_is_no_message() {
        let request = request(AF_INET, 3);
        let (kind, body, after) = next_message(&request).unwrap();
        assert_eq!((kind, body.len(), after.len()), (SOCK_DIAG_BY_FAMILY, 56 + 12, 0));
        assert!(next_message(&request[..request.len() - 1]).is_none());
        assert!(listed(body).is_none());
    }
}
