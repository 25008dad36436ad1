//! Small DNS resolvers that answer with an address of their own and count what they are asked.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::World;

/// One question as a resolver saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Lower case, without the last dot.
    pub name: String,
    /// `udp` or `tcp`.
    pub over: &'static str,
    /// Who asked.
    pub from: SocketAddr,
}

/// A running resolver at port 53. What it answers is in the first label of the name: `nx` does not exist, `slow` comes after
/// 300 ms, `silent` never, `big` only over TCP, `short` lives for a second; everything else for a minute.
#[derive(Debug)]
pub struct Resolver {
    seen: Arc<Mutex<Vec<Question>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// Serves at `ip` of the world until dropped; its answer to everything is `answer`.
    pub fn start(world: &World, ip: &str, answer: Ipv4Addr) -> Self {
        let address = SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), 53);
        let (udp, tcp) = world.inside(|| {
            (
                UdpSocket::bind(address).expect("binding a resolver"),
                TcpListener::bind(address).expect("binding a resolver"),
            )
        });
        udp.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        tcp.set_nonblocking(true).expect("a non-blocking listener");
        let mut resolver = Self { seen: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        let (seen, stop) = (resolver.seen.clone(), resolver.stop.clone());
        resolver.threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stop.load(Relaxed) {
                if let Ok((len, from)) = udp.recv_from(&mut buffer) {
                    serve_udp(&udp, &buffer[..len], from, answer, &seen);
                }
            }
        }));
        let (seen, stop) = (resolver.seen.clone(), resolver.stop.clone());
        resolver.threads.push(std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                match tcp.accept() {
                    Ok((stream, from)) => _ = serve_tcp(stream, from, answer, &seen),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }));
        resolver
    }

    /// All questions for `name` so far.
    pub fn asked(&self, name: &str) -> Vec<Question> {
        self.seen.lock().expect("seen").iter().filter(|question| question.name == name).cloned().collect()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, query: &[u8], from: SocketAddr, answer: Ipv4Addr, seen: &Mutex<Vec<Question>>) {
    let Some((name, end)) = question(query) else { return };
    seen.lock().expect("seen").push(Question { name: name.clone(), over: "udp", from });
    let reply = reply(query, end, &name, answer, name.starts_with("big."));
    if name.starts_with("silent.") {
        return;
    }
    if name.starts_with("slow.") {
        let socket = socket.try_clone().expect("a second handle");
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            let _ = socket.send_to(&reply, from);
        });
        return;
    }
    let _ = socket.send_to(&reply, from);
}

fn serve_tcp(
    mut stream: TcpStream,
    from: SocketAddr,
    answer: Ipv4Addr,
    seen: &Mutex<Vec<Question>>,
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut query)?;
    let Some((name, end)) = question(&query) else { return Ok(()) };
    seen.lock().expect("seen").push(Question { name: name.clone(), over: "tcp", from });
    let reply = reply(&query, end, &name, answer, false);
    let len = u16::try_from(reply.len()).expect("a short reply");
    stream.write_all(&[&len.to_be_bytes(), reply.as_slice()].concat())
}

/// The name asked for and the end of the question.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    while let Some(&len @ 1..) = query.get(at) {
        let label = query.get(at + 1..at + 1 + usize::from(len))?;
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += 1 + usize::from(len);
    }
    Some((labels.join("."), at + 5))
}

fn reply(query: &[u8], end: usize, name: &str, answer: Ipv4Addr, truncated: bool) -> Vec<u8> {
    let kind = query.get(end - 4..end - 2).map(|kind| u16::from_be_bytes([kind[0], kind[1]])).unwrap_or_default();
    let exists = !name.starts_with("nx.");
    // `big` does not fit into 512 bytes, and comes over TCP only.
    let count: u16 = if truncated || !exists || kind != 1 {
        0
    } else if name.starts_with("big.") {
        40
    } else {
        1
    };
    let flags: u16 = 0x8180 | if truncated { 0x0200 } else { 0 } | if exists { 0 } else { 3 };
    let negative = u16::from(!truncated && count == 0);
    let mut bytes = query[..2].to_vec();
    for word in [flags, 1, count, negative, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(&query[12..end]);
    let ttl: u32 = if name.starts_with("short.") { 1 } else { 60 };
    for _ in 0..count {
        bytes.extend([0xc0, 12, 0, 1, 0, 1]);
        bytes.extend(ttl.to_be_bytes());
        bytes.extend([0, 4]);
        bytes.extend(answer.octets());
    }
    if negative == 1 {
        // SOA of the root: two names of a byte each, five numbers, the last of which is how long a "no" holds.
        bytes.extend([0, 0, 6, 0, 1]);
        bytes.extend(ttl.to_be_bytes());
        bytes.extend([0, 22, 0, 0]);
        for number in [1, 7200, 600, 86400, ttl] {
            bytes.extend(number.to_be_bytes());
        }
    }
    bytes
}
