//! `waylay maps`: the BPF maps of every instance, decoded, read from the kernel itself: it works while the agent hangs.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use serde_json::{Map, Value};

use super::client::{AdminClient, Socket};
use super::output::{self, Format};
use super::table::Table;
use crate::kernel::inspect::{self, Instance};
use crate::telemetry::escape::Shown;

/// How long the agent is waited for: it only adds names, and `maps` is what one asks when it hangs.
const AGENT_PATIENCE: Duration = Duration::from_millis(500);

/// Show the BPF maps, decoded; works without the agent
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  waylay maps                    # every map of every instance
  waylay maps counters           # why connections were taken or left alone
  waylay maps policy -o json")]
pub struct Args {
    /// Only this map
    #[arg(value_enum)]
    name: Option<Name>,

    /// Only this instance, by the number that the first line shows
    #[arg(long)]
    instance: Option<u32>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// What the hooks were told, and the agent's heartbeat
    Settings,
    /// Every way out of the hooks, counted
    Counters,
    /// What is taken, by the number of the policy that `netns` names
    Policy,
    /// Listener addresses that are never redirected
    Exempt,
    /// Network namespaces that take part, and by which policies
    Netns,
    /// Whose connections are taken in the agent's own network namespace
    Processes,
    /// Network namespaces whose arrivals the agent's sockets receive
    Listeners,
    /// Handshakes in flight
    Handover,
    /// Connections of the agent to applications on the inbound side
    Flows,
    /// Destinations that the kernel dispatches by itself, and the endpoints it chooses from
    Dispatch,
    /// DNS resolvers that were asked through the agent
    Resolvers,
    /// What the sockets of this network namespace remember
    Sockets,
}

const ALL: [Name; 12] = [
    Name::Settings,
    Name::Counters,
    Name::Policy,
    Name::Exempt,
    Name::Netns,
    Name::Processes,
    Name::Listeners,
    Name::Handover,
    Name::Flows,
    Name::Dispatch,
    Name::Resolvers,
    Name::Sockets,
];

impl Args {
    /// Prints them.
    ///
    /// # Errors
    /// The kernel's maps cannot be read.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut instances = inspect::instances()?;
        instances.retain(|instance| self.instance.is_none_or(|id| id == instance.id()));
        if let (Some(id), true) = (self.instance, instances.is_empty()) {
            bail!("there is no instance {id}: see `waylay maps` for those that are");
        }
        let pods = if instances.is_empty() { Pods::default() } else { pods(&self.socket) };
        let names: Vec<_> = self.name.map_or_else(|| ALL.to_vec(), |name| vec![name]);
        match self.output {
            Format::Json => output::print_json(&readable(&instances, |one| instance_json(one, &names, &pods))?),
            Format::Table if instances.is_empty() => {
                eprintln!("nothing of waylay is in the kernel");
                Ok(())
            }
            Format::Table => output::print(&readable(&instances, |one| instance_text(one, &names, &pods))?.join("\n")),
        }
    }
}

/// Pods by the cookies of their network namespaces.
type Pods = HashMap<u64, String>;

/// What the running agent knows of pods; nothing when it does not answer: the kernel's maps tell no names.
fn pods(socket: &Socket) -> Pods {
    let ask = || AdminClient::new(socket).ok()?.patient(AGENT_PATIENCE).json("/pods?format=json").ok();
    let Some(answer) = ask() else { return Pods::default() };
    let pods = answer["pods"].as_array().into_iter().flatten();
    let named = |pod: &Value| {
        let part = |key: &str| pod[key].as_str().map(str::to_owned);
        Some((pod["netns_cookie"].as_u64()?, format!("{}/{}", part("namespace")?, part("name")?)))
    };
    pods.filter_map(named).collect()
}

/// Puts the names of pods beside the cookies of their network namespaces.
fn name_pods(content: &mut Value, pods: &Pods) {
    for row in content.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(cookie) = row.get("netns_cookie").filter(|_| !pods.is_empty()) {
            let pod = cookie.as_u64().and_then(|cookie| pods.get(&cookie));
            row.insert("pod".to_owned(), pod.cloned().into());
        }
    }
}

/// What `read` makes of each instance. One that cannot be read does not hide the others: the reason goes to standard
/// error, unless it is that the instance is gone by now.
///
/// # Errors
/// There are instances, and none of them can be read.
fn readable<T>(instances: &[Instance], read: impl Fn(&Instance) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    let (mut contents, mut unreadable) = (Vec::new(), Vec::new());
    for instance in instances {
        match read(instance) {
            Ok(content) => contents.push(content),
            Err(error) => unreadable.push((instance.id(), error)),
        }
    }
    if !unreadable.is_empty() {
        let living: Vec<_> = inspect::instances()?.iter().map(Instance::id).collect();
        unreadable.retain(|(id, _)| living.contains(id));
    }
    for (id, error) in &unreadable {
        eprintln!("waylay: instance {id}: {error:#}");
    }
    if contents.is_empty() && !unreadable.is_empty() {
        bail!("no instance could be read");
    }
    Ok(contents)
}

impl Name {
    fn label(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Counters => "counters",
            Self::Policy => "policy",
            Self::Exempt => "exempt",
            Self::Netns => "netns",
            Self::Processes => "processes",
            Self::Listeners => "listeners",
            Self::Handover => "handover",
            Self::Flows => "flows",
            Self::Dispatch => "dispatch",
            Self::Resolvers => "resolvers",
            Self::Sockets => "sockets",
        }
    }

    fn content(self, instance: &Instance) -> anyhow::Result<Value> {
        Ok(match self {
            Self::Settings => serde_json::to_value(instance.status()?)?,
            Self::Counters => serde_json::to_value(instance.counters()?)?,
            Self::Policy => serde_json::to_value(instance.policy()?)?,
            Self::Exempt => serde_json::to_value(instance.exempt()?)?,
            Self::Netns => serde_json::to_value(instance.netns()?)?,
            Self::Processes => serde_json::to_value(instance.chosen()?)?,
            Self::Listeners => serde_json::to_value(instance.listeners()?)?,
            Self::Handover => serde_json::to_value(instance.handover()?)?,
            Self::Flows => serde_json::to_value(instance.flows()?)?,
            Self::Dispatch => serde_json::to_value(instance.dispatch()?)?,
            Self::Resolvers => serde_json::to_value(instance.resolvers()?)?,
            Self::Sockets => serde_json::to_value(instance.sockets()?)?,
        })
    }
}

fn instance_json(instance: &Instance, names: &[Name], pods: &Pods) -> anyhow::Result<Value> {
    let mut object = Map::new();
    object.insert("instance".to_owned(), instance.id().into());
    object.insert("agent_pid".to_owned(), instance.agent_pid().into());
    object.insert("cgroup_id".to_owned(), instance.cgroup_id().into());
    for name in names {
        let mut content = name.content(instance)?;
        name_pods(&mut content, pods);
        object.insert(name.label().to_owned(), content);
    }
    Ok(Value::Object(object))
}

fn instance_text(instance: &Instance, names: &[Name], pods: &Pods) -> anyhow::Result<String> {
    let mut text = format!(
        "instance {} (agent pid {}, cgroup id {})\n",
        instance.id(),
        instance.agent_pid(),
        instance.cgroup_id()
    );
    for name in names {
        let mut content = name.content(instance)?;
        name_pods(&mut content, pods);
        text.push_str(&format!("\n{}\n{}", name.label(), content_text(&content)));
    }
    Ok(text)
}

/// An object as lines of names and values, a list of objects as a table.
fn content_text(content: &Value) -> String {
    match content {
        Value::Object(fields) => {
            let width = fields.keys().map(String::len).max().unwrap_or_default();
            fields.iter().map(|(name, value)| format!("  {name:width$}  {}\n", cell(value))).collect()
        }
        Value::Array(rows) if rows.is_empty() => "  (empty)\n".to_owned(),
        Value::Array(rows) => rows_text(rows),
        other => format!("  {other}\n"),
    }
}

fn rows_text(rows: &[Value]) -> String {
    let Some(Value::Object(first)) = rows.first() else { return String::new() };
    let names: Vec<_> = first.keys().map(|name| name.to_uppercase()).collect();
    let heading: Vec<_> = names.iter().map(String::as_str).collect();
    let mut table = Table::new(&heading, 2);
    for row in rows {
        table.cells(first.keys().map(|name| cell(&row[name])).collect());
    }
    table.text().lines().map(|line| format!("  {}\n", line.trim_end())).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => Shown(text).to_string(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        // A process: its pid and name say most.
        Value::Object(fields) if ["comm", "netns_cookie"].iter().all(|name| fields.contains_key(*name)) => {
            format!("{}[{}]", cell(&fields["comm"]), fields.get("pid").map(cell).unwrap_or_default())
        }
        Value::Object(fields) => {
            let given = fields.iter().filter(|(_, value)| !value.is_null());
            given.map(|(name, value)| format!("{name}={}", cell(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_named_beside_the_cookies_of_their_namespaces() {
        let mut netns = json!([{"netns_cookie": 7}, {"netns_cookie": 8}]);
        name_pods(&mut netns, &Pods::default());
        assert_eq!(content_text(&netns), "  NETNS_COOKIE\n  7\n  8\n", "without the agent there is no column");
        name_pods(&mut netns, &Pods::from([(8, "shop/web-1".to_owned())]));
        assert_eq!(content_text(&netns), "  NETNS_COOKIE  POD\n  7             -\n  8             shop/web-1\n");
    }

    #[test]
    fn maps_print_as_tables() {
        let policy = json!([
            {"prefix": "0.0.0.0/0", "include": ["all"], "exclude": []},
            {"prefix": "10.0.0.0/8", "include": ["80", "8000-8999"], "exclude": ["22"]},
        ]);
        assert_eq!(
            content_text(&policy),
            "  PREFIX      INCLUDE       EXCLUDE\n  0.0.0.0/0   all           -\n  10.0.0.0/8  80,8000-8999  22\n"
        );
        assert_eq!(content_text(&json!([])), "  (empty)\n");
        assert_eq!(content_text(&json!({"layout": 1, "agent_pid": 7})), "  layout     1\n  agent_pid  7\n");
        assert_eq!(cell(&json!({"pid": 3, "netns_cookie": 1, "comm": "a\u{1b}b"})), "a\\u001bb[3]");
    }
}
