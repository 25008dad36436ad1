//! `proxy-config endpoint`.

use serde_json::{Value, json};

use super::dump::{list, number, section, text};
use super::{Columns, Common, Table};

/// What to show of the endpoints.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this address
    #[arg(long)]
    address: Option<String>,

    /// Only this port
    #[arg(long)]
    port: Option<u64>,

    /// Only this cluster, by its whole name
    #[arg(long)]
    cluster: Option<String>,

    /// Only this status: healthy, unhealthy, draining, timeout, degraded
    #[arg(long)]
    status: Option<String>,

    #[command(flatten)]
    common: Common,
}

/// One line, in the order in which lines are sorted.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    address: String,
    port: u64,
    cluster: String,
    status: String,
    outlier_check: &'static str,
    weight: String,
    active_requests: String,
    requests: String,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<()> {
        let statuses = statuses(self.common.dump("/clusters?format=json")?)?;
        let mut endpoints = Vec::new();
        let mut clusters = Vec::new();
        for cluster in list(&statuses, "/cluster_statuses") {
            let before = endpoints.len();
            let name = text(cluster, "/name");
            let hosts = list(cluster, "/host_statuses").iter().map(|host| endpoint(host, name));
            endpoints.extend(hosts.filter(|endpoint| self.admits(endpoint)));
            if endpoints.len() > before {
                clusters.push(cluster.clone());
            }
        }
        endpoints.sort();
        self.common.print(&clusters, |columns| table(endpoints, columns))
    }

    fn admits(&self, endpoint: &Endpoint) -> bool {
        let same = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        same(&self.address, &endpoint.address)
            && same(&self.cluster, &endpoint.cluster)
            && same(&self.status, &endpoint.status)
            && self.port.is_none_or(|port| port == endpoint.port)
    }
}

/// The answer of `/clusters?format=json`, or the same out of a configuration dump that has its endpoints.
fn statuses(dump: Value) -> anyhow::Result<Value> {
    if dump.get("cluster_statuses").is_some() {
        return Ok(dump);
    }
    let section = section(&dump, "EndpointsConfigDump")?;
    let lists = ["/dynamic_endpoint_configs", "/static_endpoint_configs"];
    let clusters: Vec<_> = lists
        .iter()
        .flat_map(|pointer| list(section, pointer))
        .map(|entry| {
            let assignment = &entry["endpoint_config"];
            let members = list(assignment, "/endpoints").iter().flat_map(|group| list(group, "/lb_endpoints"));
            let hosts: Vec<_> = members
                .map(|member| {
                    json!({
                        "address": member["endpoint"]["address"],
                        "health_status": {"eds_health_status": member["health_status"]},
                        "weight": member["load_balancing_weight"],
                    })
                })
                .collect();
            json!({"name": assignment["cluster_name"], "host_statuses": hosts})
        })
        .collect();
    Ok(json!({"cluster_statuses": clusters}))
}

fn endpoint(host: &Value, cluster: &str) -> Endpoint {
    let path = text(host, "/address/pipe/path");
    let (address, port) = if path.is_empty() {
        let port = number(host, "/address/socket_address/port_value");
        (text(host, "/address/socket_address/address").to_owned(), port.unwrap_or_default())
    } else {
        (format!("unix://{path}"), 0)
    };
    let stat = |name: &str| {
        let stat = list(host, "/stats").iter().find(|stat| text(stat, "/name") == name);
        stat.map_or_else(|| "-".to_owned(), |stat| number(stat, "/value").unwrap_or_default().to_string())
    };
    let failed = host.pointer("/health_status/failed_outlier_check").and_then(Value::as_bool);
    Endpoint {
        address,
        port,
        cluster: cluster.to_owned(),
        status: match text(host, "/health_status/eds_health_status") {
            "" => "UNKNOWN",
            status => status,
        }
        .to_owned(),
        outlier_check: if failed == Some(true) { "FAILED" } else { "OK" },
        weight: number(host, "/weight").unwrap_or(1).to_string(),
        active_requests: stat("rq_active"),
        requests: stat("rq_total"),
    }
}

fn table(endpoints: Vec<Endpoint>, columns: Columns) -> Table {
    let mut table = match columns {
        Columns::Istioctl => Table::new(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"], 5),
        Columns::All => {
            Table::new(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER", "WEIGHT", "ACTIVE REQUESTS", "REQUESTS"], 5)
        }
    };
    for one in endpoints {
        let place = match (one.address.starts_with("unix://"), one.address.contains(':')) {
            (true, _) => one.address,
            (false, true) => format!("[{}]:{}", one.address, one.port),
            (false, false) => format!("{}:{}", one.address, one.port),
        };
        let outlier = one.outlier_check.to_owned();
        match columns {
            Columns::Istioctl => table.row([place, one.status, outlier, one.cluster]),
            Columns::All => {
                table.row([place, one.status, outlier, one.cluster, one.weight, one.active_requests, one.requests]);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, port: u16, health: Value) -> Value {
        json!({"address": {"socket_address": {"address": address, "port_value": port}}, "health_status": health,
               "stats": [{"name": "rq_total", "type": "COUNTER", "value": "7"}]})
    }

    #[test]
    fn the_table_is_istioctls() {
        let mut endpoints = vec![
            endpoint(&host("127.0.0.1", 9002, json!({"eds_health_status": "UNHEALTHY"})), "checkout-v1"),
            endpoint(&host("127.0.0.1", 9001, json!({"eds_health_status": "HEALTHY"})), "checkout-v1"),
            endpoint(
                &host("10.0.0.1", 80, json!({"eds_health_status": "HEALTHY", "failed_outlier_check": true})),
                "outbound|80||a",
            ),
            endpoint(&json!({"address": {"pipe": {"path": "/run/x.sock"}}}), "uds"),
        ];
        endpoints.sort();
        let expected = [
            "ENDPOINT               STATUS        OUTLIER CHECK     CLUSTER",
            "10.0.0.1:80            HEALTHY       FAILED            outbound|80||a",
            "127.0.0.1:9001         HEALTHY       OK                checkout-v1",
            "127.0.0.1:9002         UNHEALTHY     OK                checkout-v1",
            "unix:///run/x.sock     UNKNOWN       OK                uds",
        ];
        assert_eq!(table(endpoints, Columns::Istioctl).text().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_configuration_dump_with_endpoints_serves_as_well() {
        let member = json!({"endpoint": {"address": {"socket_address": {"address": "::1", "port_value": 80}}},
                            "health_status": "HEALTHY", "load_balancing_weight": 3});
        let dump = json!({"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
            "static_endpoint_configs": [{"endpoint_config": {"cluster_name": "c",
                "endpoints": [{"lb_endpoints": [member]}]}}]}]});
        let statuses = statuses(dump).expect("endpoints");
        let only = endpoint(&statuses["cluster_statuses"][0]["host_statuses"][0], "c");
        let text = table(vec![only], Columns::All).text();
        assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("[::1]:80     HEALTHY     OK")), "{text}");
    }
}
