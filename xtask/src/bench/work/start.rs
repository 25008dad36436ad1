//! From the start of a process until it answers its first request; where connections are intercepted, until the agent
//! says that it is ready, which is after its programs were verified and attached.

use anyhow::Result;

use super::{Work, explicit};
use crate::bench::{config::Size, results::metric, usage::resident_kb};

pub const CASE: &str = "start-up";

pub fn measure(work: &mut Work<'_>) -> Result<()> {
    work.alone();
    for round in 0..work.plan.starts {
        for system in explicit() {
            match work.start(system, Size::SMALL) {
                Ok(Some(started)) => {
                    let memory = resident_kb(started.running.pid()) as f64 / 1024.0;
                    let values = [(metric::READY_MS, started.ready.as_secs_f64() * 1e3), (metric::RSS_MB, memory)];
                    work.results.push(CASE, &system.id(), round, &values);
                }
                Ok(None) => {}
                Err(reason) => work.results.skip(&system.id(), &format!("{reason:#}")),
            }
        }
    }
    Ok(())
}
