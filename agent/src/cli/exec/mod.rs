//! `waylay exec`: runs one command with only its traffic intercepted.
//!
//! A cgroup of its own for the command, an agent in this process that intercepts just that cgroup, and the command in
//! it. When the command ends so does all of it.

pub(super) mod cgroup;
mod child;
mod row;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use nix::sys::resource::{Resource, getrlimit};

use super::local::LocalRow;
use super::start::{Adjust, Agent, Interface};
use crate::config::Source;
use crate::server::{Ports, ServerOptions, SignalHandling};
use crate::snapshot::{AccessLog, AccessLogFormat, Snapshot};
use crate::telemetry::log;
use crate::telemetry::sink::FLUSH_TIMEOUT;

use cgroup::ExecCgroup;
use child::Child;
use row::Row;

/// How long connections that outlive the command may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Run one command with only its traffic intercepted; its exit status is ours
#[derive(Debug, clap::Args)]
#[command(after_help = "Rows are tried in order, the first that matches wins; everything else goes where it wanted to.
They apply to plain-text HTTP on any port:
  '/checkout => 127.0.0.1:9001'                path prefix
  'POST /checkout => 127.0.0.1:9001'           method and path prefix
  'shop.example/checkout => 127.0.0.1:9001'    host (on any port) and path prefix
  'x-canary: true => 127.0.0.1:9003'           a header's value

Examples:
  sudo waylay exec --route '/checkout => 127.0.0.1:9001' -- curl http://shop.example/checkout/cart
  sudo waylay exec --local '5432 => 127.0.0.1:15432' -- psql -h db.example
  sudo waylay exec -v -- git clone http://git.example/repo
  sudo waylay exec -c waylay.yaml --user \"$SUDO_USER\" -- ./app

The command runs as the user that runs waylay: under sudo that is root, unless --user says
otherwise. Its exit status is ours; 128 and the signal's number when a signal killed it.")]
pub struct Args {
    /// Serve this configuration; its listeners are bound to free ports
    #[arg(short, long, value_name = "FILE", conflicts_with = "route")]
    config: Option<PathBuf>,

    /// Send matching HTTP requests to an address; can be repeated
    #[arg(short, long, value_name = "ROW")]
    route: Vec<Row>,

    /// Send what goes to a port (or to IP:PORT), whatever its protocol, to an address; can be repeated
    #[arg(long, value_name = "[IP:]PORT => IP:PORT", conflicts_with = "config")]
    local: Vec<LocalRow>,

    /// Run the command as this user
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,

    /// Write a line to standard error for each request and connection; twice: also what the agent does
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// The agent or the command does not start.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        log::start(if self.verbose > 1 { "debug" } else { "warn" })?;
        // Before any thread: they all inherit it.
        let signals = child::block_signals()?;
        // The agent raises it for itself; the command gets what we got.
        let open_files = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        let cgroup = ExecCgroup::create()?;
        let options = ServerOptions {
            concurrency: None,
            cgroup_override: Some(cgroup.path().to_owned()),
            ports: Ports::Ephemeral,
            signals: SignalHandling::Caller,
        };
        let Agent { server, sinks } = Agent::start(self.source(), options, Interface::Off, Some(self.adjust()))?;
        if server.shared().snapshot.load().intercept.is_none() {
            bail!(
                "the configuration intercepts nothing: a listener needs `use_original_dst: true`, or the kernel another proxy in `intercept.redirect_to`"
            );
        }
        let running = server.start()?;
        let status = Child::spawn(&cgroup, self.user.as_deref(), open_files, &self.command)
            .and_then(|child| child.wait(&signals));
        let stopped = running.stop();
        sinks.flush(FLUSH_TIMEOUT);
        stopped?;
        Ok(ExitCode::from(status?))
    }

    fn source(&self) -> Source {
        match &self.config {
            Some(file) => Source::File(file.clone()),
            None => Source::Inline { name: "--route".to_owned(), text: row::configuration(&self.route, &self.local) },
        }
    }

    /// The command's output is its own: records go to standard error, and only when they are asked for.
    fn adjust(&self) -> Adjust {
        let verbose = self.verbose > 0;
        Box::new(move |snapshot: &mut Snapshot| {
            let stderr = AccessLog { path: "/dev/stderr".into(), format: AccessLogFormat::Text };
            snapshot.access_log = verbose.then_some(stderr).into_iter().collect();
            snapshot.drain_timeout = snapshot.drain_timeout.min(DRAIN_TIMEOUT);
            // Nothing is bound there: it may be the address of an agent that is, which the command's connections meet.
            (snapshot.admin.prometheus, snapshot.admin.readiness) = (None, None);
        })
    }
}
