//! `waylay run`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::local::{self, Intercepted};
use super::output;
use super::start::{Agent, Interface};
use crate::admin::AdminSocketOption;
use crate::config::Source;
use crate::config::watch::Watcher;
use crate::privilege;
use crate::server::ServerOptions;
use crate::telemetry::log;

/// Load a configuration (or take one from the options), intercept, and serve until stopped
///
/// The file is watched: a change of it is taken over at once, without dropping a connection.
#[derive(Debug, clap::Args)]
#[command(after_help = "Signals:
  SIGTERM, SIGINT  stop intercepting, let what is in flight finish, exit 0; a second one ends at once
  SIGHUP           load the configuration again; a bad one changes nothing
  SIGUSR1          open the access logs anew, after rotation

Examples:
  sudo waylay run -c waylay.yaml
  sudo waylay run -c waylay.yaml --concurrency 2 --log-level info,waylay::cluster=debug
  sudo waylay run --local '8080 => 127.0.0.1:9001' --user \"$USER\"
  sudo waylay run --local '10.0.0.7:5432 => 127.0.0.1:5432' --unit app.service
  sudo waylay run --inbound '8080 => 127.0.0.1:9001'
  sudo waylay run --comm curl          see everything that curl does, and change nothing

Without a file, --pid, --cgroup, --unit, --user and --comm choose whose connections are taken: of one
kind any, of different kinds each. They say who connects: --inbound is for all clients. Requests and
connections are written to standard output.")]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

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

    #[command(flatten)]
    intercepted: Intercepted,

    /// Only show the configuration that the options make: a file to begin with
    #[arg(long, conflicts_with = "config", help_heading = "Instead of a configuration file")]
    print_config: bool,
}

impl Args {
    /// Runs until it is stopped.
    ///
    /// # Errors
    /// The agent does not start.
    pub fn run(self) -> anyhow::Result<()> {
        self.intercepted.check(self.config.is_some()).unwrap_or_else(|error| error.exit());
        let text = local::configuration(&self.intercepted);
        if self.print_config {
            return output::print(&text);
        }
        log::start(&self.log_level)?;
        // Now, while this is the only thread: each has capabilities of its own.
        if let Err(error) = privilege::drop_unneeded() {
            tracing::warn!(%error, "capabilities that the agent does not need stay with it");
        }
        let socket = self.admin_socket.clone().map_or(AdminSocketOption::Configured, AdminSocketOption::At);
        let options =
            ServerOptions { concurrency: self.concurrency.map(NonZeroUsize::get), ..ServerOptions::default() };
        // Before the file is read, so that no change falls between the two.
        let watcher = self.watch();
        let source = match self.config {
            Some(file) => Source::File(file),
            None => Source::Inline { name: "the command line".to_owned(), text },
        };
        let agent = Agent::start(source, options, Interface::On(socket), None)?;
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
        let watcher = Watcher::new(self.config.as_deref()?);
        watcher.inspect_err(|error| tracing::warn!("{error}")).ok()
    }
}
