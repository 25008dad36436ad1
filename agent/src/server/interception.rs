//! The kernel's side in the life of the agent: attached last, kept alive by a heartbeat, stopped first.
//!
//! Before: [`super`], once workers accept. After: [`crate::kernel`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;

use waylay_common::limits;

use crate::dispatch::Dispatcher;
use crate::kernel::{
    Enrolment, HEARTBEAT_INTERVAL, HEARTBEAT_LOSS, InterceptOptions, Interception, KernelError, Log, cgroup,
};
use crate::listener::{Listener, TrafficDirection};
use crate::netns::Netns;
use crate::snapshot::{Admin, Intercept, Redirect};
use crate::worker::{STALL_AFTER, Shared};

const _: () = assert!(
    STALL_AFTER.as_millis() + 2 * HEARTBEAT_INTERVAL.as_millis() < HEARTBEAT_LOSS.as_millis(),
    "the agent notices a hang before the kernel does"
);

/// How soon what the kernel programs log is in the agent's log.
const LOG_INTERVAL: Duration = Duration::from_millis(250);

/// How soon what the kernel dispatches has its record, and an endpoint that fails is no longer chosen there.
const DISPATCH_LOOK: Duration = Duration::from_millis(limits::DISPATCH_LOOK_MS);
/// The same, when a quarter of the ring was full.
const DISPATCH_LOOK_SOON: Duration = Duration::from_millis(limits::DISPATCH_LOOK_SOON_MS);
/// Events that the ring has room for.
const DISPATCH_RING_EVENTS: usize = limits::DISPATCH_RING_EVENTS as usize;

/// Attached hooks. They are kept alive by a task of their own: a reload may wait for DNS for longer than the kernel
/// waits for a heartbeat.
pub struct Attached {
    interception: Arc<Mutex<Option<Interception>>>,
    dispatcher: Arc<Mutex<Dispatcher>>,
}

/// What to intercept, for listeners bound to these addresses. The interfaces of `admin` are left alone as listeners
/// are: an intercepted program that scrapes them must reach them, and not itself through the agent.
///
/// # Errors
/// There is no cgroup2 mount.
pub fn options<'a>(
    intercept: &Intercept,
    cgroup_override: Option<&Path>,
    admin: &Admin,
    dns: bool,
    bound: impl Iterator<Item = (&'a Listener, &'a [SocketAddr])>,
) -> Result<InterceptOptions, KernelError> {
    let cgroup = match cgroup_override {
        Some(path) => path.to_owned(),
        None => cgroup::below_mount(&intercept.cgroup)?,
    };
    let (mut redirect_v4, mut redirect_v6) = match intercept.redirect {
        Redirect::Listeners => (None, None),
        Redirect::Proxy { v4, v6 } => (v4, v6),
    };
    let mut listening = Vec::new();
    for (listener, addresses) in bound {
        listening.extend_from_slice(addresses);
        let outbound = listener.receives() && listener.direction == TrafficDirection::Outbound;
        if intercept.redirect != Redirect::Listeners || !outbound {
            continue;
        }
        for address in addresses {
            match reachable(*address) {
                SocketAddr::V4(address) => _ = redirect_v4.get_or_insert(address),
                SocketAddr::V6(address) => _ = redirect_v6.get_or_insert(address),
            }
        }
    }
    Ok(InterceptOptions {
        redirect_v4,
        redirect_v6,
        own_listeners: own_listeners(admin, listening),
        host: intercept.host,
        policy: intercept.outbound.clone(),
        processes: intercept.processes.clone(),
        on_agent_loss: intercept.on_agent_loss,
        handover_entries: intercept.handover_entries,
        dns,
        known_by_process: true,
        ..InterceptOptions::new(cgroup)
    })
}

/// All addresses at which the agent itself is to be reached.
fn own_listeners(admin: &Admin, bound: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    admin.prometheus.into_iter().chain(admin.readiness).chain(bound).collect()
}

/// Nobody connects to a wildcard address; loopback leads to the same socket.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddrV6::new(Ipv6Addr::LOCALHOST, address.port(), 0, 0).into(),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

impl Attached {
    /// Attaches, and gives the workers their handle. The heartbeat runs on `runtime`.
    ///
    /// # Errors
    /// The kernel's; nothing stays attached.
    pub fn new(options: &InterceptOptions, shared: &Arc<Shared>, runtime: &Handle) -> Result<Self, KernelError> {
        let mut interception = Interception::attach(options)?;
        if let Some(log) = interception.take_log() {
            runtime.spawn(pass_on(log));
        }
        shared.set_kernel(Some(interception.kernel()));
        let events = interception.dispatch_events()?;
        let dispatcher = Arc::new(Mutex::new(Dispatcher::new(shared, interception.dispatch_table()?, events)));
        lock(&dispatcher).follow();
        runtime.spawn(keep_dispatching(Arc::downgrade(&dispatcher)));
        let interception = Arc::new(Mutex::new(Some(interception)));
        runtime.spawn(keep_alive(Arc::downgrade(&interception), shared.clone()));
        Ok(Self { interception, dispatcher })
    }

    /// What the kernel dispatches by itself is what the configuration now says.
    pub fn follow_dispatch(&self) {
        lock(&self.dispatcher).follow();
    }

    /// Puts another policy in force.
    ///
    /// # Errors
    /// The old one stays.
    pub fn replace_policy(&self, intercept: &Intercept) -> Result<(), KernelError> {
        lock(&self.interception)
            .as_mut()
            .map_or(Ok(()), |interception| interception.replace_policy(&intercept.outbound))
    }

    /// Takes the connections of other processes.
    ///
    /// # Errors
    /// One of them is not there; those before stay.
    pub fn replace_processes(&self, intercept: &Intercept) -> Result<(), KernelError> {
        let attached = lock(&self.interception);
        attached.as_ref().map_or(Ok(()), |interception| interception.replace_processes(&intercept.processes))
    }

    /// The listeners are bound to these addresses from now on: none of them is redirected.
    ///
    /// # Errors
    /// The kernel's maps have no room, or cannot be written.
    pub fn replace_listeners(
        &self,
        admin: &Admin,
        bound: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<(), KernelError> {
        let own = own_listeners(admin, bound);
        lock(&self.interception).as_ref().map_or(Ok(()), |interception| interception.replace_listeners(&own))
    }

    /// Takes connections in the network namespace `netns`, or others than before.
    ///
    /// # Errors
    /// The kernel's; a namespace that was not enrolled before is not then either.
    pub fn enrol(&self, netns: &Netns, enrolment: &Enrolment<'_>) -> Result<(), KernelError> {
        let enrol = |interception: &mut Interception| interception.enrol(netns, enrolment);
        lock(&self.interception).as_mut().map_or(Ok(()), enrol)
    }

    /// Takes nothing more in the namespace with this cookie.
    ///
    /// # Errors
    /// The first thing that could not be taken away.
    pub fn withdraw(&self, cookie: u64) -> Result<(), KernelError> {
        lock(&self.interception).as_mut().map_or(Ok(()), |interception| interception.withdraw(cookie))
    }

    /// From now on connects go where they always went.
    pub fn stop_redirecting(&self) {
        let stopped = lock(&self.interception).as_ref().map_or(Ok(()), Interception::stop_redirecting);
        if let Err(error) = stopped {
            tracing::error!(%error, "redirection cannot be switched off before the end");
        }
    }

    /// Takes everything out of the kernel.
    pub fn detach(self) {
        let detached = lock(&self.interception).take().map_or(Ok(()), Interception::detach);
        if let Err(error) = detached {
            tracing::error!(%error, "something is left in the kernel: `waylay detach` removes it");
        }
        lock(&self.dispatcher).end();
    }
}

/// Passes on what the kernel programs log, as long as the runtime lives. It looks instead of being woken: nobody waits
/// for these lines, a look is a read of shared memory, and so a flood of failures costs no wake-ups.
async fn pass_on(mut log: Log) {
    let mut looks = tokio::time::interval(LOG_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        log.pass_on();
    }
}

/// Keeps what the kernel dispatches by itself as the endpoints are, and takes in what it tells of those connections. It
/// looks instead of being woken, so a connection costs no wake-up; the sooner, the more there was at the last look.
async fn keep_dispatching(dispatcher: Weak<Mutex<Dispatcher>>) {
    let mut pause = DISPATCH_LOOK;
    loop {
        tokio::time::sleep(pause).await;
        let Some(dispatcher) = dispatcher.upgrade() else { return };
        let mut dispatcher = lock(&dispatcher);
        dispatcher.follow();
        pause = match dispatcher.look() {
            0 if dispatcher.is_idle() => LOG_INTERVAL,
            told if told > DISPATCH_RING_EVENTS / 4 => DISPATCH_LOOK_SOON,
            _ => DISPATCH_LOOK,
        };
    }
}

/// Tells the kernel that the agent is alive, as long as it is: every worker's loop turned lately.
async fn keep_alive(interception: Weak<Mutex<Option<Interception>>>, shared: Arc<Shared>) {
    let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stalled = false;
    loop {
        beats.tick().await;
        let Some(interception) = interception.upgrade() else { return };
        let missing = shared.stalled_workers();
        if missing.is_empty() {
            if std::mem::take(&mut stalled) {
                tracing::info!("all workers turn again");
            }
            let beaten = lock(&interception).as_ref().map_or(Ok(()), Interception::heartbeat);
            if let Err(error) = beaten {
                tracing::error!(%error, "the heartbeat cannot be written: the kernel will take the agent for lost");
            }
        } else if !stalled {
            stalled = true;
            shared.runtime.stats.server.worker_stalled.inc();
            tracing::error!(workers = ?missing, "workers do not turn: no heartbeat until they do");
        }
    }
}

/// A panic elsewhere does not make the hooks less attached.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{OnAgentLoss, Policy};

    #[test]
    fn connections_are_redirected_to_an_address_that_can_be_connected_to() {
        for (bound, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("127.0.0.2:1", "127.0.0.2:1"),
            ("[::1]:1", "[::1]:1"),
        ] {
            let bound: SocketAddr = bound.parse().expect("address");
            assert_eq!(reachable(bound).to_string(), expected);
        }
    }

    #[test]
    fn a_proxy_receives_everything_and_admin_addresses_are_left_alone() {
        let (v4, v6) = ("127.0.0.1:15009".parse().ok(), "[::1]:15009".parse().ok());
        let intercept = Intercept {
            cgroup: "/".into(),
            host: true,
            processes: Vec::new(),
            outbound: Policy::default(),
            inbound: None,
            pods: None,
            redirect: Redirect::Proxy { v4, v6 },
            on_agent_loss: OnAgentLoss::Allow,
            handover_entries: 1,
        };
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        let admin = Admin {
            socket: "/nonexistent".into(),
            prometheus: address("127.0.0.1:15090"),
            readiness: address("127.0.0.1:15021"),
        };
        let options =
            options(&intercept, Some(Path::new("/m/app")), &admin, false, std::iter::empty()).expect("options");
        assert_eq!((options.redirect_v4, options.redirect_v6), (v4, v6));
        assert_eq!(options.own_listeners, [admin.prometheus, admin.readiness].map(|address| address.expect("one")));
    }
}
