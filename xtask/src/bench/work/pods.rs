//! What enrolled pods cost: network namespaces with loopback that the run makes, told to the agent by a runtime that
//! only lists them. How long until all are enrolled, memory, and whether a connection of one costs more the more there
//! are.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::Work;
use crate::bench::{
    config::{self, Size},
    results::metric,
    runtime,
    stage::{Net, Place, Running, finish},
    system::System,
    tools,
    usage::{Usage, resident_kb},
    waylay::{self, ELSEWHERE, Flavour},
};
use crate::shell;

const ENROL_LIMIT: Duration = Duration::from_secs(60);
/// Of the agent's own namespace, where nothing is taken.
const SYSTEM: &str = "waylay-pods";

pub fn measure(work: &mut Work<'_>) -> Result<()> {
    work.alone();
    let mut namespaces: Vec<String> = Vec::new();
    let mut empty_kb = None;
    for count in std::iter::once(0).chain(work.plan.pods.iter().copied()) {
        while namespaces.len() < count {
            let name = format!("{}-p{}", work.stage.netns(Net::Plain), namespaces.len());
            work.stage.named_namespace(&name)?;
            namespaces.push(name);
        }
        let memory = measure_count(work, &namespaces, empty_kb).with_context(|| format!("{count} pods"))?;
        empty_kb.get_or_insert(memory);
    }
    Ok(())
}

/// Returns the agent's memory with all of them enrolled.
fn measure_count(work: &mut Work<'_>, namespaces: &[String], empty_kb: Option<u64>) -> Result<u64> {
    let socket = work.stage.folder().join("runtime.sock");
    // The listing of the count before.
    let _ = std::fs::remove_file(&socket);
    runtime::serve(&socket, namespaces.to_vec())?;
    let started = work.start(System::Waylay(Flavour::Pods), Size::SMALL)?.context("an agent")?;
    let admin = started.socket.clone().context("an admin socket")?;
    let began = Instant::now();
    loop {
        let enrolled = waylay::ask(&admin, "/pods")?.lines().filter(|line| line.ends_with("::enrolled")).count();
        if enrolled >= namespaces.len() {
            break;
        }
        if began.elapsed() > ENROL_LIMIT {
            bail!("{enrolled} of {} are enrolled: {}", namespaces.len(), started.running.said());
        }
        thread::sleep(Duration::from_millis(2));
    }
    let took = started.ready + began.elapsed();
    thread::sleep(Duration::from_millis(500));
    let pid = started.running.pid();
    let memory = resident_kb(pid);
    let case = format!("pods-{}", namespaces.len());
    let mut values = vec![(metric::ENROL_MS, took.as_secs_f64() * 1e3), (metric::RSS_MB, memory as f64 / 1024.0)];
    if let Some(empty) = empty_kb {
        values.push((metric::KB_PER_POD, memory.saturating_sub(empty) as f64 / namespaces.len().max(1) as f64));
    }
    work.results.push(&case, SYSTEM, 0, &values);
    if let Some(last) = namespaces.last() {
        let _origins = origins(work, last)?;
        for round in 1..=work.plan.rounds {
            let values = traffic(work, last, pid)?;
            work.results.push(&case, SYSTEM, round, &values);
        }
    }
    Ok(memory)
}

/// Servers on the loopback of a pod.
fn origins(work: &Work<'_>, netns: &str) -> Result<Vec<Running>> {
    let place = Place { net: Net::Plain, group: "outside", cpu: work.stage.cpus().load };
    let folder = work.stage.folder();
    let file = work.stage.write("pod-origin.conf", &config::origin(&folder).replace("origin.pid", "pod-origin.pid"))?;
    let mut nginx = work.stage.command_in(netns, &place, shell::find("nginx").context("nginx is missing")?);
    nginx.arg("-p").arg(&folder).arg("-c").arg(file);
    let mut sink = work.stage.command_in(netns, &place, &work.programs.xtask);
    sink.args(["load", "sink", "--at", "127.0.0.1:9101"]);
    let started = vec![Running::start(work.stage, "pod-origin", nginx)?, Running::start(work.stage, "pod-sink", sink)?];
    thread::sleep(Duration::from_millis(200));
    Ok(started)
}

/// Requests and single connections from inside a pod.
fn traffic(work: &mut Work<'_>, netns: &str, pid: u32) -> Result<Vec<(&'static str, f64)>> {
    let cpus = work.stage.cpus();
    let place = Place { net: Net::Plain, group: Flavour::Pods.id(), cpu: cpus.load };
    let mut wrk = work.stage.command_in(netns, &place, shell::find("wrk").context("wrk is missing")?);
    wrk.args(["-t1", "-c32", "-d1s", &format!("http://{ELSEWHERE}:8002/x")]);
    let before = Usage::now(Some(pid), cpus);
    let counted = tools::wrk(&finish(wrk, tools::SLACK)?)?;
    let used = Usage::now(Some(pid), cpus).since(before);
    if let Some(errors) = counted.errors {
        bail!("requests from a pod: {errors}");
    }
    let mut connect = work.stage.command_in(netns, &place, &work.programs.xtask);
    connect.args(["load", "connect", "--to", &format!("{ELSEWHERE}:8101"), "--count", "1000"]);
    let told = work.load_json(connect, 0.0)?;
    Ok(vec![
        (metric::PER_SECOND, counted.per_second),
        (metric::PROXY_US, used.proxy.as_secs_f64() * 1e6 / counted.units.max(1.0)),
        (metric::CONNECT_US, told.get("p50_us").copied().context("no median")?),
    ])
}
