//! One connect(2) in a loop, from the call to its return, to a server that accepts and closes: directly; taken and
//! sent to that server; in a control group that waylay takes, but passing by; with the endpoint chosen in the kernel;
//! and through iptables.

use anyhow::{Context as _, Result};

use super::Work;
use crate::bench::{
    config::Size,
    results::metric,
    stage::Net,
    system::{System, Target},
    waylay::{ELSEWHERE, Flavour},
};

pub const CASE: &str = "connect";
/// A round is made of this many turns, in which each gets some of its calls.
const TURNS: usize = 6;

pub fn measure(work: &mut Work<'_>) -> Result<()> {
    work.alone();
    let mut agents = Vec::new();
    for flavour in [Flavour::Redirecting, Flavour::Kernel] {
        match work.start(System::Waylay(flavour), Size::SMALL) {
            Ok(agent) => agents.push((flavour, agent)),
            Err(reason) => work.results.skip(&format!("{CASE} {}", flavour.id()), &format!("{reason:#}")),
        }
    }
    let runs = |wanted: Flavour| agents.iter().any(|(flavour, _)| *flavour == wanted);
    let mut ways = vec![("direct", target(Net::Plain, "outside", "127.0.0.1:9101")?)];
    if runs(Flavour::Redirecting) {
        let group = Flavour::Redirecting.id();
        ways.push(("waylay-transparent", target(Net::Plain, group, &format!("{ELSEWHERE}:8101"))?));
        ways.push(("waylay-passing", target(Net::Plain, group, "127.0.0.1:9101")?));
    }
    if runs(Flavour::Kernel) {
        ways.push(("waylay-kernel", target(Net::Plain, Flavour::Kernel.id(), &format!("{ELSEWHERE}:8101"))?));
    }
    if work.has_iptables {
        ways.push(("conntrack", target(Net::Iptables, "outside", "127.0.0.1:9101")?));
        ways.push(("iptables", target(Net::Iptables, "outside", &format!("{ELSEWHERE}:9101"))?));
    }
    let rounds = work.plan.rounds * TURNS as u32;
    for round in 0..rounds {
        for (name, target) in &ways {
            let mut command = work.load(target, "connect");
            command.args(["--to", &target.address.to_string(), "--count", &(work.plan.connects / TURNS).to_string()]);
            match work.load_json(command, 0.0) {
                Ok(told) => {
                    let value = told.get("p50_us").copied().context("no median")?;
                    work.results.push(CASE, name, round, &[(metric::CONNECT_US, value)]);
                }
                Err(reason) => work.results.skip(&format!("{CASE} {name}"), &format!("{reason:#}")),
            }
        }
    }
    Ok(())
}

fn target(net: Net, group: &'static str, address: &str) -> Result<Target> {
    Ok(Target { net, group, address: address.parse()? })
}
