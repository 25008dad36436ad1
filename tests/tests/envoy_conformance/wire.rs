//! A client that sends what it is given, byte for byte, and takes the answer apart.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// Everything that can be compared of an answer, by name.
pub type Answer = BTreeMap<String, String>;

/// How long an answer is awaited. Longer than any time-out in the tables.
const PATIENCE: Duration = Duration::from_secs(8);

/// Sends `request` on a connection of its own, from `source` if it says `IP` or `IP:PORT`.
pub fn ask(address: SocketAddr, source: Option<&str>, request: &[u8]) -> Answer {
    let mut stream = connect(address, source);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    // A proxy may refuse before it has read everything.
    let _ = stream.write_all(request);
    let mut reader = Reader { stream, buffer: Vec::new(), ended: None };
    let mut answer = Answer::new();
    let is_head = request.starts_with(b"HEAD ");
    loop {
        let Some(end) = reader.until(b"\r\n\r\n") else {
            let raw = String::from_utf8_lossy(&reader.buffer).into_owned();
            answer.insert("status".to_owned(), reader.ended.unwrap_or("?").to_owned());
            answer.insert("raw".to_owned(), raw);
            return answer;
        };
        let head = String::from_utf8_lossy(&reader.take(end)).into_owned();
        let status = head.get(9..12).unwrap_or("?").to_owned();
        if status.starts_with('1') && status != "101" {
            answer.insert(format!("interim {status}"), "yes".to_owned());
            continue;
        }
        response(&mut answer, &head, &status);
        if status != "101" {
            body(&mut answer, &mut reader, is_head || status == "204" || status == "304");
        }
        return answer;
    }
}

fn connect(address: SocketAddr, source: Option<&str>) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    if let Some(source) = source {
        let source: SocketAddr = source.parse().or_else(|_| format!("{source}:0").parse()).expect("an address");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&source.into()).expect("binding the client");
    }
    socket.connect(&address.into()).expect("connecting to a proxy");
    socket.into()
}

fn response(answer: &mut Answer, head: &str, status: &str) {
    answer.insert("status".to_owned(), status.to_owned());
    answer.insert("version".to_owned(), head[..8].to_owned());
    for line in head.lines().skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = match name.to_ascii_lowercase().as_str() {
            "date" if !value.contains("1970") => "*",
            "x-envoy-upstream-service-time" => "*",
            _ => value.trim(),
        };
        add(answer, format!("header {}", name.to_ascii_lowercase()), value);
    }
}

fn add(answer: &mut Answer, name: String, value: &str) {
    let all = answer.entry(name).or_default();
    if !all.is_empty() {
        all.push_str(" | ");
    }
    all.push_str(value);
}

fn body(answer: &mut Answer, reader: &mut Reader, none: bool) {
    let header = |name: &str| answer.get(&format!("header {name}")).cloned();
    let chunked = header("transfer-encoding").is_some_and(|value| value == "chunked");
    let length = header("content-length").and_then(|length| length.parse().ok());
    let closes = header("connection").is_some_and(|value| value == "close");
    let body = match (none, chunked, length) {
        (true, ..) => Some(Vec::new()),
        (false, true, _) => reader.chunks(),
        (false, false, Some(length)) => (reader.fill(length)).then(|| reader.take(length)),
        (false, false, None) => {
            reader.read_to_end();
            Some(std::mem::take(&mut reader.buffer))
        }
    };
    let whole = body.is_some();
    answer.insert("complete".to_owned(), whole.to_string());
    let body = body.unwrap_or_else(|| std::mem::take(&mut reader.buffer));
    let body = String::from_utf8_lossy(&body).into_owned();
    if closes {
        reader.read_to_end();
        answer.insert("closes".to_owned(), reader.ended.unwrap_or("?").to_owned());
    }
    if answer.contains_key("header x-origin") {
        seen(answer, &body);
        // Says no more than that the origin saw the same.
        answer.remove("header content-length");
    } else {
        answer.insert("body".to_owned(), body);
    }
}

/// What the origin saw.
fn seen(answer: &mut Answer, text: &str) {
    let Some((head, body)) = text.split_once("\n\n") else { return };
    let mut lines = head.lines();
    answer.insert("origin line".to_owned(), lines.next().unwrap_or_default().to_owned());
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let name = name.to_ascii_lowercase();
        let generated = name == "x-request-id" && value.len() > 30;
        add(answer, format!("origin header {name}"), if generated { "*" } else { value.trim() });
    }
    answer.insert("origin body".to_owned(), body.to_owned());
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How the stream ended.
    ended: Option<&'static str>,
}

impl Reader {
    fn read(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let mut piece = [0; 16384];
        match self.stream.read(&mut piece) {
            Ok(0) => self.ended = Some("closed"),
            Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => self.ended = Some("closed"),
            Err(_) => self.ended = Some("nothing"),
        }
        self.ended.is_none()
    }

    /// The place behind `mark`.
    fn until(&mut self, mark: &[u8]) -> Option<usize> {
        loop {
            if let Some(place) = self.buffer.windows(mark.len()).position(|part| part == mark) {
                return Some(place + mark.len());
            }
            if !self.read() {
                return None;
            }
        }
    }

    fn fill(&mut self, length: usize) -> bool {
        while self.buffer.len() < length {
            if !self.read() {
                return false;
            }
        }
        true
    }

    fn read_to_end(&mut self) {
        while self.read() {}
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.buffer.drain(..length).collect()
    }

    /// A chunked body; trailers are part of it, so that they can be compared.
    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let end = self.until(b"\r\n")?;
            let line = self.take(end);
            let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).ok()?;
            if size == 0 {
                loop {
                    let end = self.until(b"\r\n")?;
                    let line = self.take(end);
                    if line == b"\r\n" {
                        return Some(whole);
                    }
                    whole.extend_from_slice(&line);
                }
            }
            if !self.fill(size + 2) {
                return None;
            }
            whole.extend_from_slice(&self.take(size + 2)[..size]);
        }
    }
}
