//! What configurations of ten thousand listeners, virtual hosts, routes or clusters cost: requests a second and CPU per
//! request to the last of them, until ready, memory, and how long waylay takes to reload.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::Work;
use crate::bench::{
    config::{Dimension, FIRST_LISTENER, Size},
    results::metric,
    stage::{Net, finish},
    system::{Peer, Service, Started, System, Target},
    tools,
    usage::{Usage, resident_kb},
    waylay::{self, ELSEWHERE, Flavour},
};

const CONNECTIONS: &str = "-c32";
/// Each starts everything anew: two processes of the same proxy may differ by more than what is asked here.
const ROUNDS: u32 = 3;
/// Of routes: what is asked there is less than a twentieth of what a request costs.
const ROUNDS_OF_ROUTES: u32 = 7;
/// Of the peers, some of which take seconds to start.
const ROUNDS_OF_PEERS: u32 = 2;
const RELOAD_LIMIT: Duration = Duration::from_secs(30);
const RELOADS: &str = "waylay_server_config_reload_success";

pub fn measure(work: &mut Work<'_>) -> Result<()> {
    work.alone();
    for of in Dimension::ALL {
        let rounds = if of == Dimension::Routes { ROUNDS_OF_ROUTES } else { ROUNDS };
        for round in 1..=rounds {
            let has_round = |system: &System| system.is_waylay() || round <= ROUNDS_OF_PEERS;
            for system in systems(of, work.plan.whole).into_iter().filter(has_round) {
                // The sizes one after the other: what is asked is how they differ.
                for count in work.plan.sizes {
                    let size = Size { of, count: *count };
                    let began = Instant::now();
                    let measured = measure_one(work, system, size, round);
                    eprintln!("    {} {}: {:.1} s", case(size), system.id(), began.elapsed().as_secs_f64());
                    if let Err(reason) = measured {
                        work.results.skip(&format!("{} {}", case(size), system.id()), &format!("{reason:#}"));
                    }
                }
            }
        }
    }
    work.results.skip("size pingora", "its routes are a program's code, not a configuration");
    work.results.skip("size-listeners of peers", "theirs are bound sockets, between which the kernel chooses");
    Ok(())
}

pub fn case(size: Size) -> String {
    format!("size-{}-{}", size.of.word(), size.count)
}

fn systems(of: Dimension, whole: bool) -> Vec<System> {
    if of == Dimension::Listeners {
        return vec![System::Waylay(Flavour::Transparent)];
    }
    let peers: &[Peer] = if whole { &[Peer::Envoy, Peer::Haproxy, Peer::Nginx] } else { &[] };
    let peers = peers.iter().map(|peer| System::Peer(*peer, Net::Plain));
    std::iter::once(System::Waylay(Flavour::Explicit)).chain(peers).collect()
}

fn measure_one(work: &mut Work<'_>, system: System, size: Size, round: u32) -> Result<()> {
    let Some(started) = work.start(system, size)? else { return Ok(()) };
    let (pid, cpus) = (started.running.pid(), work.stage.cpus());
    let memory = resident_kb(pid) as f64 / 1024.0;
    let mut values = vec![(metric::READY_MS, started.ready.as_secs_f64() * 1e3), (metric::RSS_MB, memory)];
    let command = command(work, system, size)?;
    let before = Usage::now(Some(pid), cpus);
    let counted = tools::wrk(&finish(command, tools::SLACK)?)?;
    let used = Usage::now(Some(pid), cpus).since(before);
    let per_request = used.proxy.as_secs_f64() * 1e6 / counted.units.max(1.0);
    values.extend([(metric::PER_SECOND, counted.per_second), (metric::PROXY_US, per_request)]);
    if system.is_waylay() {
        values.push((metric::RELOAD_MS, reload(&started)?.as_secs_f64() * 1e3));
    }
    work.results.push(&case(size), &system.id(), round, &values).errors = counted.errors;
    Ok(())
}

/// wrk, whose requests all meet the last of them.
fn command(work: &mut Work<'_>, system: System, size: Size) -> Result<std::process::Command> {
    let (path, host) = size.request();
    let target = match size.of {
        Dimension::Listeners => {
            let port = u16::try_from(FIRST_LISTENER + size.count - 1)?;
            Some(Target {
                net: Net::Plain,
                group: Flavour::Transparent.id(),
                address: format!("{ELSEWHERE}:{port}").parse()?,
            })
        }
        _ => system.target(Service::Requests),
    };
    let Some(mut command) = target.as_ref().and_then(|target| work.tool("wrk", target)) else {
        bail!("wrk is missing");
    };
    let address = target.map(|target| target.address.to_string()).unwrap_or_default();
    command.args(["-t1", CONNECTIONS, "-d1s", "-H", &format!("Host: {host}")]);
    if size.of == Dimension::Listeners {
        // A listener is chosen for each connection, not for each request.
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{address}{path}"));
    Ok(command)
}

/// From SIGHUP until the configuration, which is the same, is in force.
fn reload(started: &Started) -> Result<Duration> {
    let Some(socket) = started.socket.as_deref() else { return Ok(Duration::ZERO) };
    let before = reloads(socket);
    let began = Instant::now();
    started.running.signal(Signal::SIGHUP);
    while reloads(socket) <= before {
        if began.elapsed() > RELOAD_LIMIT {
            bail!("the configuration was not reloaded within {} s: {}", RELOAD_LIMIT.as_secs(), started.running.said());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(began.elapsed())
}

fn reloads(socket: &Path) -> f64 {
    waylay::statistic(socket, RELOADS)
}
