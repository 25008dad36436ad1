//! `waylay cni`: the CNI plugin, and its installation.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;

use super::client::DEFAULT_SOCKET;
use super::output;
use crate::cni::install::{Change, Installation, PluginOptions, watch};
use crate::cni::{self, OnAgentAbsent};
use crate::signal::{Signals, Wish};

/// Enrol pods before anything runs in them: the CNI plugin that container runtimes run, and its installation
///
/// Without a subcommand it is the plugin: the command comes in the environment (CNI_COMMAND), the network's
/// configuration on standard input. It is the same when the program's name ends in `waylay-cni`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo waylay cni install
  sudo waylay cni install --on-agent-absent refuse --log-file /var/log/waylay-cni.log
  waylay cni install --watch --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d
  sudo waylay cni uninstall")]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    Install(Install),
    Uninstall(Uninstall),
}

/// Where runtimes look.
#[derive(Debug, clap::Args)]
struct Folders {
    /// Where runtimes find plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,

    /// Where runtimes find network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
}

/// Put the plugin at the end of the node's network configuration
///
/// The program is copied to the folder of plugins as `waylay-cni`; the first network configuration in the order of names,
/// which is the one that runtimes use, gets an entry for it. A `*.conf` becomes a `*.conflist`. What is there already
/// stays as it is. Pods that run are not touched.
#[derive(Debug, clap::Args)]
struct Install {
    #[command(flatten)]
    folders: Folders,

    /// The agent's admin socket, as the node sees it
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    agent_socket: PathBuf,

    /// Longest wait for the agent's answer, at most 60s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = cni::timeout)]
    timeout: Duration,

    /// What becomes of a pod that the agent cannot enrol
    #[arg(long, value_enum, default_value_t)]
    on_agent_absent: OnAgentAbsent,

    /// Append a line for every call to this file, as the node sees it
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,

    /// Stay, wait for a network configuration if there is none, and install again whenever another program writes it
    #[arg(long)]
    watch: bool,
}

/// Take the plugin out of the node's network configuration
#[derive(Debug, clap::Args)]
struct Uninstall {
    #[command(flatten)]
    folders: Folders,

    /// Leave the program where it is: runtimes that keep a pod's configuration (CRI-O) run it when the pod goes
    #[arg(long)]
    keep_program: bool,
}

impl Args {
    /// Does what it says.
    ///
    /// # Errors
    /// The plugin cannot be installed or removed.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            None => plugin(),
            Some(Action::Install(install)) => install.run().map(|()| ExitCode::SUCCESS),
            Some(Action::Uninstall(uninstall)) => uninstall.run().map(|()| ExitCode::SUCCESS),
        }
    }
}

/// The plugin itself.
///
/// # Errors
/// Standard output cannot be written.
pub fn plugin() -> anyhow::Result<ExitCode> {
    let done = cni::run_here();
    output::print(&done.stdout)?;
    Ok(if done.success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Install {
    fn run(self) -> anyhow::Result<()> {
        let installation = Installation {
            bin_dir: self.folders.bin_dir,
            conf_dir: self.folders.conf_dir,
            plugin: PluginOptions {
                agent_socket: self.agent_socket,
                timeout: self.timeout,
                on_agent_absent: self.on_agent_absent,
                log_file: self.log_file,
            },
        };
        if !self.watch {
            return tell(&installation.install()?);
        }
        keep(installation)
    }
}

/// Keeps the plugin installed until a signal ends this; it stays installed then.
fn keep(installation: Installation) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The first process of a container ignores the signals that it does not handle.
        let mut signals = Signals::install().context("installing the signal handlers")?;
        std::thread::Builder::new().name("waylay-cni".to_owned()).spawn(move || {
            watch::keep(&installation, |done| match done {
                Ok(changes) => {
                    // Nobody reads it any more: no reason to leave pods alone.
                    let _ = tell(changes);
                }
                Err(error) => eprintln!("waylay: {}; trying again", Chain(error)),
            })
        })?;
        while signals.next().await != Wish::Stop {}
        Ok(())
    })
}

impl Uninstall {
    fn run(self) -> anyhow::Result<()> {
        let bin_dir = (!self.keep_program).then_some(&*self.folders.bin_dir);
        tell(&Installation::uninstall(bin_dir, &self.folders.conf_dir)?)
    }
}

fn tell(changes: &[Change]) -> anyhow::Result<()> {
    if changes.is_empty() {
        return output::print("nothing to do\n");
    }
    output::print(&changes.iter().map(|change| format!("{change}\n")).collect::<String>())
}

/// An error with its causes, in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}
