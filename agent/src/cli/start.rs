//! Puts the agent together: configuration, access logs, admin interface, server. `run` and `exec` start here.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

use super::check;
use crate::admin::{AdminServer, AdminSocketOption, State};
use crate::config::watch::Watcher;
use crate::config::{self, Loaded, Source};
use crate::server::{LoadError, Loader, Server, ServerOptions};
use crate::snapshot::{Runtime, Snapshot};
use crate::telemetry::sink::{FLUSH_TIMEOUT, Sinks};

/// Changes a configuration after it is loaded, for an agent that is not run from it as it stands.
pub type Adjust = Box<dyn Fn(&mut Snapshot) + Send + Sync>;

/// Whether the agent answers for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Admin socket, Prometheus, readiness.
    On(AdminSocketOption),
    /// Nothing of it.
    Off,
}

/// An agent that is bound and attached, and not yet served.
pub struct Agent {
    /// The server.
    pub server: Server,
    /// Its access logs.
    pub sinks: Arc<Sinks>,
}

impl Agent {
    /// Loads `source`, binds everything, attaches.
    ///
    /// # Errors
    /// Each says what to do about it; nothing stays bound or attached.
    pub fn start(
        source: Source,
        options: ServerOptions,
        interface: Interface,
        adjust: Option<Adjust>,
    ) -> anyhow::Result<Self> {
        let runtime = Runtime::default();
        let sinks = Sinks::open(&[], runtime.stats.clone())?;
        let admin = Arc::new(Mutex::new(None));
        let loader = loader(source, sinks.clone(), admin.clone(), interface, adjust);
        let server = Server::with_loader(options, loader, runtime, sinks.clone())?;
        let bound = admin.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(admin) = bound {
            let state = State::new(server.shared().clone(), sinks.clone(), server.control());
            server.runtime().spawn(AdminServer::run(admin, state));
        }
        Ok(Self { server, sinks })
    }

    /// Loads the configuration again whenever `watcher` sees the file change.
    pub fn reload_on_change(&self, mut watcher: Watcher) {
        let control = self.server.control();
        self.server.runtime().spawn(async move {
            loop {
                watcher.changed().await;
                // The server has logged what is wrong with it.
                let _ = control.reload().await;
            }
        });
    }

    /// Serves until the agent is stopped; everything is written when this returns.
    ///
    /// # Errors
    /// Those of the server.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { server, sinks } = self;
        reopen_on_sigusr1(&server, sinks.clone())?;
        let served = server.run();
        if !sinks.flush(FLUSH_TIMEOUT) {
            tracing::warn!("some access records could not be written in time");
        }
        served.map_err(Into::into)
    }
}

/// Loads and adjusts. The first load also binds the admin interface, so that a second agent is told of the first one
/// before anything is redirected, and opens the access logs.
fn loader(
    source: Source,
    sinks: Arc<Sinks>,
    admin: Arc<Mutex<Option<AdminServer>>>,
    interface: Interface,
    adjust: Option<Adjust>,
) -> Loader {
    Arc::new(move |runtime, version| {
        if version > 1 {
            can_be_read_again(&source)?;
        }
        let loaded = config::load(&source, runtime, version)
            .map_err(|errors| LoadError(errors.to_string().trim_end().into()))?;
        warn(&source, &loaded);
        let mut snapshot = loaded.snapshot;
        if let Some(adjust) = &adjust {
            adjust(&mut snapshot);
        }
        if version == 1 {
            let failed = |error: anyhow::Error| LoadError(format!("{error:#}"));
            if let Interface::On(socket) = &interface {
                let bound = AdminServer::bind(&snapshot.admin, socket).map_err(|error| failed(error.into()))?;
                *admin.lock().unwrap_or_else(PoisonError::into_inner) = Some(bound);
            }
            sinks.replace(&snapshot.access_log).map_err(|error| failed(error.into()))?;
        }
        Ok(snapshot)
    })
}

/// A pipe gives its content once, and opening one waits for a writer: a reload would wait, and all the main thread with it.
fn can_be_read_again(source: &Source) -> Result<(), LoadError> {
    match source {
        Source::File(path) if path.exists() && !path.is_file() => {
            Err(LoadError(format!("{}: is no regular file: it cannot be loaded again", path.display())))
        }
        Source::File(_) | Source::Inline { .. } => Ok(()),
    }
}

/// Logs what is probably not meant so, with its place in the file. The rows of a command line have no places, and the row
/// that follows them for all other requests may well be shadowed.
fn warn(source: &Source, loaded: &Loaded) {
    match source {
        Source::File(_) => check::warnings(&source.name(), loaded).for_each(|warning| tracing::warn!("{warning}")),
        Source::Inline { .. } => loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}")),
    }
}

/// What log rotation sends after it has renamed the files.
fn reopen_on_sigusr1(server: &Server, sinks: Arc<Sinks>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let _on_runtime = server.runtime().enter();
    let mut rotated = signal(SignalKind::user_defined1()).context("installing the handler of SIGUSR1")?;
    server.runtime().spawn(async move {
        while rotated.recv().await.is_some() {
            sinks.reopen();
            tracing::info!("access logs opened anew");
        }
    });
    Ok(())
}
