//! `waylay run`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::start::{Agent, Interface};
use crate::admin::AdminSocketOption;
use crate::config::Source;
use crate::config::watch::Watcher;
use crate::server::ServerOptions;
use crate::telemetry::log;

/// Load a configuration, intercept, and serve until stopped
///
/// The file is watched: a change of it is taken over at once, without dropping a connection.
#[derive(Debug, clap::Args)]
#[command(after_help = "Signals:
  SIGTERM, SIGINT  stop intercepting, let what is in flight finish, exit 0; a second one ends at once
  SIGHUP           load the configuration again; a bad one changes nothing
  SIGUSR1          open the access logs anew, after rotation

Examples:
  sudo waylay run -c waylay.yaml
  sudo waylay run -c waylay.yaml --concurrency 2 --log-level info,waylay::cluster=debug")]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// Worker threads [default: one for each CPU that the process may use]
    #[arg(long, value_name = "N")]
    concurrency: Option<NonZeroUsize>,

    /// Do not reload when the file changes; SIGHUP still does
    #[arg(long)]
    no_watch: bool,

    /// What the agent logs: off, error, warn, info, debug, trace, or target=level,...
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "WAYLAY_LOG")]
    log_level: String,

    /// The admin socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
}

impl Args {
    /// Runs until it is stopped.
    ///
    /// # Errors
    /// The agent does not start.
    pub fn run(self) -> anyhow::Result<()> {
        log::start(&self.log_level)?;
        let socket = self.admin_socket.clone().map_or(AdminSocketOption::Configured, AdminSocketOption::At);
        let options =
            ServerOptions { concurrency: self.concurrency.map(NonZeroUsize::get), ..ServerOptions::default() };
        // Before the file is read, so that no change falls between the two.
        let watcher = self.watch();
        let agent = Agent::start(Source::File(self.config), options, Interface::On(socket), None)?;
        if let Some(watcher) = watcher {
            agent.reload_on_change(watcher);
        }
        agent.run()
    }

    /// An agent that cannot watch its file is still of use.
    fn watch(&self) -> Option<Watcher> {
        if self.no_watch {
            return None;
        }
        let watcher = Watcher::new(&self.config);
        watcher.inspect_err(|error| tracing::warn!("{error}")).ok()
    }
}
