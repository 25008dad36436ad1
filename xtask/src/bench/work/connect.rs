//! One connect(2), from the call to its return, on several ways side by side: directly; taken and sent to a server; in a
//! control group that waylay takes, but passing by; with the endpoint chosen in the kernel; and through iptables.
//!
//! [`crate::bench::load::connects`] holds both ends. Those that nothing is to happen to are in a control group of their
//! own: the agent's own has hooks, for the connections that it accepts.

use std::net::SocketAddrV4;

use anyhow::{Context as _, Result};

use super::Work;
use crate::bench::{
    config::Size,
    load::connects::{Plan, Server, Side, Told, Way},
    results::metric,
    stage::{Net, Place, finish},
    system::System,
    tools,
    waylay::{ELSEWHERE, Flavour, REDIRECTED_TO},
};

pub const CASE: &str = "connect";
/// Rounds of this chapter for one of the others, and batches of a round.
const TURNS: usize = 6;
const BATCHES: usize = 10;
/// Where nobody else is.
const APART: &str = "apart";

/// What is not taken, and what was: at the port of the cluster `sink`, and where connections are redirected to.
const ENDPOINT: &str = "127.0.0.1:9101";

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
    work.stage.group(APART)?;
    let plan = plan(work, runs)?;
    let file = work.stage.write("connects.json", &serde_json::to_string(&plan)?)?;
    let place = Place { net: Net::Plain, group: APART, cpu: work.stage.cpus().load };
    let mut command = work.stage.command(&place, &work.programs.xtask);
    command.args(["load", "connects", "--plan"]).arg(file);
    work.note(&command);
    let told: Told = serde_json::from_str(&finish(command, tools::SLACK * 3)?).context("no answer")?;
    for way in &plan.ways {
        for (round, value) in (0..).zip(told.get(&way.name).into_iter().flatten()) {
            work.results.push(CASE, &way.name, round, &[(metric::CONNECT_US, *value)]);
        }
    }
    Ok(())
}

/// All ways, and the ends they lead to.
fn plan(work: &Work<'_>, runs: impl Fn(Flavour) -> bool) -> Result<Plan> {
    let side =
        |net: Net, group: &str| Side { netns: work.stage.netns_file(net), group: work.stage.group_folder(group) };
    let mut plan = Plan {
        rounds: work.plan.rounds as usize * TURNS,
        batches: BATCHES,
        calls: work.plan.connects / TURNS / BATCHES,
        servers: vec![Server { at: ENDPOINT.parse()?, side: side(Net::Plain, APART) }],
        ways: Vec::new(),
    };
    let way = |name: &str, side: Side, to: SocketAddrV4, server: usize| Way { name: name.to_owned(), to, side, server };
    let elsewhere = |port: u16| -> Result<SocketAddrV4> { Ok(SocketAddrV4::new(ELSEWHERE.parse()?, port)) };
    plan.ways.push(way("direct", side(Net::Plain, APART), ENDPOINT.parse()?, 0));
    if runs(Flavour::Redirecting) {
        let (group, agents) = (Flavour::Redirecting.id(), Flavour::Redirecting.agents_group());
        plan.servers.push(Server { at: REDIRECTED_TO.parse()?, side: side(Net::Plain, &agents) });
        let server = plan.servers.len() - 1;
        plan.ways.push(way("waylay-transparent", side(Net::Plain, group), elsewhere(8101)?, server));
        plan.ways.push(way("waylay-passing", side(Net::Plain, group), ENDPOINT.parse()?, 0));
    }
    if runs(Flavour::Kernel) {
        plan.ways.push(way("waylay-kernel", side(Net::Plain, Flavour::Kernel.id()), elsewhere(8101)?, 0));
    }
    if work.has_iptables {
        plan.servers.push(Server { at: ENDPOINT.parse()?, side: side(Net::Iptables, APART) });
        let server = plan.servers.len() - 1;
        plan.ways.push(way("conntrack", side(Net::Iptables, APART), ENDPOINT.parse()?, server));
        plan.ways.push(way("iptables", side(Net::Iptables, APART), elsewhere(9101)?, server));
    }
    Ok(plan)
}
