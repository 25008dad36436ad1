//! The text form of an access record: Envoy's default line, and after it what Envoy's line has no place for.
//!
//! Before: a finished record. After: a line in a sink. The line (Envoy, source/common/formatter,
//! `DEFAULT_FORMAT`) is byte for byte Envoy's, for a connection the one that its TCP proxy prints (`"- - -" 0`), so
//! that a parser of Envoy's logs reads it and ignores the rest. The rest is ` key=value` pairs in a fixed order,
//! texts in quotes, absent values left out:
//!
//! | key | for | value |
//! |---|---|---|
//! | `kind` | both | `connection` or `request` |
//! | `id` | both | the connection's number |
//! | `pid`, `uid`, `comm` | both | the process that connected, when the kernel knows it |
//! | `direction` | both | `inbound`; absent for what goes out |
//! | `pod` | both | in whose network namespace it was taken: `namespace/name` |
//! | `source_pod` | both | the pod that it comes from, where that is another one |
//! | `client` | both | the peer |
//! | `orig_dst` | both | where the client wanted to go |
//! | `listener`, `chain` | both | what served it |
//! | `sni` | both | the name in the ClientHello |
//! | `detected`, `server_first`, `requests` | connection | what protocol detection found, requests served |
//! | `dispatch`, `rtt_us` | connection | `kernel`, and the round-trip time to the endpoint; absent for what the agent served |
//! | `route_config`, `vhost`, `route`, `route_name` | request | the row that matched, by index |
//! | `cluster` | both | where it went |
//! | `attempts`, `upstream_path` | request | tries, and the path sent on when it was rewritten |
//! | `details` | both | Envoy's response code details, or a sentence |

use std::cell::RefCell;
use std::fmt::{self, Display, Write};
use std::time::SystemTime;

use super::escape::Quoted;
use super::record::{ConnectionInfo, ConnectionRecord, Record, RequestRecord};
use crate::listener::{Dispatch, TrafficDirection};
use crate::workload::Workload;

/// Appends the line of `record`, with its line feed, to `line`.
pub fn write_line(line: &mut String, record: &Record) {
    // Writing to a string cannot fail.
    let _ = match record {
        Record::Connection(connection) => write_connection(line, connection),
        Record::Request(request) => write_request(line, request),
    };
    line.push('\n');
}

/// A point in time as Envoy prints it: UTC with milliseconds.
pub fn timestamp(time: SystemTime) -> String {
    Stamp(time).to_string()
}

/// See [`timestamp`]. All but the milliseconds is kept from one record to the next of the same second.
struct Stamp(SystemTime);

impl Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        thread_local! {
            static LAST: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
        }
        let Ok(since) = self.0.duration_since(SystemTime::UNIX_EPOCH) else { return f.write_str("-") };
        LAST.with_borrow_mut(|(second, text)| {
            if *second != since.as_secs() {
                let Ok(time) = jiff::Timestamp::try_from(self.0) else { return f.write_str("-") };
                *text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
                *second = since.as_secs();
            }
            write!(f, "{text}.{:03}Z", since.subsec_millis())
        })
    }
}

fn write_request(line: &mut String, request: &RequestRecord) -> fmt::Result {
    write!(
        line,
        "[{}] \"{} {} {}\" {} {} {} {} {} {} \"{}\" \"{}\" \"{}\" \"{}\" \"{}\"",
        Stamp(request.start),
        Word(&request.method),
        Word(&request.path),
        dash(request.protocol),
        request.status,
        request.flags,
        request.bytes_received,
        request.bytes_sent,
        request.duration.as_millis(),
        Shown(request.upstream_service_time.map(|time| time.as_millis())),
        Quoted(or_dash(request.forwarded_for.as_deref())),
        Quoted(or_dash(request.user_agent.as_deref())),
        Quoted(or_dash(request.request_id.as_deref())),
        Quoted(or_dash(request.authority.as_deref())),
        Shown(request.endpoint),
    )?;
    let mut tail = Tail(line);
    tail.plain("kind", Some("request"))?;
    tail.info(&request.info)?;
    tail.quoted("route_config", request.route_config.as_deref())?;
    tail.quoted("vhost", request.virtual_host.as_deref())?;
    tail.plain("route", request.route)?;
    tail.quoted("route_name", request.route_name.as_deref())?;
    tail.quoted("cluster", request.cluster.as_deref())?;
    tail.plain("attempts", Some(request.attempts))?;
    tail.quoted("upstream_path", request.upstream_path.as_deref())?;
    tail.quoted("details", Some(request.details).filter(|details| !details.is_empty()))
}

fn write_connection(line: &mut String, connection: &ConnectionRecord) -> fmt::Result {
    write!(
        line,
        "[{}] \"- - -\" 0 {} {} {} {} - \"-\" \"-\" \"-\" \"-\" \"{}\"",
        Stamp(connection.start),
        connection.flags,
        connection.bytes_received,
        connection.bytes_sent,
        connection.duration.as_millis(),
        Shown(connection.endpoint),
    )?;
    let mut tail = Tail(line);
    tail.plain("kind", Some("connection"))?;
    tail.info(&connection.info)?;
    tail.plain("detected", connection.detected)?;
    tail.plain("server_first", connection.server_first.then_some(true))?;
    tail.plain("requests", (connection.requests > 0).then_some(connection.requests))?;
    tail.plain("dispatch", (connection.dispatch == Dispatch::Kernel).then_some(connection.dispatch.name()))?;
    tail.plain("rtt_us", connection.rtt.map(|rtt| rtt.as_micros()))?;
    tail.quoted("cluster", connection.cluster.as_deref())?;
    tail.quoted("details", connection.details.as_deref())
}

/// The ` key=value` pairs behind Envoy's line.
struct Tail<'a>(&'a mut String);

impl Tail<'_> {
    fn info(&mut self, info: &ConnectionInfo) -> fmt::Result {
        self.plain("id", Some(info.connection_id))?;
        let process = info.process.as_deref();
        self.plain("pid", process.map(|process| process.pid))?;
        self.plain("uid", process.map(|process| process.uid))?;
        self.quoted("comm", process.map(|process| process.comm.as_str()))?;
        let inbound = info.direction == TrafficDirection::Inbound;
        self.plain("direction", inbound.then_some(info.direction.name()))?;
        self.pod("pod", info.pod.as_deref())?;
        // What goes out of a pod comes from that pod.
        self.pod("source_pod", info.source_pod.as_deref().filter(|_| inbound))?;
        self.plain("client", Some(info.client))?;
        self.plain("orig_dst", info.original_dst)?;
        self.quoted("listener", info.listener.as_deref())?;
        self.quoted("chain", info.filter_chain.as_deref())?;
        self.quoted("sni", info.server_name.as_deref())
    }

    fn pod(&mut self, key: &str, pod: Option<&Workload>) -> fmt::Result {
        let Some(pod) = pod else { return Ok(()) };
        self.quoted(key, Some(&pod.to_string()))
    }

    /// A value that never holds a space nor anything from outside.
    fn plain(&mut self, key: &str, value: Option<impl Display>) -> fmt::Result {
        value.map_or(Ok(()), |value| write!(self.0, " {key}={value}"))
    }

    fn quoted(&mut self, key: &str, value: Option<&str>) -> fmt::Result {
        value.map_or(Ok(()), |value| write!(self.0, " {key}=\"{}\"", Quoted(value)))
    }
}

/// One of the three words of the request line: a space in it would make it look like two.
pub(super) struct Word<'a>(pub &'a str);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        let mut parts = self.0.split(' ');
        Quoted(parts.next().unwrap_or_default()).fmt(f)?;
        parts.try_for_each(|part| write!(f, "\\u0020{}", Quoted(part)))
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn or_dash(text: Option<&str>) -> &str {
    text.map_or("-", dash)
}

/// A value, or a dash.
struct Shown<T>(Option<T>);

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn line(record: Record) -> String {
        let mut line = String::new();
        write_line(&mut line, &record);
        line
    }

    #[test]
    fn a_request_is_envoys_default_line_and_the_tail() {
        assert_eq!(
            line(Record::Request(Box::new(samples::request()))),
            concat!(
                r#"[2026-01-02T03:04:05.678Z] "GET /checkout/cart?x=1 HTTP/1.1" 200 - 3 12 15 11 "-" "curl/8.0" "-" "#,
                r#""shop.example:8080" "127.0.0.1:9001" kind=request id=7 pid=123 uid=1000 comm="curl" "#,
                r#"client=127.0.0.1:40000 orig_dst=10.0.0.9:8080 listener="0.0.0.0_8080" chain="default" "#,
                r#"route_config="8080" vhost="shop" route=1 cluster="checkout-v1" attempts=1 details="via_upstream""#,
                "\n"
            )
        );
    }

    #[test]
    fn a_connection_is_the_line_of_envoys_tcp_proxy_and_the_tail() {
        assert_eq!(
            line(Record::Connection(Box::new(samples::connection()))),
            concat!(
                r#"[2026-01-02T03:04:05.678Z] "- - -" 0 UF,URX 10 0 2500 - "-" "-" "-" "-" "10.0.0.9:8080" "#,
                r#"kind=connection id=7 pid=123 uid=1000 comm="curl" client=127.0.0.1:40000 orig_dst=10.0.0.9:8080 "#,
                r#"listener="0.0.0.0_8080" chain="default" detected=tls server_first=true cluster="passthrough" "#,
                r#"details="connecting to 10.0.0.9:8080""#,
                "\n"
            )
        );
    }

    #[test]
    fn what_goes_out_of_a_pod_names_it_once_and_what_arrives_names_both() {
        let mut record = samples::connection();
        record.info.pod = Some(samples::pod("web-1"));
        record.info.source_pod = Some(samples::pod("web-1"));
        let out = line(Record::Connection(Box::new(record.clone())));
        assert!(out.contains(r#" comm="curl" pod="shop/web-1" client="#), "{out}");
        record.info.process = None;
        record.info.direction = TrafficDirection::Inbound;
        record.info.pod = Some(samples::pod("api-1"));
        let arrived = line(Record::Connection(Box::new(record.clone())));
        let names = r#" id=7 direction=inbound pod="shop/api-1" source_pod="shop/web-1" client="#;
        assert!(arrived.contains(names), "{arrived}");
        (record.info.pod, record.info.source_pod) = (None, None);
        let host = line(Record::Connection(Box::new(record)));
        assert!(host.contains(" id=7 direction=inbound client="), "{host}");
    }

    #[test]
    fn what_a_client_sends_cannot_forge_a_line() {
        let mut request = samples::request();
        request.path = "/a b\" 200 -\n[2026] \"GET / HTTP/1.1\"".into();
        request.user_agent = Some("x\" pid=1 \u{1b}[2J".into());
        let line = line(Record::Request(Box::new(request)));
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.contains(r#""GET /a\u0020b\"\u0020200\u0020-\u000a[2026]"#), "{line}");
        assert!(line.contains(r#""x\" pid=1 \u001b[2J""#), "{line}");
    }
}
