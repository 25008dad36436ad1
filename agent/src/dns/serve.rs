//! The way of a question: read, whose is it, is it known, is it being asked already, ask, answer everybody who waits.
//!
//! Before: [`super::socket`]. After: [`super::cache`] and [`super::upstream`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use tokio::task::{JoinHandle, spawn_local};
use waylay_common::dns::{PORT, Slot};

use super::DnsOptions;
use super::cache::{Cache, Key, Source};
use super::socket::{At, Bound, Listening, QUERY_BYTES, Way};
use super::upstream::Asking;
use super::wire::{self, Query, Refusal, Response};
use crate::place::Place;
use crate::telemetry::stats::DnsStats;
use crate::worker::Shared;

/// Questions of one socket that are taken in one go before others get their turn.
const BATCH: u32 = 64;

/// The pause after a receive that failed: the failure would repeat at once.
const BACKOFF: Duration = Duration::from_millis(50);

/// Answers the questions of all places.
pub struct Responder {
    shared: Arc<Shared>,
    cache: RefCell<Cache>,
    /// Who waits for each question that is being asked.
    flights: RefCell<HashMap<Rc<Key>, Vec<Waiter>>>,
    /// Whose answers the cache holds.
    options: RefCell<Option<Arc<DnsOptions>>>,
    /// Which upstreams they are: counted up whenever they change.
    upstreams: Cell<u64>,
}

/// The sockets of one place.
pub struct Door {
    place: Arc<Place>,
    netns_cookie: u64,
    pending: Cell<usize>,
    /// Whose each slot is, as far as it was asked for: the kernel does not change it while the place is open.
    resolvers: RefCell<HashMap<Slot, IpAddr>>,
    loops: RefCell<Vec<JoinHandle<()>>>,
}

/// A client with a question.
struct Waiter {
    query: Query,
    way: Way,
    socket: Rc<Listening>,
    since: Instant,
    door: Rc<Door>,
    pending: Option<Pending>,
}

impl Waiter {
    /// Whether `other` is the same client with the same question, asked again. The same addresses in another network
    /// namespace are another client.
    fn is_repeated_by(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.socket, &other.socket) && self.way == other.way && self.query.id() == other.query.id()
    }
}

/// Who is to be asked, and for whom the answer is good.
struct Course {
    source: Source,
    place: Arc<Place>,
    resolvers: Vec<SocketAddr>,
    attempts: u32,
}

impl Door {
    /// Receives questions from `bound` until it is closed or the place is gone.
    pub fn open(place: Arc<Place>, netns_cookie: u64, bound: Bound, responder: &Rc<Responder>) -> io::Result<Rc<Self>> {
        let door = Rc::new(Self {
            place,
            netns_cookie,
            pending: Cell::new(0),
            resolvers: RefCell::default(),
            loops: RefCell::default(),
        });
        let sockets = bound.listen()?.into_iter().map(Rc::new);
        let loops = sockets.map(|socket| spawn_local(receive(socket, Rc::downgrade(&door), responder.clone())));
        door.loops.borrow_mut().extend(loops);
        Ok(door)
    }

    /// Closes the sockets. Answers that are on their way still go out.
    pub fn close(&self, responder: &Responder) {
        for receiving in self.loops.borrow_mut().drain(..) {
            receiving.abort();
        }
        let id = self.place.id();
        responder.forget(|source| matches!(source, Source::Asked(place, _) if *place == id));
    }
}

async fn receive(socket: Rc<Listening>, door: std::rc::Weak<Door>, responder: Rc<Responder>) {
    let Some(place) = door.upgrade().map(|door| door.place.clone()) else { return };
    let mut buffer = vec![0; QUERY_BYTES];
    let mut batch = 0;
    loop {
        let received = tokio::select! {
            biased;
            () = place.gone() => return,
            received = socket.receive(&mut buffer) => received,
        };
        let Some(door) = door.upgrade() else { return };
        match received {
            Ok((len, way)) => responder.take(&door, &socket, &buffer[..len], way),
            Err(error) => {
                tracing::debug!(%error, place = place.id(), "receiving DNS questions");
                tokio::time::sleep(BACKOFF).await;
            }
        }
        batch += 1;
        if batch == BATCH {
            batch = 0;
            tokio::task::yield_now().await;
        }
    }
}

impl Responder {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            cache: RefCell::default(),
            flights: RefCell::default(),
            options: RefCell::default(),
            upstreams: Cell::new(0),
        }
    }

    fn stats(&self) -> &DnsStats {
        &self.shared.runtime.stats.dns
    }

    /// A datagram has arrived.
    fn take(self: &Rc<Self>, door: &Rc<Door>, socket: &Rc<Listening>, bytes: &[u8], way: Way) {
        let Some(options) = self.shared.snapshot.load().dns.clone() else { return };
        self.adopt(&options);
        let stats = self.stats();
        stats.queries_total.inc();
        let query = match Query::read(bytes) {
            Ok(query) => query,
            Err(refusal) => {
                stats.queries_malformed.inc();
                if let Refusal::Answer(answer) = refusal
                    && self.is_for_us(door, way.at, &options)
                {
                    self.send(socket, &answer, way);
                }
                return;
            }
        };
        let mut waiter =
            Waiter { query, way, socket: socket.clone(), since: Instant::now(), door: door.clone(), pending: None };
        let Some(course) = self.course(&waiter, &options) else { return };
        let Some(question) = waiter.query.question.clone() else {
            waiter.pending = self.pending(&waiter, &options);
            if waiter.pending.is_some() {
                stats.queries_passed_on.inc();
                spawn_local(self.clone().pass_on(waiter, course, options));
            }
            return;
        };
        let key = Key { source: course.source.clone(), question };
        let found = self.cache.borrow_mut().find(&key, waiter.since);
        if let Some((response, age)) = found {
            stats.cache_hits.inc();
            return self.answer(&waiter, &key, &response, Some(age));
        }
        stats.cache_misses.inc();
        self.fly(waiter, key, course, options);
    }

    /// Takes over another configuration: what others answered is not theirs.
    fn adopt(&self, options: &Arc<DnsOptions>) {
        let mut current = self.options.borrow_mut();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, options)) {
            return;
        }
        if current.as_ref().is_some_and(|current| current.upstreams != options.upstreams) {
            // An answer of theirs that is still under way has the old number: nobody finds it any more.
            self.upstreams.set(self.upstreams.get().wrapping_add(1));
            self.forget(|source| matches!(source, Source::Upstreams(_)));
        }
        self.cache.borrow_mut().shrink(options.cache);
        self.count_entries();
        *current = Some(options.clone());
    }

    fn forget(&self, which: impl Fn(&Source) -> bool) {
        self.cache.borrow_mut().forget(which);
        self.count_entries();
    }

    fn count_entries(&self) {
        self.stats().cache_entries.set(i64::try_from(self.cache.borrow().len()).unwrap_or(i64::MAX));
    }

    fn is_for_us(&self, door: &Door, at: At, options: &DnsOptions) -> bool {
        match at {
            At::Direct(ip) => ip == *options.address.ip(),
            At::Slot(slot) => self.resolver(door, slot).is_some(),
        }
    }

    /// Whose slot it is.
    fn resolver(&self, door: &Door, slot: Slot) -> Option<IpAddr> {
        if let Some(known) = door.resolvers.borrow().get(&slot) {
            return Some(*known);
        }
        let asked = self.shared.kernel()?.asked_resolver(door.netns_cookie, slot);
        let asked = asked.inspect_err(|error| tracing::warn!(%error, "a DNS question is dropped")).ok()??;
        door.resolvers.borrow_mut().insert(slot, asked);
        Some(asked)
    }

    /// Whom to ask. `None`: nobody; what is to be said about it is said.
    fn course(&self, waiter: &Waiter, options: &DnsOptions) -> Option<Course> {
        let to_upstreams = |resolvers: &[SocketAddr]| Course {
            source: Source::Upstreams(self.upstreams.get()),
            place: self.shared.host.clone(),
            resolvers: resolvers.to_vec(),
            attempts: options.attempts,
        };
        let usual = waiter.query.question.is_some();
        match waiter.way.at {
            At::Direct(ip) if ip != *options.address.ip() => {}
            At::Direct(_) => match options.upstreams.as_slice() {
                // Nobody says whom else to ask.
                [] => self.send(&waiter.socket, &waiter.query.refuse(ResponseCode::Refused), waiter.way),
                all if usual => return Some(to_upstreams(all)),
                [first, ..] => return Some(to_upstreams(&[*first])),
            },
            At::Slot(slot) => {
                if let Some(resolver) = self.resolver(&waiter.door, slot) {
                    if usual && !options.upstreams.is_empty() {
                        return Some(to_upstreams(&options.upstreams));
                    }
                    return Some(Course {
                        source: Source::Asked(waiter.door.place.id(), resolver),
                        place: waiter.door.place.clone(),
                        resolvers: vec![SocketAddr::new(resolver, PORT)],
                        attempts: options.attempts,
                    });
                }
            }
        }
        self.stats().queries_not_redirected.inc();
        None
    }

    /// Counts one more question that waits; `None`: there are too many, and the client was told so.
    fn pending(&self, waiter: &Waiter, options: &DnsOptions) -> Option<Pending> {
        let pending = waiter.door.pending.get();
        if pending >= options.max_pending {
            self.stats().pending_overflow.inc();
            self.send(&waiter.socket, &waiter.query.refuse(ResponseCode::ServFail), waiter.way);
            return None;
        }
        waiter.door.pending.set(pending + 1);
        Some(Pending(waiter.door.clone()))
    }

    /// Waits for the answer to a question that is being asked, or asks it.
    fn fly(self: &Rc<Self>, mut waiter: Waiter, key: Key, course: Course, options: Arc<DnsOptions>) {
        let key = Rc::new(key);
        let mut flights = self.flights.borrow_mut();
        if let Some(waiters) = flights.get(&key)
            && waiters.iter().any(|other| other.is_repeated_by(&waiter))
        {
            // The client has lost its patience; one answer is enough.
            return;
        }
        waiter.pending = self.pending(&waiter, &options);
        if waiter.pending.is_none() {
            return;
        }
        if let Some(waiters) = flights.get_mut(&key) {
            return waiters.push(waiter);
        }
        let query = waiter.query.clone();
        flights.insert(key.clone(), vec![waiter]);
        drop(flights);
        spawn_local(self.clone().ask(query, key, course, options));
    }

    async fn ask(self: Rc<Self>, query: Query, key: Rc<Key>, course: Course, options: Arc<DnsOptions>) {
        let answer = self.exchange(&query, &course, &options, options.attempts).await;
        let response = answer.ok().map(|bytes| (query.read_answer(&bytes, &options.keep), wire::short_code(&bytes)));
        let waiters = self.flights.borrow_mut().remove(&key).unwrap_or_default();
        match response {
            Some((Some(response), _)) => {
                let response = Rc::new(response);
                for waiter in &waiters {
                    self.answer(waiter, &key, &response, None);
                }
                if self.may_keep(&key) {
                    self.cache.borrow_mut().store((*key).clone(), response, Instant::now(), options.cache);
                    self.count_entries();
                }
            }
            // Some resolvers say no more than that they did not understand.
            Some((None, code)) if code != ResponseCode::NoError => self.refuse(&waiters, &key, code),
            Some((None, _)) => {
                self.stats().upstream_malformed.inc();
                self.refuse(&waiters, &key, ResponseCode::ServFail);
            }
            None => {
                self.stats().queries_unanswered.inc();
                self.refuse(&waiters, &key, ResponseCode::ServFail);
            }
        }
    }

    /// Whether the resolvers that answered are still those of the configuration.
    fn may_keep(&self, key: &Key) -> bool {
        match key.source {
            Source::Upstreams(number) => number == self.upstreams.get(),
            Source::Asked(..) => true,
        }
    }

    /// What only the resolver that was asked can answer, byte for byte.
    async fn pass_on(self: Rc<Self>, waiter: Waiter, course: Course, options: Arc<DnsOptions>) {
        // The client asks again when it thinks fit: an update must not be made twice by the agent.
        match self.exchange(&waiter.query, &course, &options, 1).await {
            Ok(answer) => self.send(&waiter.socket, &answer, waiter.way),
            Err(_) => self.stats().queries_unanswered.inc(),
        }
    }

    async fn exchange(
        &self,
        query: &Query,
        course: &Course,
        options: &DnsOptions,
        attempts: u32,
    ) -> io::Result<Vec<u8>> {
        let _open = self.shared.drain.open();
        let stats = self.stats();
        let kernel = self.shared.kernel();
        let asking = Asking { place: &course.place, kernel, timeout: options.timeout };
        let failed = |resolver: SocketAddr, error: &io::Error| {
            let timed_out = error.kind() == io::ErrorKind::TimedOut;
            if timed_out {
                stats.upstream_timeout.inc()
            } else {
                stats.upstream_error.inc()
            }
            tracing::debug!(%resolver, %error, "a DNS resolver does not answer");
        };
        let started = Instant::now();
        stats.upstream_queries_total.inc();
        let asked = asking.ask(query, &course.resolvers, attempts.min(course.attempts), failed);
        let answer = tokio::select! {
            answer = asked => answer,
            () = course.place.gone() => Err(io::ErrorKind::NotConnected.into()),
        };
        stats.upstream_time.observe(started.elapsed());
        answer
    }

    fn answer(&self, waiter: &Waiter, key: &Key, response: &Response, age: Option<Duration>) {
        self.send(&waiter.socket, &waiter.query.answer(response, age), waiter.way);
        self.told(waiter, key, response.code(), age.is_some());
    }

    fn refuse(&self, waiters: &[Waiter], key: &Key, code: ResponseCode) {
        for waiter in waiters {
            self.send(&waiter.socket, &waiter.query.refuse(code), waiter.way);
            self.told(waiter, key, code, false);
        }
    }

    fn told(&self, waiter: &Waiter, key: &Key, code: ResponseCode, cached: bool) {
        let duration = waiter.since.elapsed();
        self.stats().query_time.observe(duration);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let resolver = match &key.source {
                Source::Upstreams(_) => None,
                Source::Asked(_, resolver) => Some(resolver),
            };
            let pod = waiter.door.place.workload().map(|pod| pod.to_string());
            let kind = RecordType::from(key.question.kind);
            let (name, client) = (key.question.name(), waiter.way.client);
            let duration_us = duration.as_micros();
            tracing::debug!(%client, pod, name, %kind, resolver = ?resolver, %code, cached, duration_us, "DNS question answered");
        }
    }

    fn send(&self, socket: &Listening, bytes: &[u8], way: Way) {
        if let Err(error) = socket.send(bytes, way) {
            self.stats().answers_lost.inc();
            tracing::debug!(%error, client = %way.client, "a DNS answer is lost");
        }
    }
}

/// One question of a place that waits for its answer.
struct Pending(Rc<Door>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get().saturating_sub(1));
    }
}
