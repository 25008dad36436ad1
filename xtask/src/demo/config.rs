//! The demo's configuration files: the same three rows in three orders, and a listener of bytes.

use super::{Origins, stage::Stage};

/// A route of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Wildcard,
    Prefix,
    Header,
}

impl Row {
    pub fn shown(self) -> String {
        format!("{:<38} -> {}", self.condition(), self.cluster())
    }

    pub fn cluster(self) -> &'static str {
        match self {
            Row::Wildcard => "default-svc",
            Row::Prefix => "checkout-v1",
            Row::Header => "checkout-v2",
        }
    }

    fn condition(self) -> &'static str {
        match self {
            Row::Wildcard => "prefix /",
            Row::Prefix => "prefix /checkout",
            Row::Header => "prefix / and header x-canary is \"true\"",
        }
    }

    fn yaml(self) -> String {
        let matcher = match self {
            Row::Wildcard => "{prefix: /}",
            Row::Prefix => "{prefix: /checkout}",
            Row::Header => "{prefix: /, headers: [{name: x-canary, exact: \"true\"}]}",
        };
        format!("{{match: {matcher}, route: {{cluster: {}}}}}", self.cluster())
    }
}

/// Which row is on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    Wildcard,
    Prefix,
    Header,
}

impl Ordering {
    pub const ALL: &[Ordering] = &[Ordering::Wildcard, Ordering::Prefix, Ordering::Header];

    pub fn rows(self) -> [Row; 3] {
        match self {
            Ordering::Wildcard => [Row::Wildcard, Row::Prefix, Row::Header],
            Ordering::Prefix => [Row::Prefix, Row::Header, Row::Wildcard],
            Ordering::Header => [Row::Header, Row::Prefix, Row::Wildcard],
        }
    }

    /// Every row matches the demo's request, so the first one takes it.
    pub fn lands_on(self) -> &'static str {
        let [first, ..] = self.rows();
        first.cluster()
    }

    pub fn file_name(self) -> &'static str {
        match self {
            Ordering::Wildcard => "wildcard-on-top.yaml",
            Ordering::Prefix => "prefix-on-top.yaml",
            Ordering::Header => "header-on-top.yaml",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Ordering::Wildcard => "Ordering 1: the wildcard on top",
            Ordering::Prefix => "Ordering 2: the prefix on top",
            Ordering::Header => "Ordering 3: the header on top",
        }
    }

    pub fn why(self) -> &'static str {
        match self {
            Ordering::Wildcard => {
                "\"/\" matches everything, so the rows below it are never reached.\n\
                 `waylay check` warns about such rows."
            }
            Ordering::Prefix => "the path decides before anyone looks at the header.",
            Ordering::Header => "the header decides first; requests without it fall through to the rows below.",
        }
    }
}

/// A listener for port 8080 with HTTP routes.
pub fn http(stage: &Stage, origins: &Origins, ordering: Ordering) -> String {
    let rows: String = ordering.rows().iter().map(|row| format!("          - {}\n", row.yaml())).collect();
    let chain = "    listener_filters: [http_inspector]
    filter_chains:
      - match: {application_protocols: [http/1.1, h2c]}
        http: {route_config: \"8080\"}
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
route_configs:
  - name: \"8080\"
    virtual_hosts:
      - name: shop
        domains: [\"*\"]
        routes:
";
    whole(stage, origins, &format!("{chain}{rows}"))
}

/// A listener for port 8080 that passes bytes on to one cluster.
pub fn tcp(stage: &Stage, origins: &Origins) -> String {
    whole(stage, origins, "    default_filter_chain: {tcp_proxy: {cluster: default-svc}}\n")
}

fn whole(stage: &Stage, origins: &Origins, shop: &str) -> String {
    let clusters: String = origins
        .all()
        .iter()
        .map(|origin| {
            let (name, address) = (origin.name(), origin.address());
            format!("  - {{name: {name}, type: static, endpoints: [{address}]}}\n")
        })
        .collect();
    format!(
        "# Written by `cargo xtask demo`.
admin: {{socket: {socket}, prometheus: null, readiness: null}}
access_log: [{{path: {access_log}}}]
intercept: {{cgroup: {cgroup}}}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:{port}
    use_original_dst: true
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - name: 0.0.0.0_8080
    address: 0.0.0.0:8080
    bind_to_port: false
{shop}clusters:
  - {{name: passthrough, type: original_dst}}
{clusters}",
        socket = stage.socket().display(),
        access_log = stage.access_log().display(),
        cgroup = stage.cgroup_name(),
        port = stage.port(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ordering_lands_on_a_service_of_its_own() {
        let landed: Vec<_> = Ordering::ALL.iter().map(|ordering| ordering.lands_on()).collect();
        assert_eq!(landed, ["default-svc", "checkout-v1", "checkout-v2"]);
    }
}
