//! The origin behind both proxies: answers with what it saw, or misbehaves as the request asks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// Serves on `listener` for as long as the process lives.
pub fn serve(name: &'static str, listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || while answer(name, &stream).is_some() {});
        }
    });
}

/// Says its name to whoever sends something, as bytes.
pub fn serve_bytes(name: &'static str, listener: TcpListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                if matches!(stream.read(&mut buffer), Ok(1..)) {
                    let _ = stream.write_all(name.as_bytes());
                    let _ = stream.shutdown(Shutdown::Write);
                    while matches!(stream.read(&mut buffer), Ok(1..)) {}
                }
            });
        }
    });
}

/// One request; `None` ends the connection.
fn answer(name: &str, stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let value = |wanted: &str| {
        let mut headers = head.iter().skip(1).filter_map(|line| line.split_once(':'));
        headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim().to_owned())
    };
    let mut body = Vec::new();
    if let Some(length) = value("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if value("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    }
    let mut seen = head.join("\n") + "\n\n";
    seen.push_str(&String::from_utf8_lossy(&body));
    let mut writer = stream;
    let is_head = head[0].starts_with("HEAD ");
    match value("x-behave").as_deref() {
        None => {
            let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-origin: {name}\r\n\r\n", seen.len());
            answer.push_str(if is_head { "" } else { &seen });
            writer.write_all(answer.as_bytes()).ok()?;
        }
        Some("silent") => std::thread::sleep(Duration::from_secs(30)),
        Some("close") => {
            let _ = stream.shutdown(Shutdown::Both);
            return None;
        }
        Some("half") => {
            writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").ok()?;
            let _ = stream.shutdown(Shutdown::Both);
            return None;
        }
        Some(answer) => {
            writer.write_all(response(answer).as_bytes()).ok()?;
            if !answer.starts_with("keep") {
                let _ = stream.shutdown(Shutdown::Both);
                return None;
            }
        }
    }
    Some(())
}

/// The odd responses that a case may ask for.
fn response(answer: &str) -> &'static str {
    match answer {
        "keep-hop" => {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: keep-alive\r\nServer: origin\r\nX-Mixed-Case: Kept\r\n\r\nok"
        }
        "keep-cookies" => {
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
        }
        "keep-204" => "HTTP/1.1 204 No Content\r\nx-no: body\r\n\r\n",
        "keep-304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\netag: \"x\"\r\n\r\n",
        "keep-chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        "keep-trailers" => {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-end\r\n\r\n2\r\nok\r\n0\r\nx-end: 1\r\n\r\n"
        }
        "keep-hints" => "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "until-close" => "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        "old" => "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "two-lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        "both-framings" => {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        }
        "teapot" => "HTTP/1.1 418 I'm a teapot\r\ncontent-length: 5\r\n\r\nshort",
        "unasked-101" => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        _ => "this is no HTTP at all\r\n\r\n",
    }
}
