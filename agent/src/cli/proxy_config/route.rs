//! `proxy-config route`.

use std::collections::HashMap;

use clap::ArgAction;
use serde_json::Value;

use super::dump::{istio_resource, list, section, short_domains, text, texts};
use super::{Columns, Common, Format, Table};
use crate::cli::client::AdminClient;

/// What to show of the route tables.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this route configuration
    #[arg(long)]
    name: Option<String>,

    /// One line for each row; with =false one for each route configuration
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          require_equals = true)]
    verbose: bool,

    #[command(flatten)]
    common: Common,
}

/// Route configuration, virtual host, row.
type RowKey = (String, String, usize);

impl Args {
    pub fn run(&self) -> anyhow::Result<()> {
        let dump = self.common.dump("/config_dump")?;
        let mut configs = configs(&dump)?;
        configs.retain(|config| self.name.as_deref().is_none_or(|name| name == text(config, "/name")));
        configs.sort_by_cached_key(sort_key);
        let hits = match (self.common.output, &self.common.file) {
            (Format::Wide, None) => hits(&AdminClient::new(&self.common.socket)?.json("/routes?format=json")?),
            _ => HashMap::new(),
        };
        self.common.print(&configs, |columns| self.table(&configs, columns, &hits))
    }

    fn table(&self, configs: &[Value], columns: Columns, hits: &HashMap<RowKey, u64>) -> Table {
        if !self.verbose {
            let mut table = Table::new(&["NAME", "VIRTUAL HOSTS"], 5);
            for config in configs {
                table.row([text(config, "/name").into(), list(config, "/virtual_hosts").len().to_string()]);
            }
            return table;
        }
        let mut table = match columns {
            Columns::Istioctl => Table::new(&["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"], 5),
            Columns::All => Table::new(
                &["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE", "ROW", "CONDITIONS", "ACTION", "HITS"],
                5,
            ),
        };
        for config in configs {
            for host in list(config, "/virtual_hosts") {
                add_host(&mut table, text(config, "/name"), host, columns, hits);
            }
        }
        table
    }
}

fn add_host(table: &mut Table, config: &str, host: &Value, columns: Columns, hits: &HashMap<RowKey, u64>) {
    let name = text(host, "/name");
    let domains = short_domains(&texts(host, "/domains"));
    let rows = list(host, "/routes");
    if rows.is_empty() {
        let first = [config.to_owned(), name.to_owned(), domains.clone(), "/*".to_owned(), "404".to_owned()];
        add(table, first, [(); 4].map(|()| "-".to_owned()), columns);
    }
    for (index, row) in rows.iter().enumerate() {
        // As istioctl; with all columns every row is shown, because the order is the point.
        if columns == Columns::Istioctl && text(row, "/route/cluster") == "PassthroughCluster" {
            continue;
        }
        let first = [config.to_owned(), name.to_owned(), domains.clone(), path(&row["match"]), istio_resource(row)];
        let count = hits.get(&(config.to_owned(), name.to_owned(), index));
        let more =
            [index.to_string(), conditions(row), action(row), count.map_or_else(|| "-".to_owned(), u64::to_string)];
        add(table, first, more, columns);
    }
}

fn add(table: &mut Table, first: [String; 5], more: [String; 4], columns: Columns) {
    match columns {
        Columns::Istioctl => table.row(first),
        Columns::All => {
            let [config, host, domains, path, service] = first;
            let [row, conditions, action, hits] = more;
            table.row([config, host, domains, path, service, row, conditions, action, hits]);
        }
    }
}

fn configs(dump: &Value) -> anyhow::Result<Vec<Value>> {
    let section = section(dump, "RoutesConfigDump")?;
    let lists = ["/dynamic_route_configs", "/static_route_configs"];
    let entries = lists.iter().flat_map(|pointer| list(section, pointer));
    Ok(entries.filter_map(|entry| entry.get("route_config")).cloned().collect())
}

/// Numbers by value, then names.
fn sort_key(config: &Value) -> (u64, String) {
    let name = text(config, "/name");
    (name.parse().unwrap_or(u64::MAX), name.to_owned())
}

fn hits(routes: &Value) -> HashMap<RowKey, u64> {
    let mut hits = HashMap::new();
    for config in list(routes, "/route_configs") {
        for host in list(config, "/virtual_hosts") {
            for (index, row) in list(host, "/routes").iter().enumerate() {
                let key = (text(config, "/name").to_owned(), text(host, "/name").to_owned(), index);
                hits.insert(key, row["hits"].as_u64().unwrap_or_default());
            }
        }
    }
    hits
}

/// The MATCH column: the path condition.
pub fn path(matching: &Value) -> String {
    if let Some(prefix) = matching.get("prefix").and_then(Value::as_str) {
        return format!("{prefix}*");
    }
    if let Some(prefix) = matching.get("path_separated_prefix").and_then(Value::as_str) {
        return format!("PathPrefix:{prefix}");
    }
    if let Some(regex) = matching.pointer("/safe_regex/regex").and_then(Value::as_str) {
        return format!("regex {regex}");
    }
    if let Some(template) = matching.pointer("/path_match_policy/typed_config/path_template").and_then(Value::as_str) {
        return format!("template {template}");
    }
    if matching.get("connect_matcher").is_some() {
        return "CONNECT".to_owned();
    }
    text(matching, "/path").to_owned()
}

/// All other conditions, which istioctl does not show.
fn conditions(row: &Value) -> String {
    let matching = &row["match"];
    let mut all: Vec<_> = list(matching, "/headers").iter().map(header).collect();
    all.extend(
        list(matching, "/query_parameters")
            .iter()
            .map(|query| format!("?{}{}", text(query, "/name"), value_condition(query))),
    );
    if matching.get("grpc").is_some() {
        all.push("gRPC".to_owned());
    }
    if let Some(fraction) = matching.pointer("/runtime_fraction/default_value") {
        let denominator = text(fraction, "/denominator");
        all.push(format!(
            "{} of {}",
            fraction["numerator"],
            if denominator.is_empty() { "HUNDRED" } else { denominator }
        ));
    }
    if matching.get("case_sensitive").and_then(Value::as_bool) == Some(false) {
        all.push("path in any case".to_owned());
    }
    all.extend(row.pointer("/metadata/filter_metadata/waylay/source_pod").map(source_pod));
    if all.is_empty() { "-".to_owned() } else { all.join("; ") }
}

fn source_pod(pod: &Value) -> String {
    let part = |key: &str| pod[key].as_str().unwrap_or("*").to_owned();
    let labels = pod["labels"].as_object().into_iter().flatten();
    let labels: Vec<_> = labels.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    let with = if labels.is_empty() { String::new() } else { format!(" with {}", labels.join(",")) };
    format!("from {}/{}{with}", part("namespace"), part("name"))
}

fn header(header: &Value) -> String {
    let condition = format!("{}{}", text(header, "/name"), value_condition(header));
    if header["invert_match"] == Value::Bool(true) { format!("not({condition})") } else { condition }
}

fn value_condition(matcher: &Value) -> String {
    if let Some(range) = matcher.get("range_match") {
        return format!(" in [{},{})", plain(&range["start"]), plain(&range["end"]));
    }
    if let Some(text_match) = matcher.get("string_match") {
        for (kind, sign) in [("exact", "="), ("prefix", "^="), ("suffix", "$="), ("contains", "*=")] {
            if let Some(text) = text_match.get(kind).and_then(Value::as_str) {
                return format!("{sign}{text}");
            }
        }
        return format!("~={}", text(text_match, "/safe_regex/regex"));
    }
    match matcher.get("present_match").and_then(Value::as_bool) {
        Some(false) => " absent".to_owned(),
        _ => " present".to_owned(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn action(row: &Value) -> String {
    let to = destination(row);
    let hashed: Vec<_> =
        row.get("route").map(|action| list(action, "/hash_policy")).into_iter().flatten().map(hashed).collect();
    if hashed.is_empty() { to } else { format!("{to} by hash of {}", hashed.join(", ")) }
}

/// What a hash policy hashes.
fn hashed(policy: &Value) -> String {
    let named = [
        ("header", text(policy, "/header/header_name")),
        ("cookie", text(policy, "/cookie/name")),
        ("query parameter", text(policy, "/query_parameter/name")),
    ];
    let named = named.into_iter().find(|(_, name)| !name.is_empty());
    let what = named.map_or_else(|| "source ip".to_owned(), |(kind, name)| format!("{kind} {name}"));
    if policy["terminal"] == Value::Bool(true) { format!("{what} (terminal)") } else { what }
}

fn destination(row: &Value) -> String {
    if let Some(action) = row.get("route") {
        let weighted = list(action, "/weighted_clusters/clusters");
        if !weighted.is_empty() {
            let parts = weighted.iter().map(|one| format!("{}:{}", text(one, "/name"), plain(&one["weight"])));
            return parts.collect::<Vec<_>>().join(",");
        }
        return match (text(action, "/cluster"), text(action, "/cluster_header")) {
            ("", header) => format!("cluster of header {header}"),
            (cluster, _) => cluster.to_owned(),
        };
    }
    if let Some(action) = row.get("redirect") {
        return format!("redirect {}", text(action, "/response_code"));
    }
    row.pointer("/direct_response/status").map_or_else(|| "-".to_owned(), |status| format!("answer {status}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configs() -> Vec<Value> {
        let canary = json!({"match": {"prefix": "/", "headers": [
            {"name": "x-canary", "string_match": {"exact": "true"}}]}, "route": {"cluster": "checkout-v2"}});
        let checkout = json!({"match": {"prefix": "/checkout", "headers": [
            {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|POST"}}}]},
            "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 10}]}}});
        let rest = json!({"match": {"path": "/old"}, "redirect": {"response_code": "FOUND"}});
        let through = json!({"match": {"prefix": "/"}, "route": {"cluster": "PassthroughCluster"}});
        vec![
            json!({"name": "8080", "virtual_hosts": [
                {"name": "shop", "domains": ["*"], "routes": [canary, checkout, rest, through]}]}),
            json!({"name": "http", "virtual_hosts": [{"name": "empty", "domains": ["a", "b"]}]}),
        ]
    }

    fn args(verbose: bool) -> Args {
        let common = Common {
            output: Format::Table,
            file: None,
            socket: crate::cli::client::Socket { path: "/nowhere".into() },
        };
        Args { name: None, verbose, common }
    }

    #[test]
    fn the_table_is_istioctls() {
        let text = args(true).table(&configs(), Columns::Istioctl, &HashMap::new()).text();
        // An empty last column leaves its padding, as in Go's tabwriter.
        let expected = [
            "NAME     VHOST NAME     DOMAINS     MATCH          VIRTUAL SERVICE",
            "8080     shop           *           /*             ",
            "8080     shop           *           /checkout*     ",
            "8080     shop           *           /old           ",
            "http     empty          a, b        /*             404",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        let short = args(false).table(&configs(), Columns::Istioctl, &HashMap::new()).text();
        assert_eq!(short, "NAME     VIRTUAL HOSTS\n8080     1\nhttp     1\n");
    }

    #[test]
    fn all_columns_show_what_istioctl_leaves_out() {
        let hits = HashMap::from([(("8080".to_owned(), "shop".to_owned(), 1), 42)]);
        let text = args(true).table(&configs(), Columns::All, &hits).text();
        let rows: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split("     ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(rows[1][4..], ["0", "x-canary=true", "checkout-v2", "-"]);
        assert_eq!(rows[2][4..], ["1", ":method~=GET|POST", "a:90,b:10", "42"]);
        assert_eq!(rows[3][4..], ["2", "-", "redirect FOUND", "-"]);
        assert_eq!(rows[4][4..], ["3", "-", "PassthroughCluster", "-"]);
    }

    #[test]
    fn every_condition_has_a_short_form() {
        for (matcher, expected) in [
            (json!({"name": "n", "range_match": {"start": "1", "end": "10"}}), "n in [1,10)"),
            (json!({"name": "n", "string_match": {"prefix": "a"}, "invert_match": true}), "not(n^=a)"),
            (json!({"name": "n", "present_match": false}), "n absent"),
            (json!({"name": "n"}), "n present"),
        ] {
            assert_eq!(header(&matcher), expected);
        }
        let from = |pod: Value| conditions(&json!({"metadata": {"filter_metadata": {"waylay": {"source_pod": pod}}}}));
        assert_eq!(from(json!({"name": "web-*", "labels": {"app": "web"}})), "from */web-* with app=web");
        let policies = json!([{"header": {"header_name": "x-user"}, "terminal": true}, {"cookie": {"name": "id"}},
            {"connection_properties": {"source_ip": true}}, {"query_parameter": {"name": "q"}}]);
        assert_eq!(
            action(&json!({"route": {"cluster": "c", "hash_policy": policies}})),
            "c by hash of header x-user (terminal), cookie id, source ip, query parameter q"
        );
        assert_eq!(path(&json!({"path_separated_prefix": "/p"})), "PathPrefix:/p");
        assert_eq!(path(&json!({"safe_regex": {"regex": "/x.*"}})), "regex /x.*");
    }

    #[test]
    fn numbers_sort_by_value_and_before_names() {
        let mut configs: Vec<_> = ["http", "15010", "80", "9080"].map(|name| json!({"name": name})).into();
        configs.sort_by_cached_key(sort_key);
        let names: Vec<_> = configs.iter().map(|config| text(config, "/name")).collect();
        assert_eq!(names, ["80", "9080", "15010", "http"]);
    }
}
