//! `cargo xtask bench`: waylay and its peers side by side on this machine, every number as a ratio of one run.
//!
//! Read [`run`] first: build, take the stage, measure chapter by chapter (`work`), then say what came of it: JSON,
//! tables, plots, and what became worse since the run before.

mod compare;
mod config;
pub mod load;
mod machine;
mod output;
mod plan;
mod plot;
mod report;
mod results;
mod runtime;
mod stage;
mod stats;
mod system;
mod targets;
mod tools;
mod usage;
mod waylay;
mod work;

use std::{
    env,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{setup, shell};
use machine::{Cpus, Machine};
use plan::Plan;
use results::Results;
use stage::{Net, Place, Running, Stage};
use system::{Peer, Programs};
use work::{CHAPTERS, Work};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The rows that say most, within four minutes
    #[arg(long)]
    quick: bool,

    /// Only these chapters: connect, requests, http2, latency, bytes, start-up, memory, size, pods
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,

    /// A stored run to compare with, instead of the latest
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// Put the tables and plots of this run into docs/
    #[arg(long)]
    publish: bool,

    /// Put those of the latest stored run into docs/, and measure nothing
    #[arg(long, conflicts_with_all = ["quick", "only", "compare", "publish"])]
    publish_latest: bool,

    /// Measure this waylay instead of building it
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let folder = output::Folder::open()?;
    if args.publish_latest {
        return folder.publish(&folder.latest()?);
    }
    for name in &args.only {
        if !CHAPTERS.iter().any(|(chapter, _)| chapter == name) {
            let known: Vec<_> = CHAPTERS.iter().map(|(chapter, _)| *chapter).collect();
            bail!("--only {name}: there is no such chapter; there are {}", known.join(", "));
        }
    }
    let waylay = match &args.binary {
        Some(file) => file.canonicalize().with_context(|| format!("cannot find {}", file.display()))?,
        None => build()?,
    };
    if !shell::is_root() {
        return again_as_root(&waylay, args.binary.is_some());
    }
    let before = match &args.compare {
        Some(file) => Some(Results::load(file)?),
        None => folder.latest().ok(),
    };
    let plan = if args.quick { plan::QUICK } else { plan::FULL };
    let results = measure(&plan, &args.only, waylay)?;
    folder.write(&results)?;
    print!("{}", report::targets_table(&results));
    if let Some(before) = before {
        print!("\n{}", compare::told(&before, &results));
    }
    println!("\nall tables and plots: {}", folder.path().display());
    if args.publish { folder.publish(&results) } else { Ok(()) }
}

/// As it is shipped.
fn build() -> Result<PathBuf> {
    setup::bring(setup::Purpose::Build)?;
    shell::step("building waylay with the release profile", || {
        shell::run(shell::cargo().args(["build", "--quiet", "--release", "--package", "waylay"]))
    })?;
    Ok(shell::target_dir().join("release/waylay"))
}

/// Building is the user's, what follows is root's.
fn again_as_root(waylay: &std::path::Path, is_given: bool) -> Result<()> {
    let mut command = shell::as_root(env::current_exe()?)?;
    command.args(env::args_os().skip(1));
    if !is_given {
        command.arg("--binary").arg(waylay);
    }
    shell::run(&mut command)
}

fn measure(plan: &Plan, only: &[String], waylay: PathBuf) -> Result<Results> {
    let began = Instant::now();
    let cpus = Cpus::choose()?;
    let stage = Stage::build(cpus)?;
    eprintln!("==> {} run; {}", plan.name, cpus.shown());
    let programs = Programs { waylay, xtask: env::current_exe()? };
    stage.write("requests.lua", include_str!("conf/requests.lua"))?;
    let mut results = Results { machine: Machine::look(cpus, plan.name)?, ..Results::default() };
    results.machine.versions = versions(&programs);
    let has_iptables = match second_namespace(&stage) {
        Ok(()) => true,
        Err(reason) => {
            results.skip("everything behind iptables", &format!("{reason:#}"));
            false
        }
    };
    let mut work = Work { stage: &stage, plan, programs: &programs, results, has_iptables, cast: None };
    let _origins = origins(&stage, has_iptables)?;
    for (name, chapter) in CHAPTERS {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        if let Err(reason) = shell::step(name, || chapter(&mut work)) {
            work.results.skip(name, &format!("{reason:#}"));
        }
    }
    work.cast = None;
    let mut results = work.results;
    results.machine.time = shell::stdout(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?;
    eprintln!("==> measured in {:.0} s", began.elapsed().as_secs_f64());
    Ok(results)
}

fn second_namespace(stage: &Stage) -> Result<()> {
    if shell::find("iptables").is_none() {
        bail!("iptables is not installed: `cargo xtask setup --bench` brings it");
    }
    stage.namespace(Net::Iptables)
}

/// The far ends, in each namespace: three HTTP servers, and iperf3.
fn origins(stage: &Stage, has_iptables: bool) -> Result<Vec<Running>> {
    let nginx = Peer::Nginx.program().context("nginx is the origin of all requests")?;
    let mut running = Vec::new();
    for net in [Some(Net::Plain), has_iptables.then_some(Net::Iptables)].into_iter().flatten() {
        let place = Place { net, group: "outside", cpu: stage.cpus().load };
        let name = |what: &str| format!("{what}-{net:?}").to_lowercase();
        let text = config::origin(&stage.folder()).replace("origin.pid", &format!("{}.pid", name("origin")));
        let file = stage.write(&format!("{}.conf", name("origin")), &text)?;
        let mut origin = stage.command(&place, &nginx);
        origin.arg("-p").arg(stage.folder()).arg("-c").arg(file);
        running.push(Running::start(stage, &name("origin"), origin)?);
        if let Some(iperf3) = shell::find("iperf3") {
            let mut server = stage.command(&place, iperf3);
            server.args(["-s", "-p", "9100"]);
            running.push(Running::start(stage, &name("iperf3"), server)?);
        }
    }
    thread::sleep(Duration::from_millis(300));
    for origin in &mut running {
        origin.still_runs().context("an origin")?;
    }
    Ok(running)
}

/// Of all programs that take part and are there.
fn versions(programs: &Programs) -> Vec<(String, String)> {
    let asked = |program: Option<PathBuf>, arguments: &[&str]| -> Option<String> {
        let output = shell::output(shell::command(program?).args(arguments)).ok()?;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        machine::version_in(&text)
    };
    let mut versions = vec![("waylay", asked(Some(programs.waylay.clone()), &["--version"]))];
    versions.push(("envoy", asked(Peer::Envoy.program().ok(), &["--version"])));
    versions.push(("haproxy", asked(Peer::Haproxy.program().ok(), &["-v"])));
    versions.push(("nginx", asked(Peer::Nginx.program().ok(), &["-v"])));
    let lock = shell::root().join("tests/pingora/Cargo.lock");
    let pingora = machine::locked_version(&lock, "pingora-proxy").filter(|_| Peer::Pingora.program().is_ok());
    versions.push(("pingora", pingora.map(|version| format!("pingora-proxy {version}"))));
    for (name, argument) in [("wrk", "-v"), ("h2load", "--version"), ("iperf3", "--version"), ("iptables", "--version")]
    {
        versions.push((name, asked(shell::find(name), &[argument])));
    }
    versions.into_iter().filter_map(|(name, version)| Some((name.to_owned(), version?))).collect()
}
