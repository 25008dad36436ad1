//! Listening sockets: bound by the main thread, so that conflicts fail at once and say what to do about them.
//!
//! Before: the listeners of a snapshot. After: [`super::accept`], which accepts from the sockets on the workers.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::kernel::{InboundEnrolment, Policy};
use crate::listener::{Binding, Listener, ReusePort};

/// Tries to find a port that is free in both families. Few of some 28,000 are taken, so that one is nearly always
/// enough.
const EPHEMERAL_ATTEMPTS: u32 = 8;

/// A listener's sockets.
#[derive(Debug)]
pub struct Bound {
    /// The listener's address as configured: its identity.
    pub key: SocketAddr,
    /// What it is bound to, once or in both families.
    pub addresses: Vec<SocketAddr>,
    /// For each worker, a socket for each address.
    pub sockets: Vec<Vec<TcpListener>>,
}

/// Handles on one socket of the inbound listener for each family: the kernel finds the others of its group by itself.
#[derive(Debug, Default)]
pub struct InboundSockets(Vec<TcpListener>);

impl InboundSockets {
    /// Of the inbound listener, as it was bound.
    ///
    /// # Errors
    /// No file descriptors to be had.
    pub fn of(sockets: &[Vec<TcpListener>]) -> io::Result<Self> {
        let first = sockets.first().into_iter().flatten();
        Ok(Self(first.map(TcpListener::try_clone).collect::<Result<_, _>>()?))
    }

    /// What of that which arrives at them is taken; `None` without a socket.
    pub fn enrolment<'a>(&'a self, policy: &'a Policy) -> Option<InboundEnrolment<'a>> {
        let of_family = |v4: bool| {
            let is_it = |socket: &&TcpListener| socket.local_addr().is_ok_and(|address| address.is_ipv4() == v4);
            self.0.iter().find(is_it).map(AsFd::as_fd)
        };
        let (listener_v4, listener_v6) = (of_family(true), of_family(false));
        (!self.0.is_empty()).then_some(InboundEnrolment { policy, listener_v4, listener_v6 })
    }

    /// Lets go of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Why a listener has no socket.
#[derive(Debug, thiserror::Error)]
#[error("listener '{listener}' cannot listen on {address}: {remedy}")]
pub struct BindError {
    /// Its name.
    pub listener: String,
    /// Where it should.
    pub address: SocketAddr,
    /// Who is in the way, and what to do.
    pub remedy: String,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// Which port a listener is bound to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// The configured one.
    #[default]
    Configured,
    /// Any free one: for an agent beside the machine's own.
    Ephemeral,
}

/// Binds `listener` for `workers` workers; `None` when it has no socket of its own.
///
/// # Errors
/// The address is taken, not this host's, or not permitted.
pub fn bind(listener: &Listener, workers: usize, ports: Ports) -> Result<Option<Bound>, BindError> {
    let Binding::Socket { reuse_port, backlog } = listener.binding else { return Ok(None) };
    let mut address = listener.address;
    if ports == Ports::Ephemeral {
        address.set_port(0);
    }
    for _ in 0..EPHEMERAL_ATTEMPTS {
        match bind_once(listener, address, workers, reuse_port, backlog) {
            // A port that is free in one family may be taken in the other.
            Err(error) if address.port() == 0 && error.source.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map(Some),
        }
    }
    bind_once(listener, address, workers, reuse_port, backlog).map(Some)
}

/// Binds `listener` for `workers` workers in the network namespace of the calling thread: there only the kernel's own
/// side hands connections over, so loopback is enough, and closed to others.
///
/// # Errors
/// The port is taken.
pub fn bind_at_loopback(listener: &Listener, workers: usize) -> Result<Bound, BindError> {
    let (reuse_port, backlog) = match listener.binding {
        Binding::Socket { reuse_port, backlog } => (reuse_port, backlog),
        Binding::Virtual => (ReusePort::PerWorker, 1),
    };
    let [v4, _] = at_loopback(listener.address);
    bind_once(listener, v4, workers, reuse_port, backlog)
}

/// Where the listener configured at `address` is bound in the namespace of a workload.
pub fn at_loopback(address: SocketAddr) -> [SocketAddr; 2] {
    let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    ips.map(|ip| SocketAddr::new(ip, address.port()))
}

fn bind_once(
    listener: &Listener,
    address: SocketAddr,
    workers: usize,
    reuse_port: ReusePort,
    backlog: u32,
) -> Result<Bound, BindError> {
    let mut bound = Bound { key: listener.address, addresses: Vec::new(), sockets: Vec::new() };
    bound.sockets.resize_with(workers, Vec::new);
    let failed = |address: SocketAddr, source: io::Error| BindError {
        listener: listener.name.to_string(),
        address,
        remedy: remedy(&source, address),
        source,
    };
    let main = bind_all(address, workers, reuse_port, backlog, &mut bound).map_err(|source| failed(address, source))?;
    if let Some(other) = other_family(listener, main)
        && let Err(source) = bind_all(other, workers, reuse_port, backlog, &mut bound)
        // A host without the other family has nobody who could come from there.
        && !is_family_missing(&source)
    {
        return Err(failed(other, source));
    }
    Ok(bound)
}

/// What the kernel hands over of both families needs somewhere to go.
fn other_family(listener: &Listener, bound: SocketAddr) -> Option<SocketAddr> {
    if !listener.receives() {
        return None;
    }
    let ip: IpAddr = match bound.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => return None,
    };
    Some(SocketAddr::new(ip, bound.port()))
}

fn is_family_missing(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(nix::errno::Errno::from_raw);
    matches!(code, Some(nix::errno::Errno::EADDRNOTAVAIL | nix::errno::Errno::EAFNOSUPPORT))
}

fn bind_all(
    address: SocketAddr,
    workers: usize,
    reuse_port: ReusePort,
    backlog: u32,
    bound: &mut Bound,
) -> io::Result<SocketAddr> {
    // SO_REUSEPORT would share the address with any other process of this user that sets it too: a second agent would
    // get half of the connections. So see whether the address is free for one that does not share.
    if address.port() != 0 {
        socket(address)?.bind(&address.into())?;
    }
    let first = socket(address)?;
    if reuse_port == ReusePort::PerWorker {
        first.set_reuse_port(true)?;
    }
    first.bind(&address.into())?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(match reuse_port {
            ReusePort::Shared => sockets[0].try_clone()?,
            ReusePort::PerWorker => {
                let socket = socket(address)?;
                socket.set_reuse_port(true)?;
                socket.bind(&address.into())?;
                socket
            }
        });
    }
    for socket in &sockets {
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    }
    for (worker, socket) in bound.sockets.iter_mut().zip(sockets) {
        worker.push(socket.into());
    }
    bound.addresses.push(address);
    Ok(address)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        // Each family has its own listener, or the other one's address would seem taken.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn remedy(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder(address) {
            Some(holder) => format!("{holder} listens there: stop it, or choose another port"),
            None => "another process listens there: stop it, or choose another port".to_owned(),
        },
        io::ErrorKind::AddrNotAvailable => "no interface of this host has the address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: run with sudo, or choose another port".to_owned()
        }
        _ => "the system refused".to_owned(),
    }
}

/// Who listens on `address`, as far as /proc tells.
fn holder(address: SocketAddr) -> Option<String> {
    let inodes: Vec<String> = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, address.port()))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for pid in pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let holds = files
            .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
            .any(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()));
        if holds {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("'{}' (pid {pid})", name.trim_end()));
        }
    }
    None
}

/// The inodes of the sockets that listen on `port`, from the text of /proc/net/tcp or tcp6.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let local = columns.nth(1)?;
            let state = columns.nth(1)?;
            let inode = columns.nth(5)?;
            let (_, local_port) = local.rsplit_once(':')?;
            let is_it = state == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
            if is_it { inode.parse().ok() } else { None }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_sockets_tells_who_listens() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
             1: 0100007F:3A99 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n";
        assert_eq!(listening_inodes(table, 15001), [4711]);
        assert_eq!(listening_inodes(table, 15002), [0_u64; 0]);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let holder = holder(address).expect("holder");
        assert!(holder.contains(&format!("(pid {})", std::process::id())), "{holder}");
    }
}
