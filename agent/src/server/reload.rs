//! Takes a new configuration over while connections are served: all of it, or nothing.
//!
//! Before: SIGHUP, a changed file, or the admin interface. After: workers, which give every connection accepted from now
//! on the new snapshot. Connections keep the one they started with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::bind::bind;
use super::host;
use super::{LoadError, ServerError, Serving};
use crate::kernel::KernelError;
use crate::listener::{Binding, Listener, TrafficDirection};
use crate::snapshot::{Intercept, Snapshot};
use crate::worker::{ReloadFailure, State};

impl Serving {
    /// Loads the configuration again. Returns its version.
    ///
    /// # Errors
    /// All that is wrong with it; the old one stays in force, and `Shared::reload_failure` tells why.
    pub(super) async fn reload(&mut self) -> Result<u64, String> {
        let server = &self.shared.runtime.stats.clone().server;
        self.service.reloading();
        match self.try_reload().await {
            Ok(version) => {
                server.config_reload_success.inc();
                self.shared.reload_failure.store(None);
                tracing::info!(version, "configuration reloaded");
                self.service.ready(version);
                Ok(version)
            }
            Err(error) => {
                let message = describe(&error);
                server.config_reload_failure.inc();
                for line in message.lines() {
                    tracing::error!("configuration not taken over: {line}");
                }
                self.service.refused(&message);
                let failure = ReloadFailure { at: SystemTime::now(), message: message.clone() };
                self.shared.reload_failure.store(Some(Arc::new(failure)));
                Err(message)
            }
        }
    }

    async fn try_reload(&mut self) -> Result<u64, ServerError> {
        if self.shared.state() == State::Draining {
            return Err(ServerError::Config(LoadError(
                "the agent is draining: it takes no new configuration".to_owned(),
            )));
        }
        let old = self.shared.snapshot.load_full();
        let version = old.origin.version + 1;
        let (loader, shared) = (self.loader.clone(), self.shared.clone());
        // The file may be long, and the main thread has a heartbeat to keep.
        let new = tokio::task::spawn_blocking(move || loader(&shared.runtime, version))
            .await
            .unwrap_or_else(|_| Err(LoadError("the configuration cannot be loaded: this is a bug".to_owned())))
            .map_err(ServerError::Config)?;
        let new = Arc::new(new);
        let refused = needs_restart(&old, &new);
        if !refused.is_empty() {
            return Err(ServerError::Config(LoadError(refused.join("\n"))));
        }
        let mut added = Vec::new();
        for listener in new.listeners.iter().filter(|listener| !self.bound.contains_key(&listener.address)) {
            added.extend(bind(listener, self.workers.len(), self.ports)?);
        }
        let logs = self.shared.records.prepare_logs(&new.access_log);
        let replace_logs = logs.map_err(|error| ServerError::Config(LoadError(describe(&error))))?;
        // What is added listens already, and is served in a moment.
        let listening = added.iter().flat_map(|bound| bound.addresses.iter().copied());
        let replaced = self
            .exempt(&new, listening)
            .and_then(|()| self.replace_processes(&old, &new))
            .and_then(|()| self.replace_policy(&old, &new));
        if let Err(error) = replaced {
            self.restore_processes(&new, &old);
            self.exempt_bound(&old);
            return Err(error.into());
        }
        // From here on nothing fails, and nothing before has to be undone.
        replace_logs();
        self.clusters.adopt(&new).await;
        self.shared.snapshot.store(new.clone());
        let kept: BTreeSet<SocketAddr> = bound_addresses(&new).collect();
        let removed: Vec<SocketAddr> = self.bound.keys().filter(|key| !kept.contains(key)).copied().collect();
        for key in removed {
            self.close(key).await;
        }
        for bound in added {
            self.listen(bound).await;
        }
        self.exempt_bound(&new);
        if let Some(attached) = &self.attached {
            attached.follow_dispatch();
        }
        self.sync_pods().await;
        Ok(version)
    }

    fn replace_policy(&self, old: &Snapshot, new: &Snapshot) -> Result<(), KernelError> {
        match (&self.attached, &old.intercept, &new.intercept) {
            (Some(attached), Some(old), Some(new)) if old.inbound != new.inbound && new.host => {
                host::take_inbound(attached, new, &self.inbound, &self.own_ports())
            }
            (Some(attached), Some(old), Some(new)) if old.outbound != new.outbound => attached.replace_policy(new),
            _ => Ok(()),
        }
    }

    fn replace_processes(&self, old: &Snapshot, new: &Snapshot) -> Result<(), KernelError> {
        match (&self.attached, &old.intercept, &new.intercept) {
            (Some(attached), Some(old), Some(new)) if old.processes != new.processes => attached.replace_processes(new),
            _ => Ok(()),
        }
    }

    /// A process that was there when it was chosen may have ended since.
    fn restore_processes(&self, new: &Snapshot, old: &Snapshot) {
        if let Err(error) = self.replace_processes(new, old) {
            let error = describe(&error);
            tracing::error!(error, "the processes of the configuration before cannot be chosen again");
        }
    }

    /// Nothing that is bound now is redirected, nor what is `added`.
    fn exempt(&self, snapshot: &Snapshot, added: impl Iterator<Item = SocketAddr>) -> Result<(), KernelError> {
        let all = self.bound.values().flatten().copied().chain(added);
        self.attached.as_ref().map_or(Ok(()), |attached| attached.replace_listeners(&snapshot.admin, all))
    }

    /// Exactly what is bound now is not redirected.
    fn exempt_bound(&self, snapshot: &Snapshot) {
        if let Err(error) = self.exempt(snapshot, std::iter::empty()) {
            let error = describe(&error);
            tracing::error!(error, "addresses that are no listeners any more are still not intercepted");
        }
    }
}

fn bound_addresses(snapshot: &Snapshot) -> impl Iterator<Item = SocketAddr> {
    snapshot.listeners.iter().filter(|listener| listener.binding != Binding::Virtual).map(|listener| listener.address)
}

/// What the running agent cannot change, one sentence each.
fn needs_restart(old: &Snapshot, new: &Snapshot) -> Vec<String> {
    let mut refused = Vec::new();
    let mut refuse = |field: &str| refused.push(format!("{field}: cannot be changed while the agent runs: restart it"));
    match (&old.intercept, &new.intercept) {
        (Some(old), Some(new)) => {
            let Intercept {
                cgroup,
                host,
                processes: _,
                outbound: _,
                inbound: _,
                pods: _,
                redirect,
                on_agent_loss,
                handover_entries,
            } = old;
            if *host != new.host {
                refuse("intercept.host");
            }
            if *cgroup != new.cgroup {
                refuse("intercept.cgroup");
            }
            if *redirect != new.redirect {
                refuse("intercept.redirect_to");
            }
            if *on_agent_loss != new.on_agent_loss {
                refuse("intercept.on_agent_loss");
            }
            if *handover_entries != new.handover_entries {
                refuse("intercept.handover_entries");
            }
        }
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => refuse("intercept"),
    }
    match (&old.dns, &new.dns) {
        (Some(old), Some(new)) if old.address != new.address => refuse("dns.address"),
        (Some(_), Some(_)) | (None, None) => {}
        (Some(_), None) | (None, Some(_)) => refuse("dns: whether it is there"),
    }
    for (direction, which) in [
        (TrafficDirection::Outbound, "those with use_original_dst, to which the kernel redirects,"),
        (
            TrafficDirection::Inbound,
            "the bound one with traffic_direction inbound, to which the kernel hands what arrives,",
        ),
    ] {
        if receivers(old, direction) != receivers(new, direction) {
            refuse(&format!("listeners: {which}"));
        }
    }
    if old.admin != new.admin {
        refuse("admin");
    }
    for new in new.listeners.iter() {
        let changed = |old: &Arc<Listener>| old.address == new.address && old.binding != new.binding;
        let both_bound = new.binding != Binding::Virtual;
        if both_bound && old.listeners.iter().any(|old| changed(old) && old.binding != Binding::Virtual) {
            refuse(&format!("listener '{}': its reuse_port and backlog", new.name));
        }
    }
    refused
}

fn receivers(snapshot: &Snapshot, direction: TrafficDirection) -> BTreeSet<SocketAddr> {
    let receives = |listener: &&Arc<Listener>| listener.direction == direction && listener.receives();
    snapshot.listeners.iter().filter(receives).map(|listener| listener.address).collect()
}

/// An error with its causes.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
