//! A container runtime that has no containers: it lists the network namespaces that a run made, as docker would over
//! its HTTP API, as far as waylay asks. What is measured with it are the agent's costs, not a runtime's.

use std::{
    io::{BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Containers by number: their namespaces' names.
#[derive(Debug)]
struct Books(Vec<String>);

/// Serves until this process ends.
pub fn serve(socket: &Path, namespaces: Vec<String>) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let books = Arc::new(Books(namespaces));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let books = Arc::clone(&books);
            // An agent that goes away ends its own connection only.
            thread::spawn(move || books.answer_all(&stream));
        }
    });
    Ok(())
}

impl Books {
    fn answer_all(&self, stream: &UnixStream) -> std::io::Result<()> {
        let (mut reader, mut writer) = (BufReader::new(stream), stream);
        while let Some(path) = request(&mut reader)? {
            if path.starts_with("/events") {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
                writer.write_all(head.as_bytes())?;
                // Nothing ever happens to these containers; the agent hangs up.
                request(&mut reader)?;
                return Ok(());
            }
            let (status, body) = self.page(&path).map_or(("404 Not Found", Value::Null), |body| ("200 OK", body));
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            writer.write_all((head + &body).as_bytes())?;
        }
        Ok(())
    }

    fn page(&self, path: &str) -> Option<Value> {
        match path {
            "/version" => return Some(json!({"Components": [{"Name": "Engine"}]})),
            "/containers/json" => {
                let rows = (0..self.0.len()).map(|number| json!({"Id": id(number), "Labels": labels()}));
                return Some(rows.collect());
            }
            _ => {}
        }
        let wanted = path.strip_prefix("/containers/")?.strip_suffix("/json")?;
        let number = (0..self.0.len()).find(|number| id(*number) == wanted)?;
        Some(json!({
            "Id": wanted,
            "Name": format!("/pod{number}"),
            "State": {"Running": true, "Pid": 0},
            "Config": {"Labels": labels()},
            "HostConfig": {"NetworkMode": "bridge"},
            "NetworkSettings": {
                "SandboxKey": format!("/run/netns/{}", self.0[number]),
                "Networks": {"bridge": {"IPAddress": address(number)}},
            },
        }))
    }
}

fn id(number: usize) -> String {
    format!("{:064x}", number + 1)
}

fn labels() -> Value {
    json!({"waylay.io/inject": "true"})
}

fn address(number: usize) -> String {
    format!("10.99.{}.{}", number / 250, number % 250 + 2)
}

/// The path of the next request, without its version; `None` at the end.
fn request(reader: &mut impl std::io::BufRead) -> std::io::Result<Option<String>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or("/");
    let path = path.split('?').next().unwrap_or(path);
    let unversioned = path.strip_prefix("/v").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    Ok(Some(unversioned.filter(|rest| !path.starts_with("/version") && rest.len() > 1).unwrap_or(path).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_listed_and_shown_with_its_namespace() {
        let books = Books(vec!["a".to_owned(), "b".to_owned()]);
        let list = books.page("/containers/json").expect("a list");
        let second = list[1]["Id"].as_str().expect("an id");
        let shown = books.page(&format!("/containers/{second}/json")).expect("a container");
        assert_eq!(shown["NetworkSettings"]["SandboxKey"], "/run/netns/b");
        assert!(books.page("/containers/unknown/json").is_none());
    }

    #[test]
    fn the_version_in_a_path_is_left_out() {
        let cases = [
            ("GET /v1.41/containers/json?all=0 HTTP/1.1", "/containers/json"),
            ("GET /version HTTP/1.1", "/version"),
            ("GET /containers/x/json HTTP/1.1", "/containers/x/json"),
        ];
        for (line, expected) in cases {
            let text = format!("{line}\r\nhost: d\r\n\r\n");
            assert_eq!(request(&mut text.as_bytes()).expect("text").as_deref(), Some(expected));
        }
    }
}
