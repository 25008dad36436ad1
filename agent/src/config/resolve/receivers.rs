//! Who receives what the kernel takes: bound listeners of this file, or another proxy.
//!
//! Outbound: one listener with `use_original_dst` for each address family. Inbound: one listener for both.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Resolver;
use crate::config::diagnostic::Path;
use crate::config::raw::Config;
use crate::config::raw::listener::Listener as RawListener;
use crate::kernel::Policy;
use crate::kernel::policy::Compiled;
use crate::listener::TrafficDirection;
use crate::snapshot::Redirect;

/// The first listener to which the kernel hands what it takes of `direction`.
pub fn receiver(config: &Config, direction: TrafficDirection) -> Option<&RawListener> {
    receivers(config, direction).next().map(|(_, raw)| raw)
}

fn receivers(config: &Config, direction: TrafficDirection) -> impl Iterator<Item = (usize, &RawListener)> {
    let receives = move |raw: &RawListener| {
        let redirected = raw.use_original_dst || direction == TrafficDirection::Inbound;
        raw.bind_to_port && raw.traffic_direction == direction && redirected
    };
    config.listeners.iter().enumerate().filter(move |(_, raw)| receives(raw))
}

/// Checks that the kernel has one listener of each kind to hand to, and that what each implies is free.
pub fn listeners(resolver: &mut Resolver<'_>, config: &Config, path: &Path<'_>) -> Option<()> {
    let outbound = one_outbound(resolver, config, path);
    let inbound = one_inbound(resolver, config, path);
    let free = implied(resolver, config, path);
    warn_of_idle_inbound(resolver, config, path);
    outbound.and(inbound).and(free)
}

fn one_outbound(resolver: &mut Resolver<'_>, config: &Config, path: &Path<'_>) -> Option<()> {
    let targets = || receivers(config, TrafficDirection::Outbound);
    let mut ok = Some(());
    for (index, later) in targets() {
        let family = |raw: &RawListener| raw.address.is_ipv4();
        let earlier = targets().find(|(other, raw)| *other < index && family(raw) == family(later));
        if let Some((_, earlier)) = earlier {
            let family = if family(later) { "IPv4" } else { "IPv6" };
            let message = format!(
                "the kernel redirects {family} connections to one listener, and that is `{}`: make this one `bind_to_port: false` or leave `use_original_dst` out",
                earlier.name
            );
            resolver.error(&path.index(index).field("use_original_dst"), message);
            ok = None;
        }
    }
    ok
}

fn one_inbound(resolver: &mut Resolver<'_>, config: &Config, path: &Path<'_>) -> Option<()> {
    let Some(first) = receiver(config, TrafficDirection::Inbound) else { return Some(()) };
    let mut ok = Some(());
    for (index, _) in receivers(config, TrafficDirection::Inbound).skip(1) {
        let message = format!(
            "the kernel hands what arrives to one listener, of both families, and that is `{}`: make this one `bind_to_port: false`",
            first.name
        );
        resolver.error(&path.index(index).field("traffic_direction"), message);
        ok = None;
    }
    let pods = config.intercept.as_ref().is_some_and(|intercept| intercept.pods.is_some());
    let port = first.address.port();
    let same = receivers(config, TrafficDirection::Outbound)
        .find(|(_, raw)| port != 0 && raw.address.port() == port && raw.address != first.address);
    if let (true, Some((index, _))) = (pods, same) {
        let message = format!(
            "`{}` has port {port} too, and in the network namespaces of pods both listen on loopback: give one of them another",
            first.name
        );
        resolver.error(&path.index(index).field("address"), message);
        ok = None;
    }
    ok
}

/// A listener on 127.0.0.1 stands for `[::1]` as well.
fn implied(resolver: &mut Resolver<'_>, config: &Config, path: &Path<'_>) -> Option<()> {
    let mut ok = Some(());
    for direction in [TrafficDirection::Outbound, TrafficDirection::Inbound] {
        for (_, receiver) in receivers(config, direction) {
            let implied = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), receiver.address.port());
            let on_loopback = receiver.address.ip() == IpAddr::from([127, 0, 0, 1]);
            // One that receives the same is refused for that already.
            let another = |raw: &RawListener| !receivers(config, direction).any(|(_, same)| std::ptr::eq(same, raw));
            let taken =
                config.listeners.iter().position(|raw| raw.bind_to_port && raw.address == implied && another(raw));
            if let (true, Some(taken)) = (on_loopback, taken) {
                let why = match direction {
                    TrafficDirection::Outbound => "with `use_original_dst`",
                    TrafficDirection::Inbound => "with `traffic_direction: inbound`",
                };
                let message =
                    format!("{implied} belongs to listener `{}`: {why} it takes IPv6 connections there", receiver.name);
                resolver.error(&path.index(taken).field("address"), message);
                ok = None;
            }
        }
    }
    ok
}

/// Whether anything that arrives is taken.
pub fn takes_inbound(config: &Config) -> bool {
    config.intercept.as_ref().is_some_and(|intercept| {
        let mut rows = intercept.pods.iter().flat_map(|pods| &pods.policies);
        intercept.inbound.is_some() || rows.any(|row| row.inbound.is_some())
    })
}

fn warn_of_idle_inbound(resolver: &mut Resolver<'_>, config: &Config, path: &Path<'_>) {
    if takes_inbound(config) || resolver.report.is_undecoded("intercept") {
        return;
    }
    for (index, _) in receivers(config, TrafficDirection::Inbound) {
        let message = "nothing that arrives is handed to it: say what is taken in `intercept.inbound`, or in `inbound` of a row of `intercept.pods.policies`";
        resolver.warn(&path.index(index).field("traffic_direction"), message);
    }
}

/// At most one address of each family, each one that another program can accept on.
pub fn redirect(
    resolver: &mut Resolver<'_>,
    config: &Config,
    addresses: &[SocketAddr],
    path: &Path<'_>,
) -> Option<Redirect> {
    if addresses.is_empty() {
        return Some(Redirect::Listeners);
    }
    let (mut v4, mut v6, mut ok) = (None, None, Some(()));
    for (index, &address) in addresses.iter().enumerate() {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let listener = config.listeners.iter().find(|listener| listener.bind_to_port && listener.address == address);
        let message = if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            format!("nobody can connect to {address}: give the address and port where the proxy listens")
        } else if address.ip().to_canonical() != address.ip() {
            format!("{address} is an IPv4 address: write it as one")
        } else if let Some(listener) = listener {
            format!(
                "{address} is the address of listener `{}`: give it `use_original_dst: true` instead",
                listener.name
            )
        } else {
            let taken = match address {
                SocketAddr::V4(address) => v4.replace(address).map(SocketAddr::V4),
                SocketAddr::V6(address) => v6.replace(address).map(SocketAddr::V6),
            };
            let Some(other) = taken else { continue };
            format!("all {family} connections go to one address, and that is {other}")
        };
        resolver.error(&path.index(index), message);
        ok = None;
    }
    ok.map(|()| Redirect::Proxy { v4, v6 })
}

/// A family that is taken and has no address to go to would pass by the proxy unseen.
pub fn proxy_receives_all(
    resolver: &mut Resolver<'_>,
    policy: &Policy,
    (v4, v6): (bool, bool),
    path: &Path<'_>,
) -> Option<()> {
    // A policy that does not fit is the kernel's to refuse: it knows its limits.
    let Ok(compiled) = Compiled::new(policy) else { return Some(()) };
    let mut ok = Some(());
    for (family, missing, everything) in
        [("IPv4", compiled.intercepts_v4() && !v4, "0.0.0.0/0"), ("IPv6", compiled.intercepts_v6() && !v6, "::/0")]
    {
        if missing {
            let message = format!(
                "{family} connections are taken and have nowhere to go: add an {family} address, or exclude {everything}"
            );
            resolver.error(path, message);
            ok = None;
        }
    }
    ok
}
