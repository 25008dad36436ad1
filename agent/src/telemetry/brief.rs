//! The brief form of an access record: one short line for somebody who watches a terminal.
//!
//! Before: a finished record. After: a line in a sink. A request is a line, and so is a connection that carried none; a
//! connection whose requests have their lines has none of its own.
//!
//! ```text
//! 15:04:05.678 curl[123] GET shop.example:8080/cart => 127.0.0.1:9001  200  12 B  15 ms
//! 15:04:06.001 psql[124] 10.0.0.9:5432 => 127.0.0.1:15432  79 B sent, 535 B received  4 ms
//! ```

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use super::escape::Shown;
use super::record::{ConnectionInfo, ConnectionRecord, Record, RequestRecord};
use super::text::Word;

/// Appends the line of `record`, with its line feed, to `line`; nothing for what has no line.
pub fn write_line(line: &mut String, record: &Record) {
    // Writing to a string cannot fail.
    let _ = match record {
        Record::Connection(connection) if connection.requests > 0 => Ok(()),
        Record::Connection(connection) => write_connection(line, connection),
        Record::Request(request) => write_request(line, request),
    };
}

fn write_request(line: &mut String, request: &RequestRecord) -> fmt::Result {
    write_who(line, request.start, &request.info)?;
    let host = request.authority.as_deref().unwrap_or_default();
    write!(line, "{} {}{}", Word(&request.method), word_or_nothing(host), Word(&request.path))?;
    if let Some(endpoint) = request.endpoint {
        write!(line, " => {endpoint}")?;
    }
    write!(line, "  {}  {}  {}", request.status, Bytes(request.bytes_sent), Took(request.duration))?;
    if !request.flags.is_empty() {
        write!(line, "  {} ({})", request.flags, request.details)?;
    }
    line.write_char('\n')
}

fn write_connection(line: &mut String, connection: &ConnectionRecord) -> fmt::Result {
    write_who(line, connection.start, &connection.info)?;
    match connection.info.original_dst {
        Some(to) => write!(line, "{to}")?,
        None => write!(line, "{}", connection.info.local)?,
    }
    if let Some(name) = &connection.info.server_name {
        write!(line, " ({})", Word(name))?;
    }
    if let Some(endpoint) = connection.endpoint {
        write!(line, " => {endpoint}")?;
    }
    let (sent, received) = (Bytes(connection.bytes_received), Bytes(connection.bytes_sent));
    write!(line, "  {sent} sent, {received} received  {}", Took(connection.duration))?;
    if !connection.flags.is_empty() {
        write!(line, "  {}", connection.flags)?;
        if let Some(details) = &connection.details {
            write!(line, " ({})", Shown(details))?;
        }
    }
    line.write_char('\n')
}

/// The time of day here, and who connected.
fn write_who(line: &mut String, start: SystemTime, info: &ConnectionInfo) -> fmt::Result {
    match jiff::Timestamp::try_from(start) {
        Ok(time) => write!(line, "{} ", time.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.3f"))?,
        Err(_) => line.write_str("- ")?,
    }
    match &info.process {
        Some(process) => write!(line, "{}[{}] ", Word(&process.comm), process.pid),
        None => write!(line, "{} ", info.client),
    }
}

fn word_or_nothing(text: &str) -> String {
    if text.is_empty() { String::new() } else { Word(text).to_string() }
}

/// A number of bytes, to three digits or so.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only for people: what a float loses does not show.
        #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} B", self.0),
            1_000..1_000_000 => write!(f, "{:.1} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.1} GB", bytes / 1e9),
        }
    }
}

/// How long it took.
struct Took(Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms @ 0..10_000 => write!(f, "{ms} ms"),
            _ => write!(f, "{:.1} s", self.0.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::samples;
    use super::*;

    fn written(record: Record) -> String {
        let mut line = String::new();
        write_line(&mut line, &record);
        // The time of day depends on where the test runs.
        line.split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or_default()
    }

    #[test]
    fn requests_and_connections_without_requests_are_short_lines() {
        assert_eq!(
            written(Record::Request(Box::new(samples::request()))),
            "curl[123] GET shop.example:8080/checkout/cart?x=1 => 127.0.0.1:9001  200  12 B  15 ms\n"
        );
        assert_eq!(
            written(Record::Connection(Box::new(samples::connection()))),
            "curl[123] 10.0.0.9:8080 => 10.0.0.9:8080  10 B sent, 0 B received  2500 ms  UF,URX (connecting to 10.0.0.9:8080)\n"
        );
        let served = ConnectionRecord { requests: 2, ..samples::connection() };
        assert_eq!(written(Record::Connection(Box::new(served))), "");
    }

    #[test]
    fn what_a_client_says_cannot_break_the_line() {
        let mut request = samples::request();
        (request.method, request.path) = ("GET\n".into(), "/a\x1b[2J\n".into());
        request.info = Arc::new(ConnectionInfo { process: None, ..samples::info() });
        let line = written(Record::Request(Box::new(request)));
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(!line.contains('\x1b') && line.starts_with("127.0.0.1:40000 "), "{line}");
    }

    #[test]
    fn numbers_are_for_people() {
        for (bytes, expected) in [(999, "999 B"), (1_500, "1.5 kB"), (2_000_000, "2.0 MB"), (3_000_000_000, "3.0 GB")] {
            assert_eq!(Bytes(bytes).to_string(), expected);
        }
        assert_eq!(Took(Duration::from_millis(9_999)).to_string(), "9999 ms");
        assert_eq!(Took(Duration::from_secs(75)).to_string(), "75.0 s");
    }
}
