//! Enrols pods and containers: what the runtimes tell and the configuration wants is made true, one workload at a time.
//!
//! Before: [`crate::workload`], whose discovery tells what runs. After: [`enrolled`], which opens the listening sockets
//! in a workload's network namespace and has the kernel take its connections; workers accept there as they do at home.
//!
//! | a workload | becomes |
//! |---|---|
//! | selected | enrolled: taken from, and served in its own namespace |
//! | not selected any more | retired: what is open is served on, nothing new is taken |
//! | gone | released: what is open is cut, nothing of it is left |

pub(crate) mod decide;
mod enrolled;
mod leaving;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::Serving;
use super::reload::describe;
use crate::kernel::Policy;
use crate::netns::NetnsThread;
use crate::place::Place;
use crate::snapshot::Pods as Settings;
use crate::workload::status::{EnrolmentState, EnrolmentStatus};
use crate::workload::{Decision, Discovery, Found, Workload, Workloads};

use decide::{ENROLS_NO_PODS, Known};
use enrolled::Enrolled;

/// How soon an enrolment that failed is tried again: its cause is most likely somebody's mistake that is being mended.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long the agent is not ready for want of an answer about the pods that are there already.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// How long signals, reloads and the network plugin wait at most while many workloads are enrolled: a single enrolment
/// takes some milliseconds.
const TURN: Duration = Duration::from_millis(50);

/// How often everything is looked at although no runtime told of a change: this node gets another address, from which
/// its probes come then.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long a workload that the network plugin let go is not enrolled again: its runtime lists it until it has ended.
pub(super) const DEPARTING_FOR: Duration = Duration::from_secs(10);

const DRAINING: &str = "the agent is draining";

pub(super) type WorkloadId = Arc<str>;

/// What the main thread knows of the workloads of this node.
pub(super) struct Pods {
    /// Started with the first need.
    thread: Option<NetnsThread>,
    discovery: Option<Running>,
    pub(super) announced: BTreeMap<WorkloadId, Announced>,
    /// Let go by the network plugin; until when they are left alone.
    pub(super) departing: BTreeMap<WorkloadId, Instant>,
    pub(super) members: BTreeMap<WorkloadId, Member>,
    /// There is more to do at once.
    pub(super) unfinished: bool,
    looked: Instant,
    /// Problems told of already.
    problems: BTreeSet<String>,
}

struct Running {
    settings: Settings,
    found: watch::Receiver<Found>,
    _discovery: Discovery,
}

/// Told of by the network plugin, and not by the runtime yet.
pub(super) struct Announced {
    pub(super) workload: Arc<Workload>,
    pub(super) known: Known,
    pub(super) until: Instant,
}

pub(super) struct Member {
    workload: Arc<Workload>,
    pub(super) state: State,
    since: SystemTime,
}

impl Member {
    /// Where its connections are served.
    fn place(&self) -> Option<&Arc<Place>> {
        match &self.state {
            State::Enrolled(enrolled) => Some(&enrolled.place),
            State::Retired { place, .. } | State::Failed { place: Some(place), .. } => Some(place),
            State::Skipped(_) | State::Failed { place: None, .. } => None,
        }
    }

    /// Whether it was started anew, in another network namespace, under the same id: docker's containers are.
    fn has_moved(&self, now: &Workload) -> bool {
        let known = |workload: &Workload| (workload.pid, workload.netns_path.clone());
        let announced = self.workload.pid.is_none();
        !announced && known(&self.workload) != known(now)
    }
}

pub(super) enum State {
    Skipped(String),
    Failed {
        reason: String,
        retry_at: Instant,
        /// Serves what is open since it was enrolled before.
        place: Option<Arc<Place>>,
    },
    Enrolled(Box<Enrolled>),
    /// Serves what is open.
    Retired {
        place: Arc<Place>,
        reason: String,
    },
}

impl Pods {
    pub(super) fn new() -> Self {
        Self {
            thread: None,
            discovery: None,
            announced: BTreeMap::new(),
            departing: BTreeMap::new(),
            members: BTreeMap::new(),
            unfinished: false,
            looked: Instant::now(),
            problems: BTreeSet::new(),
        }
    }

    /// Resolves when there is something to do. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.unfinished {
            return;
        }
        let due = self.next_due();
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let told = async {
            let Some(running) = &mut self.discovery else { return std::future::pending().await };
            // It ends only when discovery is replaced.
            if running.found.changed().await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = told => {}
            () = timer => {}
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let retries = self.members.values().filter_map(|member| match member.state {
            State::Failed { retry_at, .. } => Some(retry_at),
            _ => None,
        });
        let announced = self.announced.values().map(|announced| announced.until);
        let look = self.discovery.as_ref().map(|_| self.looked + LOOK_AGAIN);
        retries.chain(announced).chain(self.departing.values().copied()).chain(look).min()
    }

    /// Asks the runtimes of `settings`, and nobody without; what is the same goes on.
    fn follow(&mut self, settings: Option<&Settings>) {
        let same = self.discovery.as_ref().is_some_and(|running| {
            settings.is_some_and(|new| {
                running.settings.runtimes == new.runtimes && running.settings.poll_interval == new.poll_interval
            })
        });
        if same {
            return;
        }
        self.discovery = settings.map(|settings| {
            let (discovery, found) = Discovery::start(settings.runtimes.clone(), settings.poll_interval);
            Running { settings: settings.clone(), found, _discovery: discovery }
        });
    }

    /// What there is to decide on: all that runtimes list, and what was announced and they do not list yet; and whether
    /// all of them have answered: before, nothing can be said of what is gone.
    pub(super) fn listed(&mut self) -> (bool, BTreeMap<WorkloadId, Arc<Workload>>) {
        let mut all = BTreeMap::new();
        let mut complete = false;
        if let Some(running) = &mut self.discovery {
            let found = running.found.borrow_and_update();
            complete = found.complete;
            all.extend(found.workloads.iter().map(|workload| (workload.id.clone(), workload.clone())));
            let problems: BTreeSet<String> = found.problems.iter().cloned().collect();
            for problem in problems.difference(&self.problems) {
                tracing::warn!("{problem}");
            }
            self.problems = problems;
        }
        let now = Instant::now();
        self.announced.retain(|id, announced| announced.until > now && !all.contains_key(id));
        for (id, announced) in &self.announced {
            all.insert(id.clone(), announced.workload.clone());
        }
        self.departing.retain(|_, until| *until > now);
        all.retain(|id, _| !self.departing.contains_key(id));
        (complete, all)
    }

    fn thread(&mut self) -> std::io::Result<NetnsThread> {
        match &self.thread {
            Some(thread) => Ok(thread.clone()),
            None => Ok(self.thread.insert(NetnsThread::start()?).clone()),
        }
    }

    /// Whoever is enrolled in the namespace with this cookie already.
    fn holder(&self, cookie: u64) -> Option<&Member> {
        self.members.values().find(|member| match &member.state {
            State::Enrolled(enrolled) => enrolled.place.id() == cookie,
            _ => false,
        })
    }
}

fn skip(reason: &str) -> Decision {
    Decision::Skip { reason: reason.to_owned(), unexpected: false }
}

impl Serving {
    /// Enrols what is there at the start, before the agent says that it is ready. A runtime that does not answer is not
    /// waited for.
    pub(super) async fn enrol_present(&mut self) {
        let snapshot = self.shared.snapshot.load_full();
        let settings = snapshot.intercept.as_ref().and_then(|intercept| intercept.pods.as_ref());
        self.pods.follow(settings);
        if let Some(running) = &mut self.pods.discovery {
            let all_answered = running.found.wait_for(|found| found.complete);
            if tokio::time::timeout(FIRST_ANSWER, all_answered).await.is_err() {
                tracing::warn!("not every container runtime has answered yet: starting without their pods");
            }
        }
        self.sync_pods().await;
    }

    /// Makes true what the runtimes tell and the configuration wants: all of it.
    pub(super) async fn sync_pods(&mut self) {
        self.sync_pods_for(None).await;
    }

    /// The same for one turn of the main thread; [`Pods::changed`] resolves at once if more is to be done.
    pub(super) async fn sync_some_pods(&mut self) {
        self.sync_pods_for(Some(TURN)).await;
    }

    async fn sync_pods_for(&mut self, turn: Option<Duration>) {
        let started = Instant::now();
        let snapshot = self.shared.snapshot.load_full();
        self.pods.follow(snapshot.intercept.as_ref().and_then(|intercept| intercept.pods.as_ref()));
        (self.pods.unfinished, self.pods.looked) = (false, started);
        let (complete, listed) = self.pods.listed();
        if self.pods.discovery.is_none() {
            self.leave_alone_all().await;
        } else if complete {
            let gone: Vec<_> = self.pods.members.keys().filter(|id| !listed.contains_key(*id)).cloned().collect();
            for id in gone {
                self.release(&id).await;
            }
        }
        let node = decide::node_addresses();
        for (id, workload) in listed {
            if turn.is_some_and(|turn| started.elapsed() > turn) {
                self.pods.unfinished = true;
                break;
            }
            if self.pods.members.get(&id).is_some_and(|member| member.has_moved(&workload)) {
                self.release(&id).await;
            }
            self.sync_pod(id, workload, &node).await;
        }
        self.publish_pods();
    }

    /// Makes it true for one workload. `node` is this node's addresses.
    pub(super) async fn sync_pod(&mut self, id: WorkloadId, workload: Arc<Workload>, node: &[IpAddr]) {
        let snapshot = self.shared.snapshot.load_full();
        let intercept = snapshot.intercept.as_ref().filter(|_| self.attached.is_some());
        let decision = match (intercept, intercept.and_then(|intercept| intercept.pods.as_ref())) {
            _ if self.shared.state() == crate::worker::State::Draining => skip(DRAINING),
            (Some(intercept), Some(pods)) => {
                let known = self.pods.announced.get(&id).map_or(Known::Whole, |announced| announced.known);
                decide::decide((&workload, known), (intercept, pods), node, &self.own_ports())
            }
            _ => skip(ENROLS_NO_PODS),
        };
        self.settle(id, workload, decision).await;
    }

    /// Brings one workload to what was decided.
    async fn settle(&mut self, id: WorkloadId, workload: Arc<Workload>, decision: Decision) {
        let member = self.pods.members.remove(&id);
        let since = member.as_ref().map_or_else(SystemTime::now, |member| member.since);
        let (state, since) = match (decision, member.map(|member| member.state)) {
            (Decision::Enrol { outbound, inbound }, Some(State::Enrolled(mut enrolled))) => {
                enrolled.place.rename(workload.clone());
                if let Err(error) = self.change_policies(&mut enrolled, outbound, inbound) {
                    let error = describe(&error);
                    tracing::error!(pod = %workload, "its new policy cannot be put in force, the old one stays: {error}");
                }
                (State::Enrolled(enrolled), since)
            }
            (Decision::Enrol { .. }, Some(State::Failed { reason, retry_at, place })) if retry_at > Instant::now() => {
                (State::Failed { reason, retry_at, place }, since)
            }
            (Decision::Enrol { outbound, inbound }, before) => {
                (self.try_enrol(&workload, before, (outbound, inbound)).await, SystemTime::now())
            }
            (Decision::Skip { reason, .. }, Some(State::Enrolled(enrolled))) => {
                tracing::info!(pod = %workload, "not enrolled any more: {reason}");
                let place = self.retire(*enrolled).await;
                (State::Retired { place, reason }, SystemTime::now())
            }
            (
                Decision::Skip { reason, .. },
                Some(State::Retired { place, .. } | State::Failed { place: Some(place), .. }),
            ) => (State::Retired { place, reason }, since),
            (Decision::Skip { reason, unexpected }, before) => {
                let told = matches!(&before, Some(State::Skipped(old)) if *old == reason);
                if unexpected && !told {
                    tracing::warn!(pod = %workload, "not enrolled: {reason}");
                }
                (State::Skipped(reason), since)
            }
        };
        self.pods.members.insert(id, Member { workload, state, since });
    }

    async fn try_enrol(
        &mut self,
        workload: &Arc<Workload>,
        before: Option<State>,
        policies: (Policy, Option<Policy>),
    ) -> State {
        let (place, told) = match before {
            Some(State::Retired { place, .. }) => (Some(place), None),
            Some(State::Failed { reason, place, .. }) => (place, Some(reason)),
            _ => (None, None),
        };
        match self.enrol(workload, place.clone(), policies).await {
            Ok(enrolled) => {
                tracing::info!(pod = %workload, "enrolled");
                State::Enrolled(Box::new(enrolled))
            }
            Err(error) => {
                let reason = describe(&error);
                // It is tried again and again.
                if told.as_ref() != Some(&reason) {
                    tracing::error!(pod = %workload, "not enrolled: {reason}");
                }
                self.shared.runtime.stats.server.pod_enrolment_failure.inc();
                State::Failed { reason, retry_at: Instant::now() + RETRY_AFTER, place }
            }
        }
    }

    /// What the data path and the command line see of all this.
    pub(super) fn publish_pods(&self) {
        let members = self.pods.members.values();
        let cookie = |member: &Member| member.place().map(|place| place.id());
        let workloads = Workloads::new(members.clone().map(|member| (member.workload.clone(), cookie(member))));
        self.shared.workloads.store(Arc::new(workloads));
        let statuses: Vec<_> = members.map(|member| self.status(member)).collect();
        let enrolled = statuses
            .iter()
            .filter(|status| matches!(status.state, EnrolmentState::Enrolled | EnrolmentState::Provisional))
            .count();
        self.shared.runtime.stats.server.pods_enrolled.set(i64::try_from(enrolled).unwrap_or(i64::MAX));
        self.shared.enrolments.store(Arc::new(statuses));
    }

    fn status(&self, member: &Member) -> EnrolmentStatus {
        let (state, reason) = match &member.state {
            State::Enrolled(_) if self.pods.announced.contains_key(&member.workload.id) => {
                (EnrolmentState::Provisional, Some("announced by the network plugin".to_owned()))
            }
            State::Enrolled(_) => (EnrolmentState::Enrolled, None),
            State::Skipped(reason) | State::Retired { reason, .. } => (EnrolmentState::Skipped, Some(reason.clone())),
            State::Failed { reason, .. } => (EnrolmentState::Failed, Some(reason.clone())),
        };
        EnrolmentStatus {
            workload: member.workload.clone(),
            state,
            reason,
            netns_cookie: member.place().map(|place| place.id()),
            since: member.since,
            traffic: member.place().and_then(|place| place.traffic().cloned()),
        }
    }

    /// Ports at which the agent answers for itself: never taken on the inbound side.
    pub(super) fn own_ports(&self) -> Vec<u16> {
        let snapshot = self.shared.snapshot.load();
        decide::own_ports(&snapshot.admin, self.bound.values().flatten().copied())
    }
}
