//! The configuration that the rows make, as YAML that a person can go on from.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use super::row::Taken;
use super::{InboundRow, Intercepted, LocalRow};

/// Where the agent listens for what goes out, and for what arrives.
pub const PORTS: [u16; 2] = [15001, 15006];

/// What the listeners, route tables and clusters of rows are, as items of YAML lists.
#[derive(Debug, Default)]
pub struct Additions {
    /// Of `listeners`.
    pub listeners: String,
    /// Of `route_configs`.
    pub route_configs: String,
    /// Of `clusters`.
    pub clusters: String,
}

/// What `rows` add to a configuration that takes their destinations and has a bound listener.
pub fn additions(rows: &[LocalRow]) -> Additions {
    let mut added = Additions::default();
    for row in rows {
        added.listeners(row.from(), row.to());
    }
    added.destinations(rows.iter().map(LocalRow::to));
    added
}

/// The whole configuration.
pub fn configuration(intercepted: &Intercepted) -> String {
    let mut text = intercept(intercepted);
    text.push_str(
        "admin: {prometheus: null, readiness: null}\naccess_log:\n  - {path: /dev/stdout, format: brief}\nlisteners:\n",
    );
    let mut added = Additions::default();
    // Without rows everything is taken, to be seen: then all of it is looked into.
    bound(&mut added.listeners, "virtualOutbound", PORTS[0], is_watching(intercepted));
    for row in &intercepted.local {
        added.listeners(row.from(), row.to());
    }
    if !intercepted.inbound.is_empty() {
        added.inbound(&intercepted.inbound);
    }
    let to = intercepted.local.iter().map(LocalRow::to);
    added.destinations(to.chain(intercepted.inbound.iter().map(InboundRow::to)));
    if is_watching(intercepted) {
        table(&mut added.route_configs, "passthrough");
    }
    let passthrough = "  - {name: passthrough, type: original_dst, protocol: downstream}\n";
    let Additions { listeners, route_configs, clusters } = added;
    let _ = write!(text, "{listeners}route_configs:\n{route_configs}clusters:\n{passthrough}{clusters}");
    text
}

fn is_watching(intercepted: &Intercepted) -> bool {
    intercepted.local.is_empty() && intercepted.inbound.is_empty()
}

fn intercept(intercepted: &Intercepted) -> String {
    let mut text = String::from("intercept:\n");
    let rows = intercepted.whose.rows();
    if !rows.is_empty() {
        text.push_str("  processes:                       # any row, and of a row everything\n");
    }
    for row in rows {
        let fields: Vec<_> = row.iter().map(|(field, value)| format!("{field}: {value}")).collect();
        let _ = writeln!(text, "    - {{{}}}", fields.join(", "));
    }
    if !intercepted.local.is_empty() {
        text.push_str("  outbound:\n    include:\n");
        for row in &intercepted.local {
            let _ = match row.from() {
                Taken::Port(port) => writeln!(text, "      - {{ports: [{port}]}}"),
                Taken::Address(to) => writeln!(text, "      - {{cidr: \"{}\", ports: [{}]}}", network(to), to.port()),
            };
        }
    } else if !intercepted.inbound.is_empty() {
        text.push_str("  outbound: {exclude: [{cidr: 0.0.0.0/0}, {cidr: \"::/0\"}]}\n");
    } else {
        text.push_str("  outbound: {}                     # everything\n");
    }
    if !intercepted.inbound.is_empty() {
        text.push_str("  inbound:\n    from_node: intercept           # clients on this machine too\n    include:\n");
        for row in &intercepted.inbound {
            let _ = writeln!(text, "      - {{ports: [{}]}}", row.port());
        }
    }
    text
}

fn network(address: SocketAddr) -> String {
    format!("{}/{}", address.ip(), if address.is_ipv4() { 32 } else { 128 })
}

/// The listener to which the kernel hands what it takes.
fn bound(text: &mut String, name: &str, port: u16, watching: bool) {
    let _ = write!(text, "  - name: {name}\n    address: 127.0.0.1:{port}         # and on [::1]\n");
    text.push_str("    use_original_dst: true\n");
    chains(text, "passthrough", watching);
}

/// HTTP is served as HTTP, so that each request has its line; all else as bytes.
fn chains(text: &mut String, destination: &str, inspected: bool) {
    if inspected {
        let _ = write!(
            text,
            "    listener_filters: [tls_inspector, http_inspector]
    filter_chains:
      - match: {{application_protocols: [http/1.0, http/1.1, h2c]}}
        http:
          route_config: \"{destination}\"
          accept_http_10: true
          generate_request_id: false
          server_header_transformation: pass_through
"
        );
    }
    let _ = writeln!(text, "    default_filter_chain: {{tcp_proxy: {{cluster: \"{destination}\"}}}}");
}

fn table(text: &mut String, destination: &str) {
    let _ = write!(
        text,
        "  - name: \"{destination}\"
    virtual_hosts:
      - name: all
        domains: [\"*\"]
        routes:
          - {{match: {{prefix: /}}, route: {{cluster: \"{destination}\", timeout: 0s}}}}
"
    );
}

impl Additions {
    /// A wildcard address stands for those of its own family only.
    fn listeners(&mut self, from: Taken, to: SocketAddr) {
        match from {
            Taken::Port(port) => {
                self.listener(SocketAddr::from(([0, 0, 0, 0], port)), to);
                self.listener(SocketAddr::from(([0_u16; 8], port)), to);
            }
            Taken::Address(address) => self.listener(address, to),
        }
    }

    fn listener(&mut self, address: SocketAddr, to: SocketAddr) {
        let ip = if address.is_ipv4() { address.ip().to_string() } else { format!("[{}]", address.ip()) };
        let name = format!("{ip}_{}", address.port());
        let _ = write!(
            self.listeners,
            "  - name: \"{name}\"\n    address: \"{address}\"\n    bind_to_port: false              # found by original destination\n"
        );
        chains(&mut self.listeners, &to.to_string(), true);
    }

    /// One listener for all that arrives, with two chains for each port: requests, and anything else.
    fn inbound(&mut self, rows: &[InboundRow]) {
        let _ = write!(
            self.listeners,
            "  - name: virtualInbound
    address: 127.0.0.1:{}         # and on [::1]
    traffic_direction: inbound
    listener_filters: [tls_inspector, http_inspector]
    filter_chains:
",
            PORTS[1]
        );
        for row in rows {
            let (port, to) = (row.port(), row.to());
            let _ = write!(
                self.listeners,
                "      - match: {{destination_port: {port}, application_protocols: [http/1.0, http/1.1, h2c]}}
        http:
          route_config: \"{to}\"
          accept_http_10: true
          generate_request_id: false
          server_header_transformation: pass_through
      - match: {{destination_port: {port}}}
        tcp_proxy: {{cluster: \"{to}\"}}
"
            );
        }
        self.listeners.push_str("    default_filter_chain: {tcp_proxy: {cluster: passthrough}}\n");
    }

    fn destinations(&mut self, to: impl Iterator<Item = SocketAddr>) {
        for address in to.collect::<BTreeSet<_>>() {
            table(&mut self.route_configs, &address.to_string());
            let _ = writeln!(
                self.clusters,
                "  - {{name: \"{address}\", type: static, protocol: downstream, endpoints: [\"{address}\"]}}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::local::Whose;
    use crate::config::{self, Source};
    use crate::snapshot::{Runtime, Snapshot};

    fn loaded(intercepted: &Intercepted) -> Snapshot {
        let text = configuration(intercepted);
        let source = Source::Inline { name: "--local".to_owned(), text: text.clone() };
        let loaded = config::load(&source, &Runtime::default(), 1).map_err(|errors| format!("{errors}\n{text}"));
        loaded.expect("a good configuration").snapshot
    }

    #[test]
    fn local_rows_take_their_destinations_and_nothing_else() {
        let local = ["8080 => 127.0.0.1:9001", "10.0.0.1:80 => [::1]:9002", "[2001:db8::1]:443 => 127.0.0.1:9001"];
        let local = local.map(|row| row.parse().expect(row)).into();
        let snapshot = loaded(&Intercepted { local, ..Intercepted::default() });
        let intercept = snapshot.intercept.expect("a listener takes what is redirected");
        let rules: Vec<_> =
            intercept.outbound.include.iter().map(|rule| (rule.cidr.map(|net| net.to_string()), &rule.ports)).collect();
        let any = |port| vec![port..=port];
        assert_eq!(
            rules,
            [
                (None, &any(8080)),
                (Some("10.0.0.1/32".to_owned()), &any(80)),
                (Some("2001:db8::1/128".to_owned()), &any(443))
            ]
        );
        assert_eq!(snapshot.listeners.iter().count(), 5);
        assert_eq!(snapshot.clusters.len(), 3);
        assert!(intercept.processes.is_empty());
    }

    #[test]
    fn a_choice_of_processes_alone_takes_everything_they_do() {
        let whose = Whose { comm: vec!["curl".into()], user: vec!["root".into()], ..Whose::default() };
        let snapshot = loaded(&Intercepted { whose, ..Intercepted::default() });
        let intercept = snapshot.intercept.expect("everything");
        assert!(intercept.outbound.include.is_empty());
        assert_eq!(intercept.processes.len(), 1);
        assert_eq!(intercept.processes[0].comm.as_deref(), Some("curl"));
        assert_eq!(intercept.processes[0].uid, Some(0));
    }

    #[test]
    fn inbound_rows_take_what_arrives_and_nothing_that_leaves() {
        let inbound = vec!["8080 => 127.0.0.1:9001".parse().expect("a row")];
        let snapshot = loaded(&Intercepted { inbound, ..Intercepted::default() });
        let intercept = snapshot.intercept.expect("inbound");
        assert_eq!(intercept.outbound.exclude.len(), 2);
        assert_eq!(intercept.inbound.expect("inbound").policy.include.len(), 1);
        assert_eq!(snapshot.listeners.iter().count(), 2);
    }
}
