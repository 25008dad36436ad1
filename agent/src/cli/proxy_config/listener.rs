//! `proxy-config listener`.

use clap::ArgAction;
use serde_json::Value;

use super::dump::{list, number, section, text, texts};
use super::{Columns, Common, Table};

/// What to show of the listeners.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this address
    #[arg(long)]
    address: Option<String>,

    /// Only this port
    #[arg(long)]
    port: Option<u64>,

    /// Only this type: HTTP, TCP or HTTP+TCP
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// One line for each filter chain; with =false one for each listener
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          require_equals = true)]
    verbose: bool,

    #[command(flatten)]
    common: Common,
}

const HTTP: &str = "envoy.filters.network.http_connection_manager";
const TCP: &str = "envoy.filters.network.tcp_proxy";
const BLACK_HOLE: &str = "BlackHoleCluster";

/// Lists of application protocols that have a name.
const NAMED_PROTOCOLS: [(&str, &[&str]); 4] = [
    ("App: HTTP TLS", &["http/1.0", "http/1.1", "h2c", "istio-http/1.0", "istio-http/1.1", "istio-h2"]),
    ("App: Istio HTTP Plain", &["istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"]),
    ("App: TCP TLS", &["istio-peer-exchange", "istio"]),
    ("App: HTTP", &["http/1.0", "http/1.1", "h2c"]),
];

impl Args {
    pub fn run(&self) -> anyhow::Result<()> {
        let dump = self.common.dump("/config_dump")?;
        let mut listeners = listeners(&dump)?;
        listeners.retain(|listener| self.admits(listener));
        listeners.sort_by_cached_key(|listener| (port(listener), address(listener), kind(listener)));
        self.common.print(&listeners, |columns| self.table(&listeners, columns))
    }

    fn admits(&self, listener: &Value) -> bool {
        let same = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        same(&self.address, &address(listener))
            && same(&self.kind, kind(listener))
            && self.port.is_none_or(|wanted| port(listener) == wanted)
    }

    fn table(&self, listeners: &[Value], columns: Columns) -> Table {
        let mut table = Table::new(self.heading(columns), 1);
        for listener in listeners {
            let place = || (address(listener), port(listener).to_string());
            let (name, kind) = (text(listener, "/name"), kind(listener));
            if !self.verbose {
                let (address, port) = place();
                match columns {
                    Columns::Istioctl => table.row([address, port, kind.into()]),
                    Columns::All => {
                        let (bound, direction) = (bound(listener), direction(listener));
                        table.row([address, port, kind.into(), name.into(), bound, direction, dispatch(listener)]);
                    }
                }
                continue;
            }
            let mut chains: Vec<_> =
                chains(listener).map(|(label, chain)| (matching(chain), destination(chain), label)).collect();
            chains.sort_by(|one, other| other.1.cmp(&one.1));
            for (matching, destination, label) in chains {
                let (address, port) = place();
                match columns {
                    Columns::Istioctl => table.row([address, port, matching, destination]),
                    Columns::All => {
                        let (bound, direction) = (bound(listener), direction(listener));
                        let dispatch = dispatch(listener);
                        table.row([
                            address,
                            port,
                            matching,
                            destination,
                            label,
                            name.into(),
                            bound,
                            direction,
                            dispatch,
                        ]);
                    }
                }
            }
        }
        table
    }

    fn heading(&self, columns: Columns) -> &'static [&'static str] {
        match (self.verbose, columns) {
            (true, Columns::Istioctl) => &["ADDRESSES", "PORT", "MATCH", "DESTINATION"],
            (true, Columns::All) => {
                &["ADDRESSES", "PORT", "MATCH", "DESTINATION", "CHAIN", "LISTENER", "BOUND", "DIRECTION", "DISPATCH"]
            }
            (false, Columns::Istioctl) => &["ADDRESSES", "PORT", "TYPE"],
            (false, Columns::All) => &["ADDRESSES", "PORT", "TYPE", "LISTENER", "BOUND", "DIRECTION", "DISPATCH"],
        }
    }
}

fn listeners(dump: &Value) -> anyhow::Result<Vec<Value>> {
    let section = section(dump, "ListenersConfigDump")?;
    let dynamic = list(section, "/dynamic_listeners").iter().filter_map(|one| one.pointer("/active_state/listener"));
    let fixed = list(section, "/static_listeners").iter().filter_map(|one| one.get("listener"));
    Ok(dynamic.chain(fixed).cloned().collect())
}

fn address(listener: &Value) -> String {
    let more = list(listener, "/additional_addresses").iter().map(|one| text(one, "/address/socket_address/address"));
    let all: Vec<_> = std::iter::once(text(listener, "/address/socket_address/address")).chain(more).collect();
    all.join(",")
}

fn port(listener: &Value) -> u64 {
    number(listener, "/address/socket_address/port_value").unwrap_or_default()
}

fn bound(listener: &Value) -> String {
    let bound = listener.get("bind_to_port").and_then(Value::as_bool).unwrap_or(true);
    if bound { "yes" } else { "no" }.to_owned()
}

/// Envoy's word; it dumps none for a listener that was not told.
fn direction(listener: &Value) -> String {
    match text(listener, "/traffic_direction") {
        "" => "-".to_owned(),
        direction => direction.to_ascii_lowercase(),
    }
}

/// Who sends its connections on: the agent, unless the dump says otherwise.
fn dispatch(listener: &Value) -> String {
    match text(listener, "/metadata/filter_metadata/waylay/dispatch") {
        "" => "agent".to_owned(),
        dispatch => dispatch.to_owned(),
    }
}

/// The chains with their labels, the default one last.
fn chains(listener: &Value) -> impl Iterator<Item = (String, &Value)> {
    let all = list(listener, "/filter_chains").iter().enumerate().map(|(index, chain)| {
        let name = text(chain, "/name");
        (if name.is_empty() { index.to_string() } else { name.to_owned() }, chain)
    });
    all.chain(listener.get("default_filter_chain").map(|chain| ("default".to_owned(), chain)))
}

fn kind(listener: &Value) -> &'static str {
    let (mut http, mut tcp) = (false, false);
    for filter in chains(listener).flat_map(|(_, chain)| list(chain, "/filters")) {
        match text(filter, "/name") {
            HTTP => http = true,
            TCP => tcp |= !is_black_hole(filter),
            _ => {}
        }
    }
    match (http, tcp) {
        (true, true) => "HTTP+TCP",
        (true, false) => "HTTP",
        (false, true) => "TCP",
        (false, false) => "UNKNOWN",
    }
}

fn is_black_hole(filter: &Value) -> bool {
    text(filter, "/typed_config/cluster").contains(BLACK_HOLE)
}

/// The MATCH column.
fn matching(chain: &Value) -> String {
    let matching = &chain["filter_chain_match"];
    let mut parts = Vec::new();
    let names = texts(matching, "/server_names");
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    let transport = text(matching, "/transport_protocol");
    if !transport.is_empty() {
        parts.push(format!("Trans: {transport}"));
    }
    let protocols = texts(matching, "/application_protocols");
    if !protocols.is_empty() {
        let named = NAMED_PROTOCOLS.iter().find(|(_, list)| *list == protocols).map(|(name, _)| (*name).to_owned());
        parts.push(named.unwrap_or_else(|| format!("App: {}", protocols.join(","))));
    }
    let port = number(matching, "/destination_port").map(|port| format!(":{port}")).unwrap_or_default();
    let ranges: Vec<_> = list(matching, "/prefix_ranges")
        .iter()
        .map(|range| format!("{}/{}", text(range, "/address_prefix"), number(range, "/prefix_len").unwrap_or(0)))
        .collect();
    match (ranges.is_empty(), port.is_empty()) {
        (false, _) => parts.push(format!("Addr: {}{port}", ranges.join(","))),
        (true, false) => parts.push(format!("Addr: *{port}")),
        (true, true) => {}
    }
    if parts.is_empty() { "ALL".to_owned() } else { parts.join("; ") }
}

/// The DESTINATION column.
fn destination(chain: &Value) -> String {
    for filter in list(chain, "/filters") {
        let config = &filter["typed_config"];
        match text(filter, "/name") {
            HTTP => {
                let name = text(config, "/rds/route_config_name");
                return match config.get("route_config") {
                    Some(inline) => inline_routes(inline),
                    None if !name.is_empty() => format!("Route: {name}"),
                    None => "HTTP".to_owned(),
                };
            }
            TCP if !is_black_hole(filter) => return cluster(config),
            _ => {}
        }
    }
    "Non-HTTP/Non-TCP".to_owned()
}

/// `istioctl` shows the mesh's own clusters (`PassthroughCluster`) bare.
fn cluster(action: &Value) -> String {
    let weighted = list(action, "/weighted_clusters/clusters").iter().map(|one| text(one, "/name"));
    let name = match text(action, "/cluster") {
        "" => weighted.collect::<Vec<_>>().join(","),
        name => name.to_owned(),
    };
    if name.contains("Cluster") { name } else { format!("Cluster: {name}") }
}

fn inline_routes(config: &Value) -> String {
    let hosts = list(config, "/virtual_hosts");
    if let [host] = hosts
        && texts(host, "/domains") == ["*"]
        && let [row] = list(host, "/routes")
        && text(row, "/match/prefix") == "/"
        && !text(row, "/route/cluster").is_empty()
    {
        return cluster(&row["route"]);
    }
    let hosts: Vec<_> = hosts
        .iter()
        .map(|host| {
            let rows = list(host, "/routes").iter().map(|row| super::route::path(&row["match"]));
            let rows = rows.collect::<Vec<_>>().join(", ");
            match texts(host, "/domains").as_slice() {
                ["*"] => rows,
                domains => format!("{} {rows}", domains.join("/")),
            }
        })
        .collect();
    format!("Inline Route: {}", hosts.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn socket(address: &str, port: u16) -> Value {
        json!({"socket_address": {"address": address, "port_value": port}})
    }

    fn tcp(cluster: &str) -> Value {
        json!([{"name": TCP, "typed_config": {"cluster": cluster}}])
    }

    fn rds(name: &str) -> Value {
        json!([{"name": HTTP, "typed_config": {"rds": {"route_config_name": name}}}])
    }

    /// The mesh of the sample in istioctl's documentation.
    fn dump() -> Value {
        let sniffed = json!({"transport_protocol": "raw_buffer",
                             "application_protocols": ["http/1.0", "http/1.1", "h2c"]});
        let listeners = [
            json!({"name": "virtualOutbound", "address": socket("0.0.0.0", 15001), "use_original_dst": true,
                "filter_chains": [
                    {"filter_chain_match": {"destination_port": 15001}, "filters": tcp("BlackHoleCluster")},
                    {"filters": tcp("PassthroughCluster")}]}),
            json!({"name": "0.0.0.0_8000", "address": socket("0.0.0.0", 8000), "bind_to_port": false,
                "filter_chains": [{"filter_chain_match": sniffed, "filters": rds("8000")}],
                "default_filter_chain": {"filters": tcp("PassthroughCluster")}}),
            json!({"name": "10.96.0.10_53", "address": socket("10.96.0.10", 53), "bind_to_port": false,
                "filter_chains": [{"filters": tcp("outbound|53||kube-dns.kube-system.svc.cluster.local")}]}),
        ];
        let entries: Vec<_> = listeners.iter().map(|listener| json!({"listener": listener})).collect();
        json!({"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
                            "static_listeners": entries}]})
    }

    fn printed(flags: &[&str]) -> String {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let line = std::iter::once("listener").chain(flags.iter().copied());
        let args = <Line as clap::Parser>::try_parse_from(line).expect("flags").args;
        let mut listeners = listeners(&dump()).expect("listeners");
        listeners.retain(|listener| args.admits(listener));
        listeners.sort_by_cached_key(|listener| (port(listener), address(listener), kind(listener)));
        let columns = if args.common.output == super::super::Format::Wide { Columns::All } else { Columns::Istioctl };
        args.table(&listeners, columns).text()
    }

    #[test]
    fn the_table_is_istioctls_byte_for_byte() {
        assert_eq!(
            printed(&[]),
            "\
ADDRESSES  PORT  MATCH                        DESTINATION
10.96.0.10 53    ALL                          Cluster: outbound|53||kube-dns.kube-system.svc.cluster.local
0.0.0.0    8000  Trans: raw_buffer; App: HTTP Route: 8000
0.0.0.0    8000  ALL                          PassthroughCluster
0.0.0.0    15001 ALL                          PassthroughCluster
0.0.0.0    15001 Addr: *:15001                Non-HTTP/Non-TCP
"
        );
    }

    #[test]
    fn filters_and_the_short_form() {
        assert_eq!(
            printed(&["--verbose=false", "--type", "http+tcp"]),
            "ADDRESSES PORT TYPE\n0.0.0.0   8000 HTTP+TCP\n"
        );
        assert_eq!(printed(&["--port", "53", "--verbose=false"]).lines().count(), 2);
        assert_eq!(printed(&["--address", "1.2.3.4"]).lines().count(), 1);
        assert!(printed(&["-o", "wide", "--port", "8000"]).contains("PassthroughCluster default 0.0.0.0_8000 no"));
    }

    #[test]
    fn matches_and_inline_routes_read_as_istioctls() {
        let chain = json!({"filter_chain_match": {
            "server_names": ["a.example", "b.example"], "transport_protocol": "tls",
            "application_protocols": ["h2"], "destination_port": 443,
            "prefix_ranges": [{"address_prefix": "10.0.0.1", "prefix_len": 32}]}});
        assert_eq!(matching(&chain), "SNI: a.example,b.example; Trans: tls; App: h2; Addr: 10.0.0.1/32:443");
        let route = |row: Value| {
            let host = json!({"domains": ["*"], "routes": [row]});
            inline_routes(&json!({"virtual_hosts": [host]}))
        };
        assert_eq!(route(json!({"match": {"prefix": "/"}, "route": {"cluster": "x"}})), "Cluster: x");
        assert_eq!(
            route(json!({"match": {"prefix": "/healthz/ready"}, "route": {"cluster": "agent"}})),
            "Inline Route: /healthz/ready*"
        );
    }
}
