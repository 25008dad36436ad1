//! The agent as a whole: [`Server::with_loader`] binds and attaches and can fail, [`Server::run`] serves until it is stopped.
//!
//! Before: the command line. After: [`crate::pipeline`], on the workers. The main thread runs what is not the data path:
//! signals, reload, heartbeat, clusters' health and discovery.

mod accept;
mod bind;
mod cni;
mod host;
mod interception;
mod life;
mod notify;
mod pods;
mod reload;
mod tidy;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::manager::ClusterManager;
use crate::dns::{DnsError, DnsThread};
use crate::drain::{self, DrainControl};
use crate::kernel::KernelError;
use crate::listener::{Listener, TrafficDirection};
use crate::snapshot::{Runtime, Snapshot};
use crate::telemetry::record::RecordSink;
use crate::worker::{OwnListeners, Shared};
use crate::workload::cni::{CniAdd, CniAnswer, CniDel};

pub use bind::{BindError, Ports};
pub(crate) use pods::decide;

use accept::WorkerThread;
use bind::{Bound, InboundSockets, bind};
use interception::Attached;
use pods::Pods;

/// Commands that wait for the main thread. They come from people; more at once are a mistake.
const COMMANDS_MAX: usize = 16;

/// How the agent is run.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Workers; one per CPU that the process may use by default.
    pub concurrency: Option<usize>,
    /// Intercept this cgroup (an absolute path) instead of the configured one.
    pub cgroup_override: Option<PathBuf>,
    /// Which ports listeners are bound to.
    pub ports: Ports,
    /// Who handles signals.
    pub signals: SignalHandling,
}

/// Who handles SIGTERM, SIGINT and SIGHUP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignalHandling {
    /// The server.
    #[default]
    Server,
    /// Whoever runs the server in the background of a process of its own.
    Caller,
}

/// Makes a snapshot, with the version it is given. Called once at the start and for every reload.
pub type Loader = Arc<dyn Fn(&Runtime, u64) -> Result<Snapshot, LoadError> + Send + Sync>;

/// All that is wrong with a configuration, one problem a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// Why the agent does not start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// See the text.
    #[error("{0}")]
    Config(LoadError),
    /// See the source.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// See the source.
    #[error("intercepting connections")]
    Kernel(#[from] KernelError),
    /// See the text.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// Threads, runtimes, signal handlers.
    #[error("{doing}")]
    Start {
        /// What.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The thread that ran the server is gone.
    #[error("the agent's main thread panicked")]
    Panicked,
}

impl ServerError {
    fn start(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Start { doing, source }
    }
}

/// What the main thread is asked to do.
#[derive(Debug)]
enum Command {
    Reload(oneshot::Sender<Result<u64, String>>),
    CniAdd(CniAdd, oneshot::Sender<Result<CniAnswer, String>>),
    CniDel(CniDel, oneshot::Sender<Result<(), String>>),
    DrainListeners,
    Stop,
    Kill,
}

/// Steers a server from anywhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Command>);

impl Control {
    /// Loads the configuration again, as SIGHUP does. Returns its version.
    ///
    /// # Errors
    /// All that is wrong with it, one problem a line; the old one stays in force.
    pub async fn reload(&self) -> Result<u64, String> {
        self.ask(Command::Reload).await
    }

    /// Enrols a pod that is being made; answers when that is done, or is not to be.
    ///
    /// # Errors
    /// Why the agent cannot do it now.
    pub async fn cni_add(&self, pod: CniAdd) -> Result<CniAnswer, String> {
        self.ask(|answer| Command::CniAdd(pod, answer)).await
    }

    /// Lets a pod go; answers when that is done.
    ///
    /// # Errors
    /// Why the agent cannot do it now.
    pub async fn cni_del(&self, pod: CniDel) -> Result<(), String> {
        self.ask(|answer| Command::CniDel(pod, answer)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Command) -> Result<T, String> {
        let (sender, answer) = oneshot::channel();
        self.0.send(command(sender)).await.map_err(|_| shutting_down())?;
        answer.await.map_err(|_| shutting_down())?
    }

    /// Stops redirecting and accepting; what is open is served on, until the agent is stopped.
    pub fn drain_listeners(&self) {
        self.send(Command::DrainListeners);
    }

    /// Drains and ends, as SIGTERM does.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    /// Ends at once, as a second SIGTERM does.
    pub fn kill(&self) {
        self.send(Command::Kill);
    }

    fn send(&self, command: Command) {
        // It fails when the server has ended, or is told so sixteen times already.
        let _ = self.0.try_send(command);
    }
}

fn shutting_down() -> String {
    "the agent is shutting down".to_owned()
}

/// An agent that is bound and attached.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    serving: Serving,
}

/// A server that runs on a thread of its own, also when this is dropped: only [`Self::stop`] and [`Self::kill`] end it.
pub struct Running {
    shared: Arc<Shared>,
    control: Control,
    listeners: Vec<(SocketAddr, Vec<SocketAddr>)>,
    thread: JoinHandle<Result<(), ServerError>>,
}

/// What the main thread holds.
struct Serving {
    shared: Arc<Shared>,
    loader: Loader,
    ports: Ports,
    signals: SignalHandling,
    workers: Vec<WorkerThread>,
    /// By configured address.
    bound: BTreeMap<SocketAddr, Vec<SocketAddr>>,
    /// Handles on the sockets of the inbound listener.
    inbound: InboundSockets,
    attached: Option<Attached>,
    dns: Option<DnsThread>,
    clusters: ClusterManager,
    pods: Pods,
    drain: DrainControl,
    service: notify::ServiceManager,
    control: Control,
    commands: mpsc::Receiver<Command>,
}

impl Server {
    /// Loads the configuration through `loader`, binds all listeners, starts the workers and attaches the kernel's side,
    /// in this order: nothing is redirected before there is somebody to accept it.
    ///
    /// # Errors
    /// Each says what to do about it; nothing stays bound or attached.
    pub fn with_loader(
        options: ServerOptions,
        loader: Loader,
        runtime: Runtime,
        records: Arc<dyn RecordSink>,
    ) -> Result<Self, ServerError> {
        raise_file_limit();
        let snapshot = Arc::new(loader(&runtime, 1).map_err(ServerError::Config)?);
        let count = options.concurrency.unwrap_or_else(available_cpus).max(1);
        let bound: Vec<Bound> = snapshot
            .listeners
            .iter()
            .filter_map(|listener| bind(listener, count, options.ports).transpose())
            .collect::<Result<_, _>>()?;

        let (drain_control, drain) = drain::channel();
        // It proves that it turns as the workers do.
        let dns_threads = usize::from(snapshot.dns.is_some() && snapshot.intercept.is_some());
        let shared = Arc::new(Shared::new(snapshot, runtime, records, drain, count + dns_threads));
        shared.runtime.stats.server.concurrency.set(i64::try_from(count).unwrap_or(i64::MAX));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ServerError::start("starting the main runtime"))?;
        let workers = (0..count)
            .map(|index| WorkerThread::start(index, shared.clone()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(ServerError::start("starting a worker"))?;
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let mut serving = Serving {
            clusters: ClusterManager::new(&shared),
            pods: Pods::new(),
            shared,
            loader,
            ports: options.ports,
            signals: options.signals,
            workers,
            bound: BTreeMap::new(),
            inbound: InboundSockets::default(),
            attached: None,
            dns: None,
            drain: drain_control,
            service: notify::ServiceManager::none(),
            control: Control(sender),
            commands,
        };
        runtime.block_on(serving.begin(bound));
        serving.attach(options.cgroup_override.as_deref(), runtime.handle())?;
        runtime.block_on(serving.answer_questions())?;
        runtime.block_on(serving.enrol_present());
        serving.shared.set_live();
        Ok(Self { runtime, serving })
    }

    /// What the workers share, for the admin interface.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.serving.shared
    }

    /// Steers the server.
    pub fn control(&self) -> Control {
        self.serving.control.clone()
    }

    /// The runtime of the main thread: what is spawned there runs as long as the server does.
    pub fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }

    /// The addresses that the listener configured at `address` is bound to; empty when it has no socket.
    pub fn bound(&self, address: SocketAddr) -> &[SocketAddr] {
        self.serving.bound.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Serves until a signal or [`Control`] stops it.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn run(self) -> Result<(), ServerError> {
        let Self { runtime, serving } = self;
        runtime.block_on(serving.run())
    }

    /// Serves on a thread of its own.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(self) -> Result<Running, ServerError> {
        let (shared, control) = (self.shared().clone(), self.control());
        let listeners = self.serving.bound.iter().map(|(key, addresses)| (*key, addresses.clone())).collect();
        let thread = std::thread::Builder::new()
            .name("waylay-main".to_owned())
            .spawn(move || self.run())
            .map_err(ServerError::start("starting the main thread"))?;
        Ok(Running { shared, control, listeners, thread })
    }
}

impl Running {
    /// What the workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Steers the server.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The addresses that the listener configured at `address` was bound to at the start.
    pub fn bound(&self, address: SocketAddr) -> &[SocketAddr] {
        let found = self.listeners.iter().find(|(key, _)| *key == address);
        found.map_or(&[], |(_, addresses)| addresses.as_slice())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// What the server ended with.
    pub fn wait(self) -> Result<(), ServerError> {
        self.thread.join().unwrap_or(Err(ServerError::Panicked))
    }

    /// Drains, ends, and waits for it.
    ///
    /// # Errors
    /// What the server ended with.
    pub fn stop(self) -> Result<(), ServerError> {
        self.control.stop();
        self.wait()
    }

    /// Ends at once, and waits for it.
    ///
    /// # Errors
    /// What the server ended with.
    pub fn kill(self) -> Result<(), ServerError> {
        self.control.kill();
        self.wait()
    }
}

impl Serving {
    /// Clusters get their endpoints, then workers accept.
    async fn begin(&mut self, bound: Vec<Bound>) {
        let snapshot = self.shared.snapshot.load_full();
        self.clusters.adopt(&snapshot).await;
        for bound in bound {
            self.listen(bound).await;
        }
    }

    /// Attaches the kernel's side, if anything is to be intercepted.
    fn attach(&mut self, cgroup_override: Option<&Path>, runtime: &Handle) -> Result<(), ServerError> {
        let snapshot = self.shared.snapshot.load_full();
        let Some(intercept) = &snapshot.intercept else {
            self.shared.set_kernel(None);
            return Ok(());
        };
        let by_key = |listener: &Arc<Listener>| self.bound.get(&listener.address).map(Vec::as_slice);
        let bound = snapshot.listeners.iter().filter_map(|listener| Some((&**listener, by_key(listener)?)));
        let options =
            interception::options(intercept, cgroup_override, &snapshot.admin, snapshot.dns.is_some(), bound)?;
        let attached = Attached::new(&options, &self.shared, runtime)?;
        if intercept.host && intercept.inbound.is_some() {
            host::take_inbound(&attached, intercept, &self.inbound, &self.own_ports())?;
        }
        self.attached = Some(attached);
        Ok(())
    }

    /// Answers the DNS questions of the agent's own network namespace, if any are to be answered.
    async fn answer_questions(&mut self) -> Result<(), ServerError> {
        let snapshot = self.shared.snapshot.load_full();
        let (Some(_), Some(intercept)) = (&snapshot.dns, &snapshot.intercept) else { return Ok(()) };
        let thread = DnsThread::start(self.workers.len(), self.shared.clone(), self.ports)
            .map_err(ServerError::start("starting the thread for DNS"))?;
        let thread = self.dns.insert(thread);
        if intercept.host {
            thread.listener().open(&self.shared.host).await?;
        }
        Ok(())
    }

    /// All workers accept from the sockets.
    async fn listen(&mut self, bound: Bound) {
        tracing::info!(addresses = ?bound.addresses, "listening");
        self.bound.insert(bound.key, bound.addresses);
        self.publish_own_listeners();
        self.keep_inbound(&bound.sockets, bound.key);
        for (worker, sockets) in self.workers.iter().zip(bound.sockets) {
            worker.listen(self.shared.host.clone(), bound.key, sockets).await;
        }
    }

    /// Keeps handles on the sockets of the inbound listener, if these are its.
    fn keep_inbound(&mut self, sockets: &[Vec<TcpListener>], key: SocketAddr) {
        let snapshot = self.shared.snapshot.load();
        let is_inbound = |listener: &&Arc<Listener>| listener.direction == TrafficDirection::Inbound;
        if snapshot.listeners.bound_at(key).filter(is_inbound).is_none() {
            return;
        }
        match InboundSockets::of(sockets) {
            Ok(handles) => self.inbound = handles,
            Err(error) => tracing::error!(%error, "what arrives at this machine cannot be taken"),
        }
    }

    /// No worker accepts for the listener any more.
    async fn close(&mut self, key: SocketAddr) {
        for worker in &self.workers {
            worker.close(&self.shared.host, key).await;
        }
        self.bound.remove(&key);
        self.publish_own_listeners();
    }

    fn publish_own_listeners(&self) {
        let addresses = self.bound.values().flatten().copied().collect();
        self.shared.own_listeners.store(Arc::new(OwnListeners::new(addresses)));
    }
}

/// CPUs that the process may use.
fn available_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Every connection takes two file descriptors. Asks for as many as the hard limit allows; less is no reason to fail.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => tracing::warn!(%error, "the limit of file descriptors stays as it is"),
    }
}

/// What is written after the last connection is closed by force: its record.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(1);
