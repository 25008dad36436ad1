//! The hooks of one agent, from attaching to the orderly end: options in, attached programs out.
//!
//! Before it: the configuration is resolved and the listening sockets are bound. After it: `handle`, which workers hold.

use std::{
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use waylay_common::{
    cells::HANDOVER_CELLS,
    settings::{OnAgentLoss, Placement, Settings, Switch},
};

use super::{
    FLOW_ENTRIES, HANDOVER_ENTRIES, HEARTBEAT_LOSS, Kernel, KernelError, Log,
    attach::Links,
    cgroup::Cgroup,
    clock,
    dispatch::{DispatchEvents, DispatchTable},
    events::lock,
    exempt::Exemptions,
    leftovers,
    load::Loaded,
    maps,
    namespaces::{Namespaces, Wanted},
    neighbours,
    own_process::Question,
    pins::PinDir,
    policy::{Compiled, Policy},
    processes::Chosen,
    rival::Place,
};
use crate::netns::own_cookie;
use crate::snapshot::ProcessRule;

/// Beats between two looks for what other instances have left behind: about five seconds.
const SWEEP_BEATS: u32 = 20;

/// What to intercept and where to send it.
#[derive(Clone, Debug)]
pub struct InterceptOptions {
    /// An absolute path below the cgroup v2 mount.
    pub cgroup: PathBuf,
    /// Where IPv4 connections go: an address the agent listens on.
    pub redirect_v4: Option<SocketAddrV4>,
    /// Where IPv6 connections go.
    pub redirect_v6: Option<SocketAddrV6>,
    /// All other bound addresses of the agent: never redirected.
    pub own_listeners: Vec<SocketAddr>,
    /// Whether connections in the agent's own network namespace are taken; others are enrolled later.
    pub host: bool,
    /// What is taken there.
    pub policy: Policy,
    /// Whose connections; empty: those of all processes.
    pub processes: Vec<ProcessRule>,
    pub on_agent_loss: OnAgentLoss,
    /// [`HANDOVER_ENTRIES`], but in tests of what happens when it is full.
    pub handover_entries: u32,
    /// [`FLOW_ENTRIES`], but in tests of what happens when it is full.
    pub flow_entries: u32,
    /// Take DNS questions, of the network namespaces that ask for it ([`Kernel::take_questions`]).
    pub dns: bool,
    /// [`HEARTBEAT_LOSS`], but in tests that do nothing else for longer.
    pub heartbeat_loss: Duration,
    /// What this process connects over TCP passes because of who it is, without a stamp on each socket. Not for a process that
    /// is agent and client in one, and not with [`OnAgentLoss::Refuse`], where hooks outlive their agent.
    pub known_by_process: bool,
}

impl InterceptOptions {
    /// Everything in `cgroup`, to nowhere yet.
    #[must_use]
    pub fn new(cgroup: PathBuf) -> Self {
        Self {
            cgroup,
            redirect_v4: None,
            redirect_v6: None,
            own_listeners: Vec::new(),
            host: true,
            policy: Policy::default(),
            processes: Vec::new(),
            on_agent_loss: OnAgentLoss::Allow,
            handover_entries: HANDOVER_ENTRIES,
            flow_entries: FLOW_ENTRIES,
            dns: false,
            heartbeat_loss: HEARTBEAT_LOSS,
            known_by_process: false,
        }
    }
}

/// Attached hooks. Dropping it detaches them, unless `refuse` has pinned them: then only [`Self::detach`] does.
pub struct Interception {
    links: Links,
    pub(super) kernel: Kernel,
    log: Option<Log>,
    /// Its maps are given to each inbound hook.
    pub(super) loaded: Loaded,
    pub(super) namespaces: Namespaces,
    pub(super) redirect: (bool, bool),
    pub(super) redirects: Vec<SocketAddr>,
    pub(super) exemptions: Mutex<Exemptions>,
    chosen: Mutex<Chosen>,
    pins: Option<PinDir>,
    pub(super) place: Place,
    /// Whether the agent's own network namespace is intercepted by [`InterceptOptions::policy`].
    host: bool,
    beats: AtomicU32,
}

impl Interception {
    /// Loads the programs, fills their maps and attaches them. From here on connections are intercepted: the listening
    /// sockets must be there already.
    ///
    /// # Errors
    /// Every error names its remedy; nothing stays attached.
    pub fn attach(options: &InterceptOptions) -> Result<Self, KernelError> {
        let compiled = options.host.then(|| Compiled::new(&options.policy)).transpose()?;
        let redirect = (options.redirect_v4.is_some(), options.redirect_v6.is_some());
        check_listeners(options, compiled.as_ref(), redirect)?;
        let cgroup = Cgroup::open(&options.cgroup)?;
        let own = Cgroup::own()?;
        let netns_cookie = own_netns_cookie()?;

        let mut loaded = Loaded::new(options.handover_entries, options.flow_entries)?;
        let order = neighbours::place(&mut loaded, &cgroup)?;
        let instance = write_settings(&loaded, options, cgroup.id(), order.placement)?;
        let place = Place { instance, cgroup, own };
        let kernel = Kernel::new(&loaded, instance, netns_cookie)?;
        let mut namespaces = Namespaces::new(&loaded, netns_cookie)?;
        if let Some(policy) = &compiled {
            let wanted = Wanted { outbound: Some(policy), inbound: None };
            place.check(netns_cookie, wanted)?;
            namespaces.set(netns_cookie, wanted)?;
        }
        let mut exemptions = Exemptions::new(&loaded, instance, netns_cookie, &own_listeners(options))?;
        exemptions.exchange()?;
        let tables = maps::typed(maps::name::PROCESSES, loaded.map(maps::name::PROCESSES)?)?;
        let mut chosen = Chosen::new(tables, netns_cookie);
        chosen.replace(&options.processes, &kernel)?;
        kernel.set(Switch::Heartbeat, clock::monotonic_ns())?;
        kernel.set(Switch::Redirecting, 1)?;
        let question = (options.known_by_process && options.on_agent_loss == OnAgentLoss::Allow).then(Question::new);

        let mut interception = Self {
            links: Links::attach(&mut loaded, &place.cgroup, &place.own, &order)?,
            kernel,
            log: Some(loaded.log()?),
            loaded,
            namespaces,
            redirect,
            redirects: redirects(options).collect(),
            exemptions: Mutex::new(exemptions),
            chosen: Mutex::new(chosen),
            pins: None,
            place,
            host: options.host,
            beats: AtomicU32::new(0),
        };
        if options.dns {
            interception.links.attach_dns(&mut interception.loaded, &interception.place.cgroup, &order)?;
            // On a busy machine the verifier may have taken longer than the hooks' patience.
            interception.kernel.set(Switch::Heartbeat, clock::monotonic_ns())?;
        }
        if let Some(question) = question.flatten()
            && let Some(process) = question.ask(&mut interception.loaded, &interception.place)?
        {
            interception.kernel.know(process)?;
        }
        interception.loaded.forget_programs();
        if options.on_agent_loss == OnAgentLoss::Refuse {
            let pins = interception.pins.insert(PinDir::create(interception.place.cgroup.id(), instance)?);
            interception.links.pin(&pins.path)?;
        }
        // Only now, with our own hooks in place: an agent before us may have died with its hooks pinned.
        interception.remove_stale_pins()?;
        Ok(interception)
    }

    /// A handle for workers.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel.clone()
    }

    /// The tables of what the kernel dispatches by itself, empty. To be asked for once.
    ///
    /// # Errors
    /// The maps cannot be opened.
    pub fn dispatch_table(&self) -> Result<DispatchTable, KernelError> {
        DispatchTable::new(&self.loaded, self.kernel())
    }

    /// The ring of dispatched connections; it has one reader.
    ///
    /// # Errors
    /// The maps cannot be opened.
    pub fn dispatch_events(&self) -> Result<DispatchEvents, KernelError> {
        DispatchEvents::new(&self.loaded)
    }

    /// The reader of what the programs log; whoever asks first has it.
    pub fn take_log(&mut self) -> Option<Log> {
        self.log.take()
    }

    /// Puts another policy in force for what processes connect to in the agent's own network namespace, at once for each
    /// connection: a hook sees the old one or the new one, whole. Where that namespace is not intercepted
    /// ([`InterceptOptions::host`]), there is nothing to replace.
    ///
    /// # Errors
    /// The policy does not fit, or takes in a family that nobody listens for; the old one stays in force.
    pub fn replace_policy(&mut self, policy: &Policy) -> Result<(), KernelError> {
        if !self.host {
            return Ok(());
        }
        let compiled = Compiled::new(policy)?;
        check_families(&compiled, self.redirect)?;
        self.namespaces.set_outbound(self.kernel.netns_cookie(), &compiled)
    }

    /// Takes the connections of other processes from now on; those of all when `rules` is empty.
    ///
    /// # Errors
    /// A rule names nobody, or there are too many; what was chosen before stays.
    pub fn replace_processes(&self, rules: &[ProcessRule]) -> Result<(), KernelError> {
        lock(&self.chosen).replace(rules, &self.kernel)
    }

    /// The agent listens at other addresses: these are never redirected from now on, nor those it redirects to.
    ///
    /// # Errors
    /// They do not fit, or the maps cannot be written; calling it again with the old ones undoes it.
    pub fn replace_listeners(&self, own_listeners: &[SocketAddr]) -> Result<(), KernelError> {
        let all: Vec<_> = self.redirects.iter().chain(own_listeners).copied().collect();
        lock(&self.exemptions).replace(&all)
    }

    /// Tells the hooks that the agent is alive. Call it at least every [`super::HEARTBEAT_INTERVAL`], and only while every
    /// worker's loop turns. Every few seconds it also sweeps what dead instances have left; that may fail (for want of
    /// file descriptors, say) without harm to this instance.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn heartbeat(&self) -> Result<(), KernelError> {
        self.kernel.set(Switch::Heartbeat, clock::monotonic_ns())?;
        lock(&self.chosen).refresh(&self.kernel)?;
        if self.beats.fetch_add(1, Ordering::Relaxed) % SWEEP_BEATS == 1
            && let Err(error) = self.sweep()
        {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "what dead instances left in the kernel cannot be swept now");
        }
        Ok(())
    }

    fn sweep(&self) -> Result<(), KernelError> {
        lock(&self.exemptions).sweep()?;
        self.remove_stale_pins()
    }

    /// Redirects no further connections; those that were redirected keep their getpeername and handover.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn stop_redirecting(&self) -> Result<(), KernelError> {
        self.kernel.set(Switch::Redirecting, 0)
    }

    /// The orderly end: takes away the hooks of cgroups and network namespaces, their pins, and our addresses from other
    /// instances' maps.
    ///
    /// # Errors
    /// The first thing that could not be taken away; the others are, all the same.
    pub fn detach(mut self) -> Result<(), KernelError> {
        let unpinned = self.links.unpin();
        self.links.detach();
        self.namespaces.detach();
        let removed = self.pins.take().map_or(Ok(()), |pins| pins.remove());
        // Only now: a hook of ours that still ran would lead others to redirect to us once more.
        let withdrawn = lock(&self.exemptions).withdraw();
        unpinned.and(removed).and(withdrawn)
    }

    fn remove_stale_pins(&self) -> Result<(), KernelError> {
        let (cgroup_id, instance) = (self.place.cgroup.id(), self.kernel.instance());
        leftovers::remove_pins(|dir| dir.cgroup_id == cgroup_id && dir.instance != instance).map(drop)
    }
}

impl Drop for Interception {
    fn drop(&mut self) {
        self.links.detach();
        self.namespaces.detach();
        if self.pins.is_none() {
            // If it fails, the others sweep our addresses a little later.
            let _ = lock(&self.exemptions).withdraw();
        }
    }
}

/// Fills the settings map and returns its kernel id, by which the instance is known.
fn write_settings(
    loaded: &Loaded,
    options: &InterceptOptions,
    cgroup_id: u64,
    placement: Placement,
) -> Result<u32, KernelError> {
    let loss_ns = u64::try_from(options.heartbeat_loss.as_nanos()).unwrap_or(u64::MAX);
    let mut settings =
        Settings::new(options.on_agent_loss, loss_ns, cgroup_id, std::process::id()).with_placement(placement);
    // A map that is to be full so soon is to be full of all handshakes.
    if options.handover_entries >= HANDOVER_CELLS {
        settings = settings.with_cells();
    }
    if let Some(address) = options.redirect_v4 {
        settings.redirect_v4 = SocketAddr::V4(address).into();
    }
    if let Some(address) = options.redirect_v6 {
        settings.redirect_v6 = SocketAddr::V6(address).into();
    }
    let data = loaded.map(maps::name::SETTINGS)?;
    let written = |source| KernelError::map("writing the settings", source);
    let id = data.info().map_err(written)?.id();
    let mut map: maps::Settled = maps::typed(maps::name::SETTINGS, data)?;
    map.set(0, settings, 0).map_err(written)?;
    Ok(id)
}

fn check_listeners(
    options: &InterceptOptions,
    compiled: Option<&Compiled>,
    redirect: (bool, bool),
) -> Result<(), KernelError> {
    for address in redirects(options) {
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(KernelError::BadRedirect(address));
        }
    }
    compiled.map_or(Ok(()), |compiled| check_families(compiled, redirect))
}

/// A family that is intercepted needs an address to go to, or it would bypass the agent silently.
pub(super) fn check_families(compiled: &Compiled, (v4, v6): (bool, bool)) -> Result<(), KernelError> {
    if compiled.intercepts_v4() && !v4 {
        return Err(KernelError::NoListener { family: "IPv4", everything: "0.0.0.0/0" });
    }
    if compiled.intercepts_v6() && !v6 {
        return Err(KernelError::NoListener { family: "IPv6", everything: "::/0" });
    }
    Ok(())
}

fn redirects(options: &InterceptOptions) -> impl Iterator<Item = SocketAddr> {
    let v4 = options.redirect_v4.map(SocketAddr::V4);
    v4.into_iter().chain(options.redirect_v6.map(SocketAddr::V6))
}

fn own_listeners(options: &InterceptOptions) -> Vec<SocketAddr> {
    redirects(options).chain(options.own_listeners.iter().copied()).collect()
}

fn own_netns_cookie() -> Result<u64, KernelError> {
    own_cookie().map_err(|source| KernelError::io("reading the cookie of the agent's network namespace", source))
}
