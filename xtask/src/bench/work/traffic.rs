//! Requests, connections and bytes through everybody, in interleaved rounds: each round measures every system of a
//! case one after the other, so that what the machine does meanwhile falls on all of them. Each round begins with another
//! one: what a system leaves behind falls on whoever comes next.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{Cast, Work, everybody};
use crate::bench::{
    results::metric,
    stage::{Net, Place, Running, finish},
    system::{Peer, Service, System, Target},
    tools::{self, Counted},
    usage::Usage,
    waylay::Flavour,
};

/// One way of loading a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// Requests on that many connections.
    Keepalive(u32),
    /// Each request on a new connection, that many at once.
    New(u32),
    /// The same through listeners that see bytes only.
    BytesKeepalive(u32),
    BytesNew(u32),
    /// 4 connections of 16 streams, to origins that speak HTTP/1.1.
    Http2,
    /// Requests a second, whether or not answers come.
    Rate(u32),
    /// One way, on that many connections.
    Streams(u32),
}

/// Connections of the cases that are measured through everybody.
const USUAL: u32 = 32;
const RATE: u32 = 4000;
/// Rounds of latency for one of the others: a stall of the machine makes a round's upper percentiles, and there must be
/// more rounds without one.
const ROUNDS_OF_LATENCY: u32 = 3;
/// iperf3's server takes one client after the other, and a moment between them.
const IPERF_PAUSE: Duration = Duration::from_millis(300);

pub fn requests(work: &mut Work<'_>) -> Result<()> {
    let plan = work.plan;
    let mut cases: Vec<Case> =
        plan.connections.iter().flat_map(|count| [Case::Keepalive(*count), Case::New(*count)]).collect();
    cases.extend([Case::BytesKeepalive(USUAL), Case::BytesNew(USUAL)]);
    measure(work, &cases, work.plan.rounds)
}

pub fn http2(work: &mut Work<'_>) -> Result<()> {
    measure(work, &[Case::Http2], work.plan.rounds)
}

pub fn latency(work: &mut Work<'_>) -> Result<()> {
    let _awake = keep_awake(work)?;
    measure(work, &[Case::Rate(RATE)], ROUNDS_OF_LATENCY * work.plan.rounds)
}

/// Both CPUs always have something to do that gives way to everything else. Waking a CPU that sleeps takes up to a
/// millisecond where it is a virtual one, which would be all that a percentile shows, and of no proxy's doing.
fn keep_awake(work: &Work<'_>) -> Result<Vec<Running>> {
    let cpus = work.stage.cpus();
    let mut different = vec![cpus.load, cpus.proxy];
    different.dedup();
    let spin = |cpu: usize| {
        let place = Place { net: Net::Plain, group: "outside", cpu };
        let mut command = work.stage.command(&place, "chrt");
        command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
        Running::start(work.stage, &format!("awake-{cpu}"), command)
    };
    different.into_iter().map(spin).collect()
}

pub fn bytes(work: &mut Work<'_>) -> Result<()> {
    measure(work, &[Case::Streams(1), Case::Streams(4)], work.plan.rounds)
}

fn measure(work: &mut Work<'_>, cases: &[Case], rounds: u32) -> Result<()> {
    let mut cast = match work.cast.take() {
        Some(cast) => cast,
        None => work.start_all(&everybody()),
    };
    for round in 0..rounds {
        for case in cases {
            let first = round as usize * cast.len() / rounds as usize;
            cast.rotate_left(first);
            measure_all(work, *case, &mut cast, round);
            cast.rotate_right(first);
        }
    }
    work.cast = Some(cast);
    Ok(())
}

/// One round of one case.
fn measure_all(work: &mut Work<'_>, case: Case, cast: &mut Cast, round: u32) {
    let name = case.name();
    eprint!("    round {} {name}:", round + 1);
    let mut failed = Vec::new();
    for (system, started) in cast.iter_mut() {
        let Some(target) = system.target(case.service()).filter(|_| case.takes(*system, work.plan.whole)) else {
            continue;
        };
        let pid = started.as_ref().map(|started| started.running.pid());
        let measured = case.measure(work, &target, pid);
        match measured {
            Ok((values, errors)) => {
                eprint!(" {} {}", system.id(), shown(&values));
                let values: Vec<_> = values.iter().map(|(name, value)| (*name, *value)).collect();
                work.results.push(&name, &system.id(), round, &values).errors = errors;
            }
            Err(reason) => failed.push((format!("{name} {}", system.id()), format!("{reason:#}"))),
        }
    }
    eprintln!();
    for (what, why) in failed {
        work.results.skip(&what, &why);
    }
}

/// The first number, which is the one that people look at.
fn shown(values: &[(&'static str, f64)]) -> String {
    match values.first() {
        Some((metric::GB_PER_SECOND, value)) => format!("{value:.2}"),
        Some((_, value)) => format!("{value:.0}"),
        None => String::new(),
    }
}

type Values = (Vec<(&'static str, f64)>, Option<String>);

impl Case {
    /// Its name in results.
    pub fn name(self) -> String {
        match self {
            Self::Keepalive(count) => format!("h1-keepalive-{count}"),
            Self::New(count) => format!("h1-new-{count}"),
            Self::BytesKeepalive(count) => format!("l4-keepalive-{count}"),
            Self::BytesNew(count) => format!("l4-new-{count}"),
            Self::Http2 => "h2-4x16".to_owned(),
            Self::Rate(rate) => format!("rate-{rate}"),
            Self::Streams(count) => format!("l4-bytes-{count}"),
        }
    }

    fn service(self) -> Service {
        match self {
            Self::Keepalive(_) | Self::New(_) | Self::Rate(_) => Service::Requests,
            Self::BytesKeepalive(_) | Self::BytesNew(_) => Service::Bytes,
            Self::Http2 => Service::Http2,
            Self::Streams(_) => Service::Bulk,
        }
    }

    /// Whether a system takes part: variants of one do where they differ from it.
    fn takes(self, system: System, whole: bool) -> bool {
        let usual = !matches!(self, Self::Keepalive(count) | Self::New(count) if count != USUAL) && self != Self::Http2;
        match system {
            System::Waylay(Flavour::Logged) => self == Self::Keepalive(USUAL),
            System::Waylay(Flavour::Kernel) => matches!(self.service(), Service::Bytes | Service::Bulk),
            System::Peer(peer, Net::Iptables) => {
                let most = matches!(peer, Peer::Haproxy | Peer::Envoy);
                usual && (whole || most && matches!(self, Self::BytesNew(_) | Self::New(_) | Self::Keepalive(_)))
            }
            _ => true,
        }
    }

    fn measure(self, work: &mut Work<'_>, target: &Target, proxy: Option<u32>) -> Result<Values> {
        let cpus = work.stage.cpus();
        if let Self::Rate(rate) = self {
            return measure_rate(work, target, proxy, rate);
        }
        let command = self.command(work, target)?;
        work.note(&command);
        let limit = tools::SLACK + Duration::from_secs(work.plan.seconds.into());
        let before = Usage::now(proxy, cpus);
        let text = finish(command, limit)?;
        let used = Usage::now(proxy, cpus).since(before);
        let counted = self.read(&text)?;
        Ok((self.values(&counted, used, proxy.is_some()), counted.errors))
    }

    fn values(self, counted: &Counted, used: Usage, proxied: bool) -> Vec<(&'static str, f64)> {
        let units = counted.units.max(1e-9);
        let (rate, proxy, system, scale) = match self.service() {
            Service::Bulk => (metric::GB_PER_SECOND, metric::PROXY_S_PER_GB, metric::SYSTEM_S_PER_GB, 1.0),
            _ => (metric::PER_SECOND, metric::PROXY_US, metric::SYSTEM_US, 1e6),
        };
        let mut values = vec![(rate, counted.per_second), (system, used.system.as_secs_f64() * scale / units)];
        if proxied {
            values.push((proxy, used.proxy.as_secs_f64() * scale / units));
        }
        values
    }

    fn command(self, work: &mut Work<'_>, target: &Target) -> Result<Command> {
        let seconds = work.plan.seconds;
        let program = match self.service() {
            Service::Bulk => "iperf3",
            Service::Http2 => "h2load",
            _ => "wrk",
        };
        let mut command = work.tool(program, target).with_context(|| format!("{program} is missing"))?;
        let address = target.address;
        match self {
            Self::Keepalive(count) | Self::BytesKeepalive(count) => {
                command.args(["-t1", &format!("-c{count}"), &format!("-d{seconds}s"), "-s"]);
                command.arg(work.stage.folder().join("requests.lua")).arg(format!("http://{address}/"));
            }
            Self::New(count) | Self::BytesNew(count) => {
                command.args(["-t1", &format!("-c{count}"), &format!("-d{seconds}s"), "-H", "Connection: close"]);
                command.arg(format!("http://{address}/x"));
            }
            Self::Http2 => {
                command.args(["-t1", "-c4", "-m16", &format!("-D{seconds}"), &format!("http://{address}/x")]);
            }
            Self::Streams(count) => {
                thread::sleep(IPERF_PAUSE);
                command.args(["-J", "-c", &address.ip().to_string(), "-p", &address.port().to_string()]);
                command.args([format!("-t{seconds}"), format!("-P{count}")]);
            }
            Self::Rate(_) => {}
        }
        Ok(command)
    }

    fn read(self, text: &str) -> Result<Counted> {
        match self.service() {
            Service::Bulk => tools::iperf3(text),
            Service::Http2 => tools::h2load(text),
            Service::Bytes | Service::Requests => tools::wrk(text),
        }
    }
}

fn measure_rate(work: &mut Work<'_>, target: &Target, proxy: Option<u32>, rate: u32) -> Result<Values> {
    let (cpus, seconds) = (work.stage.cpus(), f64::from(work.plan.seconds));
    let mut command = work.load(target, "rate");
    command.args(["--to", &target.address.to_string(), "--rate", &rate.to_string(), "--seconds", &seconds.to_string()]);
    let before = Usage::now(proxy, cpus);
    let told = work.load_json(command, seconds)?;
    let used = Usage::now(proxy, cpus).since(before);
    let told = |name: &str| told.get(name).copied().with_context(|| format!("{name} was not told"));
    let mut values = vec![(metric::P50_US, told("p50_us")?), (metric::P99_US, told("p99_us")?)];
    values.push((metric::P999_US, told("p999_us")?));
    if proxy.is_some() {
        values.push((metric::PROXY_US, used.proxy.as_secs_f64() * 1e6 / told("requests")?.max(1.0)));
    }
    let errors = told("errors")?;
    Ok((values, (errors > 0.0).then(|| format!("{errors} requests failed"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_take_part_where_they_differ() {
        let iptables = System::Peer(Peer::Nginx, Net::Iptables);
        let (logged, kernel) = (System::Waylay(Flavour::Logged), System::Waylay(Flavour::Kernel));
        let cases = [
            (Case::Keepalive(32), iptables, true, true),
            (Case::Keepalive(1), iptables, true, false),
            (Case::Streams(1), iptables, false, false),
            (Case::Keepalive(32), logged, false, true),
            (Case::New(32), logged, false, false),
            (Case::Keepalive(32), kernel, true, false),
            (Case::Streams(4), kernel, true, true),
            (Case::Keepalive(1), System::Direct, true, true),
        ];
        for (case, system, whole, expected) in cases {
            assert_eq!(case.takes(system, whole), expected, "{case:?} {system:?}");
        }
    }
}
