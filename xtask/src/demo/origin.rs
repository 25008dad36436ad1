//! A tiny HTTP/1.1 server that says who it is and what it saw.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result};

/// More header lines than curl and the agent send together; anything beyond is not for the demo.
const MAX_HEADERS: usize = 100;

/// Serves until the process ends.
#[derive(Debug)]
pub struct Origin {
    name: &'static str,
    address: SocketAddr,
}

impl Origin {
    pub fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot open a port on loopback")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away early ends its own connection only.
                thread::spawn(move || serve(name, stream));
            }
        });
        Ok(Self { name, address })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Answers one request after the other until the client closes.
fn serve(name: &str, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || lines.len() > MAX_HEADERS {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                text => lines.push(text.to_owned()),
            }
        }
        let body = answer(name, &lines);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", body.len());
        writer.write_all((head + &body).as_bytes())?;
    }
}

fn answer(name: &str, lines: &[String]) -> String {
    let (request, headers) = lines.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let request = request.rsplit_once(' ').map_or(request, |(before_version, _)| before_version);
    let headers: String = headers.iter().map(|header| format!("  saw {header}\n")).collect();
    format!("{name} answers {request}\n{headers}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_names_itself_the_request_and_the_headers() {
        let lines = ["GET /x HTTP/1.1", "host: a"].map(str::to_owned);
        assert_eq!(answer("v1", &lines), "v1 answers GET /x\n  saw host: a\n");
    }
}
