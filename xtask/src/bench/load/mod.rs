//! `cargo xtask load KIND`: the load generators that the distribution has no program for. `bench` starts them inside
//! its namespaces; each writes one line of JSON, or one word when it is ready.

mod connect;
pub mod connects;
mod idle;
mod rate;
mod sink;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Kind {
    /// Time single calls of connect(2)
    Connect(connect::Args),
    /// Time single calls of connect(2) on several ways, side by side
    Connects(connects::Args),
    /// Hold connections open, until stdin ends
    Idle(idle::Args),
    /// Send requests at a fixed rate, whether or not answers come
    Rate(rate::Args),
    /// Accept connections and close them
    Sink(sink::Args),
}

pub fn run(kind: &Kind) -> Result<()> {
    match kind {
        Kind::Connect(args) => connect::run(args),
        Kind::Connects(args) => connects::run(args),
        Kind::Idle(args) => idle::run(args),
        Kind::Rate(args) => rate::run(args),
        Kind::Sink(args) => sink::run(args),
    }
}

/// The three requests of `requests.lua`: each takes another row of the route table.
pub const REQUESTS: [&str; 3] = [
    "GET /checkout/cart?id=1 HTTP/1.1\r\nhost: shop.local\r\nuser-agent: load\r\n\r\n",
    "GET /catalog/1 HTTP/1.1\r\nhost: shop.local\r\nuser-agent: load\r\nx-canary: true\r\n\r\n",
    "GET /catalog/2 HTTP/1.1\r\nhost: shop.local\r\nuser-agent: load\r\n\r\n",
];

/// Whether `bytes` hold a whole answer, and whether that is a success. Origins answer with a length.
pub fn answered(bytes: &[u8]) -> Option<bool> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    (bytes.len() >= head_end + 4 + length.unwrap_or(0)).then(|| head.starts_with("http/1.1 200"))
}

/// Sends one request and waits for its answer.
pub fn exchange(stream: &mut TcpStream, request: &str) -> Result<()> {
    stream.write_all(request.as_bytes())?;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            bail!("the connection ended before the answer");
        }
        bytes.extend_from_slice(&chunk[..length]);
        match answered(&bytes) {
            Some(true) => return Ok(()),
            Some(false) => bail!("the answer is {}", String::from_utf8_lossy(&bytes).lines().next().unwrap_or("")),
            None => {}
        }
    }
}

/// A connection, or an error that names the address.
pub fn connect_to(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let cases: [(&str, Option<bool>); 5] = [
            ("", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", Some(true)),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", Some(false)),
            ("HTTP/1.1 200 OK\r\n\r\n", Some(true)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(answered(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
