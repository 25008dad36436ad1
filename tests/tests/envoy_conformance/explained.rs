//! What `explain` says of a case must be what the agent did with it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use waylay_tests::agent::binary;
use waylay_tests::process::Finished;

use crate::cases::Case;
use crate::tables::{MAIN, OPTIONS};
use crate::translate::WAYLAY;
use crate::wire::Answer;

/// What `explain` is not told, or does not answer: framing, connections, what an endpoint does.
const BEYOND: [&str; 7] =
    ["content-length", "transfer-encoding", "connection", "expect", "upgrade", "x-behave", "proxy-connection"];

/// A request that can be put to `explain`: method, target, headers.
fn question(case: &Case) -> Option<(&str, &str, Vec<&str>)> {
    let text = std::str::from_utf8(&case.request).ok()?;
    let head = text.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.strip_suffix(" HTTP/1.1")?.split(' ');
    let (method, target) = (first.next()?, first.next()?);
    let headers: Vec<&str> = lines.collect();
    let mut named = headers.iter().map(|line| line.split(':').next().unwrap_or_default().to_ascii_lowercase());
    let plain = first.next().is_none()
        && target.starts_with('/')
        && target.is_ascii()
        && !target.contains('#')
        && !text.contains("application/grpc")
        && text.len() < 1000
        && headers.len() < 10
        && named.all(|name| !BEYOND.contains(&name.as_str()))
        && headers.first().is_some_and(|host| host.len() > "Host: ".len())
        && headers[1..].iter().all(|line| !line.starts_with("Host:") && !line.starts_with([' ', '\t']));
    (plain && matches!(case.port, MAIN | OPTIONS) && case.name.starts_with(|c: char| c.is_ascii_alphanumeric()))
        .then_some((method, target, headers))
}

/// Where `explain` says something else.
pub fn judge(config: &Path, case: &Case, waylay: &Answer) -> Option<String> {
    let (method, target, headers) = question(case)?;
    let mut command = Command::new(binary());
    command
        .args(["explain", "-o", "json", "-X", method, "--dst", &format!("{WAYLAY}:{}", case.port), "-c"])
        .arg(config);
    for header in headers {
        command.args(["-H", header]);
    }
    let finished = Finished::of({
        command.arg("--").arg(target);
        command
    });
    if !finished.status.success() {
        // What it does not take as a request, the agent must not take either.
        let refused = waylay["status"].starts_with('4');
        return (!refused).then(|| format!("{}\n  explain failed: {}", case.name, finished.stderr));
    }
    let answer: Value = serde_json::from_str(&finished.stdout).expect("explain prints JSON");
    let said = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
    let seen = |name: &str| waylay.get(name).cloned().unwrap_or("-".to_owned());
    let mut pairs = Vec::new();
    match answer["status"].as_u64() {
        Some(status) => {
            pairs.push(("status", status.to_string(), seen("status")));
            pairs.push(("location", said("/location"), seen("header location")));
        }
        // No endpoint answered: then there is nothing to compare with.
        None if waylay["status"].starts_with('5') => {}
        None => {
            pairs.push(("cluster", said("/cluster"), seen("header x-origin")));
            let line = format!("{} {} HTTP/1.1", said("/upstream/method"), said("/upstream/path"));
            pairs.push(("request line", line, seen("origin line")));
            pairs.push(("host", said("/upstream/host"), seen("origin header host")));
        }
    }
    pairs.retain(|(_, said, seen)| said != seen);
    if method == "HEAD" {
        pairs.retain(|(name, ..)| !matches!(*name, "request line" | "host"));
    }
    let text = |(name, said, seen): &(&str, String, String)| format!("\n  {name}: explain {said:?}, waylay {seen:?}");
    (!pairs.is_empty()).then(|| case.name.clone() + &pairs.iter().map(text).collect::<String>())
}
