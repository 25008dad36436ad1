//! `proxy-config cluster`.

use clap::ValueEnum;
use serde_json::Value;

use super::dump::{istio_resource, list, section, text};
use super::{Columns, Common, Table};

/// What to show of the clusters.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only clusters whose name contains this
    #[arg(long)]
    fqdn: Option<String>,

    /// Only services on this port
    #[arg(long)]
    port: Option<u16>,

    /// Only this subset
    #[arg(long)]
    subset: Option<String>,

    /// Only this direction
    #[arg(long, value_enum)]
    direction: Option<Direction>,

    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    Inbound,
    Outbound,
}

/// The parts of a service cluster's name, `direction|port|subset|fqdn`, in the order in which clusters are sorted.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ServiceKey<'a> {
    fqdn: &'a str,
    subset: &'a str,
    port: u64,
    direction: &'a str,
}

impl<'a> ServiceKey<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let mut parts = name.splitn(4, '|');
        let (direction, port, subset, fqdn) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Self { fqdn, subset, port: port.parse().unwrap_or_default(), direction })
    }

    fn sort_key(name: &'a str) -> Self {
        Self::of(name).unwrap_or(Self { fqdn: name, subset: "", port: 0, direction: "" })
    }
}

impl Args {
    pub fn run(&self) -> anyhow::Result<()> {
        let dump = self.common.dump("/config_dump?include_eds")?;
        let mut clusters = clusters(&dump)?;
        clusters.retain(|cluster| self.admits(text(cluster, "/name")));
        clusters.sort_by(|one, other| {
            ServiceKey::sort_key(text(one, "/name")).cmp(&ServiceKey::sort_key(text(other, "/name")))
        });
        self.common.print(&clusters, |columns| table(&clusters, columns))
    }

    fn admits(&self, name: &str) -> bool {
        let direction = self.direction.map(|direction| match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        });
        let port = self.port.map(|port| format!("|{port}|"));
        [self.fqdn.as_deref(), self.subset.as_deref(), direction, port.as_deref()]
            .into_iter()
            .flatten()
            .all(|wanted| name.contains(wanted))
    }
}

fn clusters(dump: &Value) -> anyhow::Result<Vec<Value>> {
    let section = section(dump, "ClustersConfigDump")?;
    let lists = ["/dynamic_active_clusters", "/static_clusters"];
    let entries = lists.iter().flat_map(|pointer| list(section, pointer));
    Ok(entries.filter_map(|entry| entry.get("cluster")).cloned().collect())
}

fn table(clusters: &[Value], columns: Columns) -> Table {
    let mut table = match columns {
        Columns::Istioctl => {
            Table::new(&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"], 5)
        }
        Columns::All => Table::new(
            &["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE", "LB POLICY", "HEALTH CHECKS"],
            5,
        ),
    };
    for cluster in clusters {
        let name = text(cluster, "/name");
        let kind = match text(cluster, "/type") {
            // Protobuf leaves out what is at its default.
            "" => "STATIC",
            kind => kind,
        };
        let dash = || "-".to_owned();
        let [fqdn, port, subset, direction] = match ServiceKey::of(name) {
            Some(key) => {
                let subset = if key.subset.is_empty() { "-" } else { key.subset };
                [key.fqdn.to_owned(), key.port.to_string(), subset.to_owned(), key.direction.to_owned()]
            }
            None => [name.to_owned(), dash(), dash(), dash()],
        };
        let rule = istio_resource(cluster);
        match columns {
            Columns::Istioctl => table.row([fqdn, port, subset, direction, kind.to_owned(), rule]),
            Columns::All => {
                let policy = match text(cluster, "/lb_policy") {
                    "" => "ROUND_ROBIN",
                    policy => policy,
                };
                let checks = list(cluster, "/health_checks").len().to_string();
                table.row([fqdn, port, subset, direction, kind.to_owned(), rule, policy.to_owned(), checks]);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_istioctls() {
        let mut clusters: Vec<_> = [
            ("outbound|8000||httpbin.default.svc.cluster.local", "EDS"),
            ("passthrough", "ORIGINAL_DST"),
            ("outbound|80|v1|httpbin.default.svc.cluster.local", "EDS"),
            ("inbound|8000||", ""),
        ]
        .map(|(name, kind)| json!({"name": name, "type": kind}))
        .into();
        clusters.sort_by(|one, other| {
            ServiceKey::sort_key(text(one, "/name")).cmp(&ServiceKey::sort_key(text(other, "/name")))
        });
        let text = table(&clusters, Columns::Istioctl).text();
        let expected = [
            "SERVICE FQDN                          PORT     SUBSET     DIRECTION     TYPE             DESTINATION RULE",
            "                                      8000     -          inbound       STATIC           ",
            "httpbin.default.svc.cluster.local     8000     -          outbound      EDS              ",
            "httpbin.default.svc.cluster.local     80       v1         outbound      EDS              ",
            "passthrough                           -        -          -             ORIGINAL_DST     ",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn filters_look_into_the_name() {
        let args = |fqdn: Option<&str>, port, direction| Args {
            fqdn: fqdn.map(str::to_owned),
            port,
            subset: None,
            direction,
            common: Common {
                output: super::super::Format::Table,
                file: None,
                socket: crate::cli::client::Socket { path: "/nowhere".into() },
            },
        };
        let name = "outbound|8000||httpbin.default.svc.cluster.local";
        assert!(args(Some("httpbin"), Some(8000), Some(Direction::Outbound)).admits(name));
        assert!(!args(None, Some(80), None).admits(name));
        assert!(!args(None, None, Some(Direction::Inbound)).admits(name));
    }
}
