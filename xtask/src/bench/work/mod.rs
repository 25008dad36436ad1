//! The measurements, one file for each chapter of the report.

mod connect;
mod grown;
mod memory;
mod pods;
mod start;
mod traffic;

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    config::Size,
    plan::Plan,
    results::Results,
    stage::{Net, Place, Stage, finish, readable},
    system::{Peer, Programs, Started, System, Target},
    tools,
    waylay::Flavour,
};
use crate::shell;

pub use traffic::Case;

/// Everything that the chapters share.
#[derive(Debug)]
pub struct Work<'a> {
    pub stage: &'a Stage,
    pub plan: &'a Plan,
    pub programs: &'a Programs,
    pub results: Results,
    /// Whether the second namespace, with a rule of iptables, could be made.
    pub has_iptables: bool,
    /// What was started for traffic, and serves until something else needs the machine for itself.
    pub cast: Option<Cast>,
}

/// A chapter, as `--only` names it.
pub type Chapter = (&'static str, fn(&mut Work<'_>) -> Result<()>);

pub const CHAPTERS: &[Chapter] = &[
    ("connect", connect::measure),
    ("requests", traffic::requests),
    ("http2", traffic::http2),
    ("latency", traffic::latency),
    ("bytes", traffic::bytes),
    ("start-up", start::measure),
    ("memory", memory::measure),
    ("size", grown::measure),
    ("pods", pods::measure),
];

/// Systems that serve, with what has to stay alive for them; `direct` has nothing.
pub type Cast = Vec<(System, Option<Started>)>;

impl Work<'_> {
    /// Ends what serves for traffic: ports, memory and the machine are the next chapter's.
    fn alone(&mut self) {
        self.cast = None;
    }

    /// Starts all that can be started; the others are skipped by name.
    fn start_all(&mut self, systems: &[System]) -> Cast {
        let mut cast = Vec::new();
        for system in systems {
            match self.start(*system, Size::SMALL) {
                Ok(started) => cast.push((*system, started)),
                Err(reason) => self.results.skip(&system.id(), &format!("{reason:#}")),
            }
        }
        cast
    }

    fn start(&mut self, system: System, size: Size) -> Result<Option<Started>> {
        if matches!(system, System::Peer(_, Net::Iptables)) && !self.has_iptables {
            bail!("there is no namespace with iptables");
        }
        let started = system.start(self.stage, self.programs, size)?;
        if let Some(started) = &started {
            self.results.commands.entry(system.id()).or_insert_with(|| started.line.clone());
        }
        Ok(started)
    }

    /// A load generator that comes with the distribution, at `target`; `None`, and skipped by name, without it.
    fn tool(&mut self, program: &str, target: &Target) -> Option<Command> {
        if let Some(path) = shell::find(program) {
            return Some(self.client(target, path));
        }
        self.results.skip(program, &format!("{program} is not installed: `cargo xtask setup --bench` brings it"));
        None
    }

    fn client(&self, target: &Target, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let place = Place { net: target.net, group: target.group, cpu: self.stage.cpus().load };
        self.stage.command(&place, program)
    }

    /// One of our own load generators.
    fn load(&self, target: &Target, kind: &str) -> Command {
        let mut command = self.client(target, &self.programs.xtask);
        command.args(["load", kind]);
        command
    }

    /// Runs it and reads its one line of JSON.
    fn load_json(&mut self, command: Command, seconds: f64) -> Result<BTreeMap<String, f64>> {
        self.note(&command);
        let text = finish(command, tools::SLACK + std::time::Duration::from_secs_f64(seconds))?;
        let value: Value = serde_json::from_str(text.trim()).with_context(|| format!("no JSON: {text}"))?;
        let numbers = value.as_object().context("no JSON object")?.iter();
        Ok(numbers.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect())
    }

    /// Keeps the first command of each load generator for the report.
    fn note(&mut self, command: &Command) {
        let line = readable(command);
        let words: Vec<_> = line.split(' ').collect();
        let name = match words.as_slice() {
            [_, "load", kind, ..] => format!("load {kind}"),
            [program, ..] => (*program).to_owned(),
            [] => return,
        };
        self.results.commands.entry(name).or_insert(line);
    }
}

/// All systems that are started for traffic.
fn everybody() -> Vec<System> {
    let mut systems = vec![System::Direct];
    systems.extend(Flavour::SERVING.map(System::Waylay));
    for net in [Net::Plain, Net::Iptables] {
        systems.extend(Peer::ALL.map(|peer| System::Peer(peer, net)));
    }
    systems
}

/// Those whose clients connect to them.
fn explicit() -> Vec<System> {
    let peers = Peer::ALL.map(|peer| System::Peer(peer, Net::Plain));
    [System::Waylay(Flavour::Explicit), System::Waylay(Flavour::Transparent)].into_iter().chain(peers).collect()
}
