//! The configuration that the plugin gets on standard input: its own fields, and what the runtime adds.
//!
//! Before: the `*.conflist` of the node, which [`super::install`] wrote our entry into. After: [`super::execute`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{CniError, Code};
use super::invocation::Command;
use super::{NEWEST, VERSIONS};
use crate::config;
use crate::snapshot::DEFAULT_ADMIN_SOCKET;

/// The agent answers within milliseconds; one that is being replaced is back within a few seconds.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runtimes give up on a pod after two minutes (kubelet's `--runtime-request-timeout`), and other plugins take their
/// share of them.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Whether a pod may start that the agent could not enrol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnAgentAbsent {
    /// It starts at once; the agent enrols it once it is back, and misses what it did before
    #[default]
    Allow,
    /// It does not start; the runtime tries again
    Refuse,
}

impl OnAgentAbsent {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Refuse => "refuse",
        }
    }
}

/// The configuration of one call.
#[derive(Clone, Debug)]
pub struct NetConf {
    /// One of [`VERSIONS`].
    pub version: &'static str,
    /// What the plugins before have made.
    prev_result: Option<Map<String, Value>>,
    /// The pod's, when the runtime hands them to plugins.
    pub annotations: Option<BTreeMap<String, String>>,
    /// The agent's admin socket.
    pub agent_socket: PathBuf,
    /// Longest wait for the agent.
    pub timeout: Duration,
    /// See there.
    pub on_agent_absent: OnAgentAbsent,
    /// A line is appended for every call.
    pub log_file: Option<PathBuf>,
}

/// As written. Other fields belong to the specification, or to later versions of us.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    prev_result: Option<Map<String, Value>>,
    runtime_config: Option<RuntimeConfig>,
    agent_socket: Option<PathBuf>,
    timeout: Option<String>,
    on_agent_absent: Option<OnAgentAbsent>,
    log_file: Option<PathBuf>,
}

/// What a runtime adds because our `capabilities` ask for it: containerd since 1.5, CRI-O since 1.29.
#[derive(Deserialize)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: Option<BTreeMap<String, String>>,
}

impl NetConf {
    /// Reads it.
    ///
    /// # Errors
    /// It is not usable for `command`.
    pub fn of(config: &Value, command: Command) -> Result<Self, CniError> {
        if !config.is_object() {
            let details = "a runtime passes the network's configuration there, a JSON object";
            return Err(CniError::new(Code::Decode, "standard input holds no configuration", details));
        }
        let version = supported(config, command)?;
        let unusable = |error: String| CniError::new(Code::Config, "the configuration is not usable", error);
        let raw = Raw::deserialize(config).map_err(|error| unusable(error.to_string()))?;
        let timeout = match raw.timeout.as_deref() {
            None => DEFAULT_TIMEOUT,
            Some(text) => timeout(text).map_err(|error| unusable(format!("timeout: {error}")))?,
        };
        Ok(Self {
            version,
            prev_result: raw.prev_result,
            annotations: raw.runtime_config.and_then(|config| config.annotations),
            agent_socket: raw.agent_socket.unwrap_or_else(|| DEFAULT_ADMIN_SOCKET.into()),
            timeout,
            on_agent_absent: raw.on_agent_absent.unwrap_or_default(),
            log_file: raw.log_file,
        })
    }

    /// What the plugins before have made, as it is to be passed on: unchanged, except that the version is added where
    /// a runtime leaves it out.
    ///
    /// # Errors
    /// We are the first of the chain.
    pub fn result(&self) -> Result<Map<String, Value>, CniError> {
        let Some(mut result) = self.prev_result.clone() else {
            let details = "waylay-cni makes no network: it comes after the plugin that does, in the same conflist";
            return Err(CniError::new(Code::Config, "prevResult is missing", details));
        };
        result.entry("cniVersion").or_insert_with(|| self.version.into());
        Ok(result)
    }
}

/// Reads a timeout: more than nothing, and at most `TIMEOUT_MAX`.
///
/// # Errors
/// What was expected.
pub fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = config::duration(text)?;
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(format!("{text} is not between 1ms and {}s", TIMEOUT_MAX.as_secs()));
    }
    Ok(timeout)
}

/// The version that the configuration is written in, if we speak it.
pub fn version(config: &Value) -> Option<&'static str> {
    let asked = asked_version(config)?;
    VERSIONS.into_iter().find(|version| *version == asked)
}

/// The version that the configuration is written in.
pub fn asked_version(config: &Value) -> Option<&str> {
    config.get("cniVersion")?.as_str()
}

fn supported(config: &Value, command: Command) -> Result<&'static str, CniError> {
    let rank = |wanted: &str| VERSIONS.iter().position(|version| *version == wanted);
    let Some(version) = version(config) else {
        // The specification: "0.1.0" when it is missing.
        let asked = asked_version(config).unwrap_or("0.1.0");
        let details = format!("supported are {}; newest is {NEWEST}", VERSIONS.join(", "));
        return Err(CniError::new(
            Code::IncompatibleVersion,
            format!("cniVersion {asked:?} is not supported"),
            details,
        ));
    };
    if rank(version) < rank(command.since()) {
        let details = format!("it came with {}", command.since());
        let msg = format!("cniVersion {version} has no {}", command.name());
        return Err(CniError::new(Code::IncompatibleVersion, msg, details));
    }
    Ok(version)
}
