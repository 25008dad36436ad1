//! What a process holds, and what it holds for each silent connection: a fresh process each time, so that what
//! traffic left in its pools is not counted.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Work, explicit};
use crate::bench::{
    config::Size,
    results::metric,
    system::{Service, System, Target},
    usage::resident_kb,
};

/// Allocators and timers come to rest.
const REST: Duration = Duration::from_millis(700);

pub fn measure(work: &mut Work<'_>) -> Result<()> {
    work.alone();
    for (kind, service) in [("l4", Service::Bytes), ("l7", Service::Requests)] {
        for system in explicit() {
            let Some(target) = system.target(service) else { continue };
            if let Err(reason) = measure_one(work, kind, system, &target) {
                work.results.skip(&format!("idle-{kind} {}", system.id()), &format!("{reason:#}"));
            }
        }
    }
    Ok(())
}

fn measure_one(work: &mut Work<'_>, kind: &str, system: System, target: &Target) -> Result<()> {
    let Some(mut started) = work.start(system, Size::SMALL)? else { return Ok(()) };
    thread::sleep(REST);
    let pid = started.running.pid();
    let empty = resident_kb(pid) as f64;
    work.results.push(&format!("idle-process-{kind}"), &system.id(), 0, &[(metric::RSS_MB, empty / 1024.0)]);
    let mut holders = Vec::new();
    let mut open = 0;
    for wanted in work.plan.idle {
        holders.push(Holder::open(work, kind, target, wanted - open)?);
        open = *wanted;
        thread::sleep(REST);
        started.running.still_runs()?;
        let now = resident_kb(pid) as f64;
        let values = [(metric::KB_PER_CONNECTION, (now - empty) / open as f64), (metric::RSS_MB, now / 1024.0)];
        work.results.push(&format!("idle-{kind}-{open}"), &system.id(), 0, &values);
    }
    Ok(())
}

/// A process that holds connections open until this is dropped.
#[derive(Debug)]
struct Holder(Child);

impl Holder {
    fn open(work: &mut Work<'_>, kind: &str, target: &Target, count: usize) -> Result<Self> {
        let mut command = work.load(target, "idle");
        command.args(["--to", &target.address.to_string(), "--connections", &count.to_string()]);
        if kind == "l7" {
            command.arg("--request");
        }
        work.note(&command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the load generator")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != "ready" {
            let mut said = String::new();
            if let Some(stderr) = child.stderr.take() {
                BufReader::new(stderr).read_line(&mut said)?;
            }
            let _ = child.kill();
            child.wait()?;
            bail!("the connections were not opened: {}", said.trim());
        }
        Ok(Self(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The end of its stdin is what it waits for.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
