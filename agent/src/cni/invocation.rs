//! What a runtime passes in the environment: the command, and which container it is about.
//!
//! Before: the runtime. After: [`super::execute`].

use std::ffi::OsString;
use std::path::PathBuf;

use super::error::{CniError, Code};

/// `IFNAMSIZ` without its zero.
const INTERFACE_BYTES_MAX: usize = 15;

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A container gets its network.
    Add,
    /// It loses it.
    Del,
    /// Is its network as it was made?
    Check,
    /// Which versions of the specification?
    Version,
    /// Can networks be made? Since 1.1.0.
    Status,
    /// These containers are left, forget others. Since 1.1.0.
    Gc,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Version, Self::Status, Self::Gc];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Version => "VERSION",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }

    /// The first version of the specification that has it.
    pub fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.3.0",
            Self::Check => "0.4.0",
            Self::Status | Self::Gc => "1.1.0",
        }
    }

    /// What is asked for.
    pub fn of(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let names = Self::ALL.map(Self::name).join(", ");
        let Some(name) = variable(env, "CNI_COMMAND")? else {
            let details = format!("a container runtime sets it to one of {names}; `waylay cni install` tells it to");
            return Err(CniError::new(Code::Environment, "CNI_COMMAND is not set", details));
        };
        let found = Self::ALL.into_iter().find(|command| command.name() == name);
        found.ok_or_else(|| {
            CniError::new(Code::Environment, format!("CNI_COMMAND {name:?} is not known"), format!("known are {names}"))
        })
    }
}

/// A container's interface to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; always there for ADD and CHECK.
    pub netns: Option<PathBuf>,
    /// From `CNI_ARGS`.
    pub pod: PodArgs,
}

/// How Kubernetes' runtimes name the pod, in `CNI_ARGS`; empty where they do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`.
    pub uid: String,
}

impl Attachment {
    /// What `command` is about.
    pub fn of(env: &dyn Fn(&str) -> Option<OsString>, command: Command) -> Result<Self, CniError> {
        let container_id = required(env, "CNI_CONTAINERID", command)?;
        if !is_container_id(&container_id) {
            let rule = "it begins with a letter or digit; letters, digits, '_', '.' and '-' follow";
            return Err(CniError::new(
                Code::Environment,
                format!("CNI_CONTAINERID {container_id:?} is not valid"),
                rule,
            ));
        }
        let interface = required(env, "CNI_IFNAME", command)?;
        if !is_interface(&interface) {
            let rule = "1 to 15 bytes without '/', ':' and blanks, and not '.' or '..'";
            return Err(CniError::new(Code::Environment, format!("CNI_IFNAME {interface:?} is not valid"), rule));
        }
        let netns = match command {
            Command::Del => variable(env, "CNI_NETNS")?,
            _ => Some(required(env, "CNI_NETNS", command)?),
        };
        let pod = PodArgs::of(&variable(env, "CNI_ARGS")?.unwrap_or_default())?;
        Ok(Self { container_id, netns: netns.map(PathBuf::from), pod })
    }
}

impl PodArgs {
    /// Reads `KEY=VALUE;KEY=VALUE`. Other keys are other plugins' business.
    fn of(args: &str) -> Result<Self, CniError> {
        let mut pod = Self::default();
        for pair in args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let details = "it is KEY=VALUE;KEY=VALUE";
                return Err(CniError::new(Code::Environment, format!("CNI_ARGS: {pair:?} has no '='"), details));
            };
            match key {
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => value.clone_into(&mut pod.uid),
                _ => {}
            }
        }
        Ok(pod)
    }
}

/// Empty counts as not set, as in the specification's reference implementation.
fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, CniError> {
    let Some(value) = env(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    value
        .into_string()
        .map(Some)
        .map_err(|value| CniError::new(Code::Environment, format!("{name} is not UTF-8"), format!("it is {value:?}")))
}

fn required(env: &dyn Fn(&str) -> Option<OsString>, name: &str, command: Command) -> Result<String, CniError> {
    variable(env, name)?.ok_or_else(|| {
        CniError::new(Code::Environment, format!("{name} is not set"), format!("{} needs it", command.name()))
    })
}

fn is_container_id(id: &str) -> bool {
    id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn is_interface(name: &str) -> bool {
    (1..=INTERFACE_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|letter: char| letter == '/' || letter == ':' || letter.is_whitespace())
}
