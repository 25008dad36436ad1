//! Keeps asking the container runtimes of this machine what runs, and says so whenever it has changed.
//!
//! Before: the configuration names the runtimes, or [`WELL_KNOWN`] does. After: whoever enrols workloads. The list is
//! the truth; events only say when to list again, and the poll finds what no event told. A runtime that does not answer
//! keeps its workloads: pods outlive a restart of containerd.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Workload;
use super::runtime::{self, Protocol, Runtime, RuntimeAddress, RuntimeError};

/// Where runtimes listen unless they are told otherwise: containerd and CRI-O, containerd of k3s and RKE2, of k0s and of
/// MicroK8s, cri-dockerd; docker, podman as root.
pub const WELL_KNOWN: [(Protocol, &str); 8] = [
    (Protocol::Cri, "/run/containerd/containerd.sock"),
    (Protocol::Cri, "/run/crio/crio.sock"),
    (Protocol::Cri, "/run/k3s/containerd/containerd.sock"),
    (Protocol::Cri, "/run/k0s/containerd.sock"),
    (Protocol::Cri, "/var/snap/microk8s/common/run/containerd.sock"),
    (Protocol::Cri, "/run/cri-dockerd.sock"),
    (Protocol::Docker, "/run/docker.sock"),
    (Protocol::Docker, "/run/podman/podman.sock"),
];

/// When to list again after a hint: containerd tells that a sandbox's process runs before it lists the sandbox as ready,
/// and some tell of nothing after that. Each follows the list before it.
const AFTER_HINT: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
];

/// Shortest pause between two lists, however many hints there are.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// The pause is this many times as long as the list took, so that a busy runtime is not kept busy by hints, ...
const PAUSE_PER_LIST: u32 = 4;

/// ... up to this: one that takes long may have waited for a single container.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// First pause after a failure; doubled with each, up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(250);

/// A runtime that comes back is seen at the latest after this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What the runtimes told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Of all runtimes, by namespace, name and id. One that has not changed is the same `Arc` as before.
    pub workloads: Vec<Arc<Workload>>,
    /// What is wrong, a sentence for each runtime concerned, which it names.
    pub problems: Vec<String>,
    /// Whether each runtime was asked at least once, with whatever result: what ran before is in the list.
    pub complete: bool,
}

/// The tasks that ask; they end when it is dropped.
#[derive(Debug)]
pub struct Discovery {
    _tasks: JoinSet<()>,
}

impl Discovery {
    /// Starts to ask `runtimes`, at the latest every `poll_interval`; none at all stands for those of [`WELL_KNOWN`]
    /// that are there, now or later. The receiver gets a new value whenever something has changed.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(runtimes: Vec<RuntimeAddress>, poll_interval: Duration) -> (Self, watch::Receiver<Found>) {
        let (sender, receiver) = watch::channel(Found::default());
        let board = Arc::new(Board { state: Mutex::default(), sender });
        let mut tasks = JoinSet::new();
        if runtimes.is_empty() {
            let candidates = WELL_KNOWN.map(|(protocol, path)| RuntimeAddress::new(protocol, path));
            tasks.spawn(look_for(candidates.into(), poll_interval, board));
        } else {
            board.expect(&runtimes);
            for address in runtimes {
                tasks.spawn(keep_asking(address, Named::ByUser, poll_interval, board.clone()));
            }
        }
        (Self { _tasks: tasks }, receiver)
    }
}

/// How we know of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    ByUser,
    /// Its socket is at a usual place; it may not be meant for us.
    ByItsPlace,
}

/// Asks those of `candidates` whose sockets are there, and looks for the others again and again.
async fn look_for(mut candidates: Vec<RuntimeAddress>, poll_interval: Duration, board: Arc<Board>) {
    let mut tasks = JoinSet::new();
    loop {
        let there: Vec<_> = candidates.extract_if(.., |address| address.socket().exists()).collect();
        board.expect(&there);
        for address in there {
            tracing::info!("found the container runtime {address}");
            tasks.spawn(keep_asking(address, Named::ByItsPlace, poll_interval, board.clone()));
        }
        board.tell_none(tasks.is_empty().then_some(&candidates));
        sleep(poll_interval).await;
    }
}

/// Asks one runtime for ever.
async fn keep_asking(address: RuntimeAddress, named: Named, poll_interval: Duration, board: Arc<Board>) {
    let changed = Notify::new();
    let runtime = Runtime::new(&address);
    // As after a hint: the subscription to events begins a moment after the first list.
    let asking = Asking { runtime, poll_interval, named, failures: 0, since_hint: 0 };
    tokio::join!(asking.run(&address, &changed, &board), runtime::hints(&address, &changed));
}

/// Where the loop over one runtime stands.
struct Asking {
    runtime: Runtime,
    poll_interval: Duration,
    named: Named,
    /// In a row.
    failures: u32,
    /// How many lists were made since the last hint.
    since_hint: usize,
}

impl Asking {
    async fn run(mut self, address: &RuntimeAddress, changed: &Notify, board: &Board) {
        loop {
            let started = Instant::now();
            let told = self.list(address).await;
            board.tell(address, told);
            // Hints that come meanwhile are kept, as one.
            sleep((started.elapsed() * PAUSE_PER_LIST).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
            self.wait(changed).await;
        }
    }

    /// One list; what is wrong if there is none.
    async fn list(&mut self, address: &RuntimeAddress) -> Result<Vec<Workload>, String> {
        match self.runtime.list().await {
            Ok(workloads) => {
                if std::mem::take(&mut self.failures) > 0 {
                    tracing::info!("the container runtime {address} answers again");
                }
                Ok(workloads)
            }
            // Docker's containerd, for one: its pods would be docker's containers.
            Err(RuntimeError::NoCri) if self.named == Named::ByItsPlace => Ok(Vec::new()),
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                // Whoever hears of problems logs them, each once.
                Err(format!(
                    "the container runtime {address}: {}; what it told before is kept, and it is asked again",
                    with_causes(&error)
                ))
            }
        }
    }

    /// Until it is time for the next list.
    async fn wait(&mut self, changed: &Notify) {
        let pause = if self.failures > 0 {
            (FIRST_BACKOFF * 2_u32.saturating_pow(self.failures - 1).min(1 << 10)).min(LONGEST_BACKOFF)
        } else {
            AFTER_HINT.get(self.since_hint).copied().unwrap_or(self.poll_interval).min(self.poll_interval)
        };
        let hinted = timeout(pause, changed.notified()).await.is_ok();
        self.since_hint = if hinted { 0 } else { self.since_hint.saturating_add(1) };
    }
}

/// The error and what led to it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What each runtime told last, and who wants to know.
#[derive(Debug)]
struct Board {
    state: Mutex<State>,
    sender: watch::Sender<Found>,
}

#[derive(Debug, Default)]
struct State {
    runtimes: BTreeMap<RuntimeAddress, Told>,
    /// That there is no runtime at all.
    none: Option<String>,
}

#[derive(Debug, Default)]
struct Told {
    workloads: Vec<Arc<Workload>>,
    problem: Option<String>,
    asked: bool,
}

impl Board {
    /// These will be asked.
    fn expect(&self, addresses: &[RuntimeAddress]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            state.runtimes.entry(address.clone()).or_default();
        }
    }

    /// One of them was asked.
    fn tell(&self, address: &RuntimeAddress, told: Result<Vec<Workload>, String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.runtimes.entry(address.clone()).or_default();
        known.asked = true;
        match told {
            Ok(workloads) => {
                known.problem = None;
                known.workloads = keep_unchanged(&known.workloads, workloads);
            }
            Err(problem) => known.problem = Some(problem),
        }
        self.publish(&state);
    }

    /// None of `candidates` is there, or one is.
    fn tell_none(&self, candidates: Option<&Vec<RuntimeAddress>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.none = candidates.map(|candidates| {
            let paths: Vec<_> = candidates.iter().map(|address| address.socket().display().to_string()).collect();
            let paths = paths.join(", ");
            format!("no container runtime was found: name yours in intercept.pods.runtimes (looked for {paths})")
        });
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        let runtimes = || state.runtimes.values();
        let mut workloads: Vec<_> = runtimes().flat_map(|told| told.workloads.iter().cloned()).collect();
        workloads.sort_by(|a, b| (&a.namespace, &a.name, &a.id).cmp(&(&b.namespace, &b.name, &b.id)));
        // One runtime behind two sockets.
        workloads.dedup_by(|a, b| a.id == b.id);
        let problems = state.none.iter().chain(runtimes().filter_map(|told| told.problem.as_ref())).cloned().collect();
        let found = Found { workloads, problems, complete: runtimes().all(|told| told.asked) };
        self.sender.send_if_modified(|last| {
            let modified = *last != found;
            *last = found;
            modified
        });
    }
}

/// `new`, with the `Arc`s of those that are the same as in `old`.
fn keep_unchanged(old: &[Arc<Workload>], new: Vec<Workload>) -> Vec<Arc<Workload>> {
    let old: BTreeMap<_, _> = old.iter().map(|workload| (&workload.id, workload)).collect();
    let arc = |workload: Workload| match old.get(&workload.id) {
        Some(old) if ***old == workload => Arc::clone(old),
        _ => Arc::new(workload),
    };
    new.into_iter().map(arc).collect()
}

#[cfg(test)]
mod tests;
