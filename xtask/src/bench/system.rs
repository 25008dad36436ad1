//! What is measured side by side: nothing at all between client and origin, waylay, its peers; and how each is started.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::{
    config::{self, Size},
    load,
    stage::{Net, Place, Running, Stage, readable},
    waylay::{self, ELSEWHERE, Flavour, VIRTUAL},
};
use crate::{setup, shell};

/// Envoy with ten thousand of everything needs some seconds.
const READY_LIMIT: Duration = Duration::from_secs(40);
/// Of an error: an unknown field is followed by all that are known.
const SHOWN: usize = 100;
const POLL_INTERVAL: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Envoy,
    Haproxy,
    Nginx,
    Pingora,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    Direct,
    Waylay(Flavour),
    Peer(Peer, Net),
}

/// What a client wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Bytes, to an HTTP origin.
    Bytes,
    /// Requests by HTTP/1.1.
    Requests,
    /// Requests by HTTP/2, without TLS.
    Http2,
    /// Bytes, to iperf3.
    Bulk,
}

/// Where a client connects, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub net: Net,
    /// The client's control group.
    pub group: &'static str,
    pub address: SocketAddrV4,
}

/// Programs that the run was given or found.
#[derive(Debug, Clone)]
pub struct Programs {
    pub waylay: PathBuf,
    /// This program, for the load generators.
    pub xtask: PathBuf,
}

impl Peer {
    pub const ALL: [Self; 4] = [Self::Envoy, Self::Haproxy, Self::Nginx, Self::Pingora];

    pub fn id(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Pingora => "pingora",
        }
    }

    /// Where its program is; an error says how it is brought.
    pub fn program(self) -> Result<PathBuf> {
        let found = match self {
            Self::Envoy => Some(setup::envoy()).filter(|path| shell::is_executable(path)),
            Self::Pingora => Some(setup::pingora()).filter(|path| shell::is_executable(path)),
            Self::Haproxy | Self::Nginx => shell::find(self.id()),
        };
        match found {
            Some(path) => Ok(path),
            None => bail!("{} is not installed: `cargo xtask setup --bench` brings it", self.id()),
        }
    }

    /// The program's arguments, for one configuration.
    fn arguments(self, stage: &Stage, name: &str, size: Size) -> Result<Vec<String>> {
        let write = |suffix: &str, text: &str| -> Result<String> {
            Ok(stage.write(&format!("{name}.{suffix}"), text)?.display().to_string())
        };
        let folder = stage.folder();
        Ok(match self {
            Self::Envoy => {
                let file = write("yaml", &config::envoy(size))?;
                let words = ["-c", &file, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"];
                words.map(str::to_owned).to_vec()
            }
            Self::Haproxy => vec!["-f".to_owned(), write("cfg", &config::haproxy(size))?],
            Self::Nginx => {
                // Both namespaces have one, and each wants a pid file of its own.
                let text = config::nginx(&folder, size).replace("nginx.pid", &format!("{name}.pid"));
                vec!["-p".to_owned(), folder.display().to_string(), "-c".to_owned(), write("conf", &text)?]
            }
            Self::Pingora => vec![self.port(Service::Requests).unwrap_or(0).to_string()],
        })
    }

    fn port(self, service: Service) -> Option<u16> {
        let first = match self {
            Self::Haproxy => 7100,
            Self::Nginx => 7200,
            Self::Envoy => 7300,
            // Beside waylay's own that logs, at 7500.
            Self::Pingora => 7540,
        };
        Some(match (self, service) {
            (Self::Pingora, Service::Bytes | Service::Bulk) => return None,
            (Self::Envoy | Self::Pingora, Service::Http2) | (_, Service::Requests) => first + 2,
            (_, Service::Http2) => first + 3,
            (_, Service::Bytes) => first + 1,
            (_, Service::Bulk) => first + 9,
        })
    }
}

impl System {
    pub fn id(self) -> String {
        match self {
            Self::Direct => "direct".to_owned(),
            Self::Waylay(flavour) => flavour.id().to_owned(),
            Self::Peer(peer, Net::Plain) => peer.id().to_owned(),
            Self::Peer(peer, Net::Iptables) => format!("{}-iptables", peer.id()),
        }
    }

    pub fn is_waylay(self) -> bool {
        matches!(self, Self::Waylay(_))
    }

    pub fn target(self, service: Service) -> Option<Target> {
        let plain = |port| Target { net: Net::Plain, group: "outside", address: at(Ipv4Addr::LOCALHOST, port) };
        match self {
            Self::Direct => match service {
                Service::Bytes | Service::Requests => Some(plain(9003)),
                Service::Bulk => Some(plain(9100)),
                Service::Http2 => None,
            },
            Self::Waylay(flavour) if flavour.intercepts() => {
                let [bytes, requests, bulk, _] = VIRTUAL;
                let port = match service {
                    Service::Bytes => bytes,
                    Service::Requests | Service::Http2 => requests,
                    Service::Bulk => bulk,
                };
                Some(Target { net: Net::Plain, group: flavour.id(), address: at(elsewhere(), port) })
            }
            Self::Waylay(flavour) => Some(plain(match service {
                Service::Bytes => flavour.ports() + 1,
                Service::Requests | Service::Http2 => flavour.ports() + 2,
                Service::Bulk => flavour.ports() + 9,
            })),
            Self::Peer(peer, Net::Plain) => Some(plain(peer.port(service)?)),
            Self::Peer(peer, Net::Iptables) => {
                let address = at(elsewhere(), peer.port(service)?);
                Some(Target { net: Net::Iptables, group: "outside", address })
            }
        }
    }

    /// Starts it and waits until it serves; nothing is to be started for `Direct`.
    pub fn start(self, stage: &Stage, programs: &Programs, size: Size) -> Result<Option<Started>> {
        let (mut started, socket) = match self {
            Self::Direct => return Ok(None),
            Self::Waylay(flavour) => start_waylay(stage, &programs.waylay, flavour, size)?,
            Self::Peer(peer, net) => {
                let name = self.id();
                let place = Place { net, group: "outside", cpu: stage.cpus().proxy };
                let mut command = stage.command(&place, peer.program()?);
                command.args(peer.arguments(stage, &name, size)?);
                let line = readable(&command);
                let began = Instant::now();
                let mut running = Running::start(stage, &name, command)?;
                if peer == Peer::Pingora {
                    // SIGTERM makes it wait for what might still be in flight, for seconds.
                    running.end_with(Signal::SIGINT);
                }
                (Started { running, line, ready: began.elapsed(), began, socket: None }, None)
            }
        };
        self.wait_ready(stage, &mut started, socket.as_deref())?;
        started.ready = started.began.elapsed();
        // Or another one answered, whose ports it wanted.
        started.running.still_runs()?;
        started.socket = socket;
        Ok(Some(started))
    }

    /// Until a request is answered; where connections have to be intercepted first, until the agent says that it is.
    fn wait_ready(self, stage: &Stage, started: &mut Started, socket: Option<&Path>) -> Result<()> {
        let target = self.target(Service::Requests).filter(|target| target.group == "outside");
        let deadline = Instant::now() + READY_LIMIT;
        let running = &mut started.running;
        let mut wait = |is_ready: &dyn Fn() -> bool| -> Result<()> {
            while !is_ready() {
                running.still_runs()?;
                if Instant::now() > deadline {
                    bail!("not ready within {} s: {}", READY_LIMIT.as_secs(), running.said());
                }
                thread::sleep(POLL_INTERVAL);
            }
            Ok(())
        };
        match (target, socket) {
            (Some(target), _) => stage.inside(target.net, move || {
                let local = at(Ipv4Addr::LOCALHOST, target.address.port());
                wait(&|| {
                    let stream = load::connect_to(local.into());
                    stream.is_ok_and(|mut stream| load::exchange(&mut stream, load::REQUESTS[2]).is_ok())
                })
            })?,
            (None, Some(socket)) => wait(&|| waylay::ask(socket, "/ready").is_ok()),
            (None, None) => Ok(()),
        }
    }
}

/// A system that serves.
#[derive(Debug)]
pub struct Started {
    pub running: Running,
    /// As one would type it.
    pub line: String,
    began: Instant,
    /// From its start until it served.
    pub ready: Duration,
    /// waylay's admin socket.
    pub socket: Option<PathBuf>,
}

fn start_waylay(stage: &Stage, program: &Path, flavour: Flavour, size: Size) -> Result<(Started, Option<PathBuf>)> {
    let group = stage.group(flavour.id())?;
    let text = config::waylay(&stage.folder(), flavour, &group, size);
    let file = stage.write(&format!("{}.yaml", flavour.id()), &text)?;
    let check = shell::output(shell::command(program).arg("check").arg("-c").arg(&file))?;
    if !check.status.success() {
        let said = [check.stdout, check.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let first = said.lines().find(|line| line.contains("error")).or_else(|| said.lines().next());
        let folder = format!("{}/", stage.folder().display());
        let first = first.unwrap_or_default().trim().replace(&folder, "");
        bail!("this waylay does not take its configuration: {}", first.chars().take(SHOWN).collect::<String>());
    }
    let socket = stage.folder().join(format!("{}.sock", flavour.id()));
    // Of its own: hooks on both sides of a connection are attached to the agent's group as well, where nobody else is to
    // pay for them.
    let own = flavour.agents_group();
    stage.group(&own)?;
    let place = Place { net: Net::Plain, group: &own, cpu: stage.cpus().proxy };
    let mut command = stage.command(&place, program);
    command.args(["run", "--concurrency", "1", "--no-watch", "--log-level", "warn", "-c"]).arg(&file);
    let line = readable(&command);
    let began = Instant::now();
    let running = Running::start(stage, flavour.id(), command)?;
    Ok((Started { running, line, began, ready: Duration::ZERO, socket: None }, Some(socket)))
}

fn at(ip: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip, port)
}

fn elsewhere() -> Ipv4Addr {
    ELSEWHERE.parse().unwrap_or(Ipv4Addr::LOCALHOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_systems_share_a_port_in_one_place() {
        let mut seen = Vec::new();
        let peers = Peer::ALL.map(|peer| System::Peer(peer, Net::Plain));
        let waylays = Flavour::SERVING.map(System::Waylay);
        for system in peers.into_iter().chain(waylays) {
            for service in [Service::Bytes, Service::Requests, Service::Bulk] {
                let Some(target) = system.target(service) else { continue };
                assert!(!seen.contains(&target), "{system:?} {service:?} {target:?}");
                seen.push(target);
            }
        }
        assert_eq!(System::Peer(Peer::Pingora, Net::Plain).target(Service::Bulk), None);
    }
}
