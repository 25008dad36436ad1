//! The CNI plugin: a container runtime runs it for every pod whose network it makes or takes away.
//!
//! Before: the runtime, which passes the command in its environment and the configuration on standard input
//! (the Container Network Interface specification, versions 0.3.0 to 1.1.0). After: the agent, over its admin socket
//! ([`crate::workload::cni`]).
//!
//! It is a chained plugin: another one has made the pod's network, and its result is passed on unchanged. It waits until
//! the agent has enrolled the pod, so that not even the pod's first connection is missed. It keeps nothing itself.

mod ask;
mod error;
pub mod install;
mod invocation;
mod journal;
mod netconf;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::workload::cni::{CniAdd, CniAnswer, CniDel};
use ask::{Agent, Waiting};
use error::{CniError, Code};
use invocation::{Attachment, Command};
use journal::Journal;
use netconf::NetConf;

pub use netconf::{OnAgentAbsent, timeout};

/// What runtimes call it: the last part of the plugin's `type`, and of its file's name.
pub const PLUGIN: &str = "waylay-cni";

/// Versions of the specification that it speaks, oldest first.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What it answers with when the runtime names no version that it speaks.
const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// The longest configuration that is read: the annotations of a pod may hold 256 KiB, and are quoted.
const STDIN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What it says to the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// For standard output: JSON, or nothing.
    pub stdout: String,
    /// The exit status is 0, else 1.
    pub success: bool,
}

/// Whether a program that was run as `argv0` is to be the plugin: runtimes run it by its file's name, without arguments.
pub fn is_plugin_name(argv0: &Path) -> bool {
    argv0.file_name().is_some_and(|name| name.to_string_lossy().ends_with(PLUGIN))
}

/// Does what the runtime asks for. `env` looks up variables of the environment; `stdin` is read to its end, unless
/// there is no command.
pub fn run(env: &dyn Fn(&str) -> Option<OsString>, stdin: impl Read) -> Done {
    let mut version = NEWEST;
    let done = Command::of(env).and_then(|command| {
        let config = read(stdin)?;
        version = netconf::version(&config).unwrap_or(NEWEST);
        execute(command, env, &config)
    });
    match done {
        Ok(None) => Done { stdout: String::new(), success: true },
        Ok(Some(result)) => Done { stdout: format!("{result}\n"), success: true },
        Err(error) => Done { stdout: format!("{}\n", error.json(version)), success: false },
    }
}

/// The configuration; null when there is none.
fn read(stdin: impl Read) -> Result<Value, CniError> {
    let mut bytes = Vec::new();
    stdin
        .take(STDIN_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| CniError::new(Code::Io, "reading the configuration from standard input", error))?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        let limit = format!("the limit is {STDIN_BYTES_MAX} bytes");
        return Err(CniError::new(Code::Decode, "the configuration on standard input is too long", limit));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| CniError::new(Code::Decode, "the configuration on standard input is not JSON", error))
}

fn execute(
    command: Command,
    env: &dyn Fn(&str) -> Option<OsString>,
    config: &Value,
) -> Result<Option<Value>, CniError> {
    if command == Command::Version {
        let version = netconf::asked_version(config).unwrap_or(NEWEST);
        return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
    }
    let config = NetConf::of(config, command)?;
    match command {
        Command::Add => add(&Attachment::of(env, command)?, &config).map(Some),
        Command::Del => del(&Attachment::of(env, command)?, &config).map(|()| None),
        Command::Check => check(&Attachment::of(env, command)?, &config).map(|()| None),
        Command::Status => status(&config).map(|()| None),
        // The agent lets pods go whose namespaces are gone, whoever tells it; nothing is kept here.
        Command::Gc | Command::Version => Ok(None),
    }
}

/// Waits until the agent has enrolled the pod, and passes on what the plugin before has made.
fn add(attachment: &Attachment, config: &NetConf) -> Result<Value, CniError> {
    let result = config.result()?;
    let journal = Journal::begin(config, Command::Add, attachment);
    let pod = CniAdd {
        container_id: attachment.container_id.clone(),
        netns: attachment.netns.clone().unwrap_or_default(),
        namespace: attachment.pod.namespace.clone(),
        name: attachment.pod.name.clone(),
        uid: attachment.pod.uid.clone(),
        ips: addresses(&result),
        annotations: config.annotations.clone(),
    };
    let waiting = match config.on_agent_absent {
        OnAgentAbsent::Allow => Waiting::WhileItIsThere,
        OnAgentAbsent::Refuse => Waiting::ForIt,
    };
    match Agent::of(config).add(&pod, waiting) {
        Ok(CniAnswer::Enrolled) => journal.end("enrolled"),
        Ok(CniAnswer::NotSelected { reason }) => journal.end(&format!("not selected: {reason}")),
        Ok(CniAnswer::Provisional { reason }) => journal.end(&format!("enrolled for now: {reason}")),
        Err(error) if config.on_agent_absent == OnAgentAbsent::Allow => {
            journal.end(&format!("NOT enrolled, and allowed to start: {error}"));
        }
        Err(error) => {
            journal.end(&format!("refused: {error}"));
            return Err(CniError::new(Code::TryAgainLater, "the waylay agent did not enrol the pod", error));
        }
    }
    Ok(Value::Object(result))
}

/// The addresses in a result that are the pod's. Those of interfaces on the node's side are not.
fn addresses(result: &Map<String, Value>) -> Vec<IpAddr> {
    let list = |key: &str| result.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let interfaces = list("interfaces");
    let inside = |ip: &&Value| {
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let interface = index.and_then(|index| interfaces.get(index));
        // An address that names no interface is the pod's: that of the result's only one.
        interface.is_none_or(|interface| interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty()))
    };
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse().ok();
    list("ips").iter().filter(inside).filter_map(address).collect()
}

/// Tells the agent, if there is one. A pod must be able to go without it.
fn del(attachment: &Attachment, config: &NetConf) -> Result<(), CniError> {
    let journal = Journal::begin(config, Command::Del, attachment);
    match Agent::of(config).del(&CniDel { container_id: attachment.container_id.clone() }) {
        Ok(()) => journal.end("let go"),
        Err(error) => journal.end(&format!("the agent was not told: {error}")),
    }
    Ok(())
}

/// Whether what ADD did is still there: the agent that serves the pod.
fn check(attachment: &Attachment, config: &NetConf) -> Result<(), CniError> {
    config.result()?;
    let journal = Journal::begin(config, Command::Check, attachment);
    match Agent::of(config).ready() {
        Ok(()) => journal.end("the agent is ready"),
        Err(error) if config.on_agent_absent == OnAgentAbsent::Allow => {
            journal.end(&format!("no agent, and allowed to go on: {error}"));
        }
        Err(error) => {
            journal.end(&format!("no agent: {error}"));
            return Err(CniError::new(Code::TryAgainLater, "the waylay agent is not ready", error));
        }
    }
    Ok(())
}

/// Whether pods can be made: always where they may start without the agent.
fn status(config: &NetConf) -> Result<(), CniError> {
    if config.on_agent_absent == OnAgentAbsent::Allow {
        return Ok(());
    }
    let error = |error| CniError::new(Code::NotAvailable, "the waylay agent is not ready", error);
    Agent::of(config).ready().map_err(error)
}

/// What [`run()`] sees of the process.
pub fn run_here() -> Done {
    run(&|name| std::env::var_os(name), io::stdin().lock())
}

/// How long it took, for people.
fn since(start: Instant) -> String {
    format!("{:.1} ms", start.elapsed().as_secs_f64() * 1000.0)
}
