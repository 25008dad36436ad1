//! The rows of `waylay exec --route`, and the configuration that they make.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::cli::local::{self, LocalRow};

/// One row: what it matches, and where that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    condition: Condition,
    address: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// `[METHOD] [HOST]/PREFIX`
    Path { method: Option<String>, host: Option<String>, prefix: String },
    /// `name: value`
    Header { name: String, value: String },
}

/// A row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// No arrow.
    #[error("expected 'CONDITION => IP:PORT', as in '/checkout => 127.0.0.1:9001'")]
    Arrow,
    /// The right side.
    #[error("'{0}' is no IP:PORT")]
    Address(String),
    /// The left side.
    #[error("'{0}' is none of PREFIX, METHOD PREFIX, HOST/PREFIX, 'header: value'")]
    Condition(String),
}

impl FromStr for Row {
    type Err = RowError;

    fn from_str(text: &str) -> Result<Self, RowError> {
        // The last arrow: a header's value may hold one.
        let (condition, address) = text.rsplit_once("=>").ok_or(RowError::Arrow)?;
        let address = address.trim();
        Ok(Self {
            condition: condition.trim().parse()?,
            address: address.parse().map_err(|_| RowError::Address(address.to_owned()))?,
        })
    }
}

impl FromStr for Condition {
    type Err = RowError;

    fn from_str(text: &str) -> Result<Self, RowError> {
        let error = || RowError::Condition(text.to_owned());
        if let Some((name, value)) = text.split_once(':')
            && !text.starts_with('/')
            && is_token(name)
            && (value.is_empty() || value.starts_with(' '))
        {
            return Ok(Self::Header { name: name.to_ascii_lowercase(), value: value.trim().to_owned() });
        }
        let (method, target) = match text.split_once(' ') {
            Some((method, target)) if is_token(method) => (Some(method.to_owned()), target.trim()),
            Some(_) => return Err(error()),
            None => (None, text),
        };
        let slash = target.find('/').ok_or_else(error)?;
        let (host, prefix) = target.split_at(slash);
        if target.contains(char::is_whitespace) || prefix.contains(['?', '#']) {
            return Err(error());
        }
        let host = (!host.is_empty()).then(|| host.to_ascii_lowercase());
        Ok(Self::Path { method, host, prefix: prefix.to_owned() })
    }
}

/// RFC 9110 5.6.2: what header names and methods are made of.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

impl Row {
    fn route(&self) -> Value {
        let matching = match &self.condition {
            Condition::Header { name, value } => json!({"prefix": "/", "headers": [{"name": name, "exact": value}]}),
            Condition::Path { method, host, prefix } => {
                let mut matching = json!({"prefix": prefix});
                if let Some(method) = method {
                    matching["methods"] = json!([method]);
                }
                if let Some(host) = host {
                    let pattern = match host.contains(':') {
                        true => regex::escape(host),
                        false => format!("{}(:[0-9]+)?", regex::escape(host)),
                    };
                    matching["headers"] = json!([{"name": ":authority", "safe_regex": format!("(?i){pattern}")}]);
                }
                matching
            }
        };
        // No timeout: the command decides how long it waits.
        json!({"match": matching, "route": {"cluster": self.address.to_string(), "timeout": "0s"}})
    }
}

/// The configuration for `rows`, and for `local_rows`, which are asked first.
pub fn configuration(rows: &[Row], local_rows: &[LocalRow]) -> String {
    let elsewhere: BTreeSet<_> = local_rows.iter().map(LocalRow::to).collect();
    let addresses: BTreeSet<_> = rows.iter().map(|row| row.address).filter(|to| !elsewhere.contains(to)).collect();
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    let fixed = addresses
        .iter()
        .map(|address| json!({"name": address, "type": "static", "protocol": "downstream", "endpoints": [address]}));
    let passthrough = json!({"name": "passthrough", "type": "original_dst", "protocol": "downstream"});
    let rest = json!({"match": {"prefix": "/"}, "route": {"cluster": "passthrough", "timeout": "0s"}});
    let routes: Vec<_> = rows.iter().map(Row::route).chain([rest]).collect();
    let http = json!({
        "match": {"application_protocols": ["http/1.0", "http/1.1", "h2c"]},
        "http": {"route_config": "exec", "accept_http_10": true, "server_header_transformation": "pass_through",
                 "generate_request_id": false},
    });
    let listener = json!({
        "name": "exec",
        "address": "127.0.0.1:15001",
        "use_original_dst": true,
        "listener_filters": ["tls_inspector", "http_inspector"],
        "filter_chains": [http],
        "default_filter_chain": {"tcp_proxy": {"cluster": "passthrough"}},
    });
    let table = json!({
        "name": "exec",
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
    });
    let clusters: String = fixed.chain([passthrough]).map(|cluster| format!("  - {cluster}\n")).collect();
    let added = local::additions(local_rows);
    format!(
        "listeners:\n  - {listener}\n{}route_configs:\n  - {table}\n{}clusters:\n{clusters}{}",
        added.listeners, added.route_configs, added.clusters
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Source};
    use crate::snapshot::Runtime;

    fn path(method: Option<&str>, host: Option<&str>, prefix: &str) -> Condition {
        Condition::Path { method: method.map(str::to_owned), host: host.map(str::to_owned), prefix: prefix.to_owned() }
    }

    #[test]
    fn rows_are_read_in_every_form() {
        let header = |name: &str, value: &str| Condition::Header { name: name.into(), value: value.into() };
        for (text, condition, address) in [
            ("/ => 127.0.0.1:9001", path(None, None, "/"), "127.0.0.1:9001"),
            ("/a/b=>[::1]:80", path(None, None, "/a/b"), "[::1]:80"),
            ("POST /a => 1.2.3.4:5", path(Some("POST"), None, "/a"), "1.2.3.4:5"),
            ("Shop.Example/a => 1.2.3.4:5", path(None, Some("shop.example"), "/a"), "1.2.3.4:5"),
            ("GET shop:8080/ => 1.2.3.4:5", path(Some("GET"), Some("shop:8080"), "/"), "1.2.3.4:5"),
            ("X-Canary: true => 1.2.3.4:5", header("x-canary", "true"), "1.2.3.4:5"),
            ("x-note: a => b => 1.2.3.4:5", header("x-note", "a => b"), "1.2.3.4:5"),
            ("/time/12:30 => 1.2.3.4:5", path(None, None, "/time/12:30"), "1.2.3.4:5"),
        ] {
            let row: Row = text.parse().expect(text);
            assert_eq!((row.condition, row.address.to_string()), (condition, address.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_row_is_explained() {
        for (text, message) in [
            ("/a", "expected 'CONDITION => IP:PORT'"),
            ("/a => localhost:80", "'localhost:80' is no IP:PORT"),
            ("shop => 1.2.3.4:5", "'shop' is none of"),
            ("/a?b=c => 1.2.3.4:5", "'/a?b=c' is none of"),
            ("a b /c => 1.2.3.4:5", "'a b /c' is none of"),
            (" => 1.2.3.4:5", "'' is none of"),
        ] {
            let error = text.parse::<Row>().expect_err(text).to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_rows_make_a_configuration_that_loads() {
        let rows: Vec<Row> =
            ["/a => 127.0.0.1:1", "x-canary: true => 127.0.0.1:2", "GET shop.example/b => 127.0.0.1:1"]
                .map(|row| row.parse().expect(row))
                .into();
        let local = ["5432 => 127.0.0.1:1", "10.0.0.1:80 => 127.0.0.1:3"].map(|row| row.parse().expect(row));
        for (rows, local) in [(&rows[..], &local[..]), (&rows, &[]), (&[], &local), (&[], &[])] {
            let source = Source::Inline { name: "--route".to_owned(), text: configuration(rows, local) };
            let loaded = config::load(&source, &Runtime::default(), 1).map_err(|errors| errors.to_string());
            let snapshot = loaded.expect("a good configuration").snapshot;
            assert_eq!(snapshot.route_configs["exec"].virtual_hosts[0].routes.len(), rows.len() + 1);
            assert!(snapshot.intercept.is_some());
            // The row of a port has one for each family.
            assert_eq!(snapshot.listeners.iter().count(), if local.is_empty() { 1 } else { 4 });
        }
    }
}
