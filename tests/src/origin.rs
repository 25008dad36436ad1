//! Small HTTP/1.1 origins that say who they are and what they saw.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// One request as an origin saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `GET /path HTTP/1.1`
    pub request_line: String,
    /// Lower-cased names.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Vec<u8>,
    /// Who asked.
    pub peer: SocketAddr,
}

impl Seen {
    /// The first value of the header `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// A running origin. Its connections are served by a thread each.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// Serves on `listener` until dropped.
    pub fn serve(name: &str, listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("the origin's address");
        listener.set_nonblocking(true).expect("a non-blocking listener");
        let mut origin = Self {
            address,
            seen: Arc::default(),
            connections: Arc::default(),
            stop: Arc::default(),
            open: Arc::default(),
            thread: None,
        };
        let (name, seen, connections) = (name.to_owned(), origin.seen.clone(), origin.connections.clone());
        let (stop, open) = (origin.stop.clone(), origin.open.clone());
        origin.thread = Some(std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                let Ok((stream, peer)) = listener.accept() else {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    continue;
                };
                connections.fetch_add(1, Relaxed);
                stream.set_nonblocking(false).expect("a blocking stream");
                open.lock().expect("open").push(stream.try_clone().expect("a second handle"));
                let (name, seen) = (name.clone(), seen.clone());
                std::thread::spawn(move || {
                    while let Some(()) = answer(&name, &stream, peer, &seen) {}
                    // The second handle keeps the socket open: its end has to be said.
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        }));
        origin
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("seen").clone()
    }

    /// How many connections it accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers one request; `None` ends the connection.
fn answer(name: &str, stream: &TcpStream, peer: SocketAddr, seen: &Mutex<Vec<Seen>>) -> Option<()> {
    // One reader per request is fine: these clients do not send the next request before they have the answer.
    let mut reader = BufReader::new(stream);
    let request_line = line(&mut reader)?;
    let mut headers = Vec::new();
    loop {
        let header = line(&mut reader)?;
        if header.is_empty() {
            break;
        }
        let (key, value) = header.split_once(':')?;
        headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Seen { request_line, headers, body: Vec::new(), peer };
    request.body = body(&mut reader, &request)?;
    let close = request.header("connection") == Some("close");
    let text = format!("{name} {}\n", request.request_line);
    seen.lock().expect("seen").push(request.clone());
    let connection = if close { "connection: close\r\n" } else { "" };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-origin: {name}\r\n{connection}\r\n", text.len());
    let body = if request.request_line.starts_with("HEAD ") { "" } else { &text };
    let mut writer = stream;
    writer.write_all(format!("{head}{body}").as_bytes()).ok()?;
    (!close).then_some(())
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    let n = reader.read_line(&mut line).ok()?;
    (n > 0).then(|| line.trim_end().to_owned())
}

fn body(reader: &mut impl BufRead, request: &Seen) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = request.header("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if request.header("transfer-encoding") == Some("chunked") {
        loop {
            let size = usize::from_str_radix(&line(reader)?, 16).ok()?;
            let mut chunk = vec![0; size];
            reader.read_exact(&mut chunk).ok()?;
            body.append(&mut chunk);
            line(reader)?;
            if size == 0 {
                break;
            }
        }
    }
    Some(body)
}
