//! `waylay pods`: the pods and containers of this node, and what became of each.

use clap::ValueEnum;
use serde_json::Value;

use super::client::{AdminClient, Socket};
use super::output;
use super::table::Table;
use crate::telemetry::escape::Shown;

/// Show the pods and containers of this node: enrolled, or why not
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  waylay pods
  waylay pods -o wide
  waylay pods -o json | jq '.pods[] | select(.state == \"failed\")'

States: enrolled (its connections are taken), provisional (taken on the word of the CNI plugin, the runtime
has not told of it yet), skipped (not selected, or not possible), failed (should be enrolled and is not).")]
pub struct Args {
    /// Only of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,

    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each
    #[default]
    Table,
    /// With its process, network namespace and labels
    Wide,
    /// All that is known
    Json,
}

const COLUMNS: &[&str] = &["NAMESPACE", "NAME", "STATE", "IP", "REASON"];
const WIDE: &[&str] = &["NAMESPACE", "NAME", "STATE", "IP", "PID", "NETNS", "SINCE", "LABELS", "REASON"];

impl Args {
    /// Prints them.
    ///
    /// # Errors
    /// No agent answers.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut answer = AdminClient::new(&self.socket)?.json("/pods?format=json")?;
        let pods = answer.get_mut("pods").and_then(Value::as_array_mut);
        let mut none = Vec::new();
        let pods = pods.unwrap_or(&mut none);
        pods.retain(|pod| self.namespace.as_deref().is_none_or(|wanted| pod["namespace"] == wanted));
        match self.output {
            Output::Json => output::print_json(&answer),
            Output::Table | Output::Wide if pods.is_empty() => {
                eprintln!(
                    "no pods: the configuration has no `intercept.pods`, or no container runtime knows of any; the \
                     agent's log names a runtime that does not answer"
                );
                Ok(())
            }
            Output::Table => output::print(&table(pods, COLUMNS)),
            Output::Wide => output::print(&table(pods, WIDE)),
        }
    }
}

fn table(pods: &[Value], columns: &[&str]) -> String {
    let mut table = Table::new(columns, 3);
    for pod in pods {
        table.cells(columns.iter().map(|column| cell(pod, column)).collect());
    }
    table.text().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn cell(pod: &Value, column: &str) -> String {
    let value = match column {
        "IP" => &pod["ips"],
        "NETNS" => &pod["netns_cookie"],
        other => &pod[other.to_ascii_lowercase()],
    };
    match value {
        Value::Null if column == "REASON" => String::new(),
        Value::Null => "-".to_owned(),
        Value::String(text) => Shown(text).to_string(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Object(fields) => {
            let labels = fields.iter().map(|(name, value)| format!("{}={}", Shown(name), text(value)));
            labels.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| Shown(text).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_print_as_a_table_and_what_they_say_cannot_write_to_the_terminal() {
        let pods = [
            json!({"namespace": "shop", "name": "web-1", "state": "enrolled", "reason": null, "ips": ["10.0.0.1", "fd::1"],
                   "pid": 7, "netns_cookie": 42, "since": "T", "labels": {"app": "web", "b": "c"}}),
            json!({"namespace": "shop", "name": "db\u{1b}", "state": "skipped", "reason": "it's not selected", "ips": [],
                   "pid": null, "netns_cookie": null, "since": "T", "labels": {}}),
        ];
        assert_eq!(
            table(&pods, COLUMNS),
            "NAMESPACE   NAME       STATE      IP               REASON\n\
             shop        web-1      enrolled   10.0.0.1,fd::1\n\
             shop        db\\u001b   skipped    -                it's not selected\n"
        );
        let wide = table(&pods, WIDE);
        assert!(wide.lines().nth(1).is_some_and(|line| line.ends_with("7     42      T       app=web,b=c")), "{wide}");
    }
}
