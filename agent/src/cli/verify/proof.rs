//! The proof: a real program, the real hooks, and a listener that nobody but they could lead to.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::Check;
use crate::cli::exec::cgroup::ExecCgroup;
use crate::kernel::{Counter, Enrolment, InboundEnrolment, InterceptOptions, Interception, Policy, Rule};
use crate::netns::{Netns, NetnsThread};

/// Longest a connection through the hooks may take; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
/// What our listener says to the program that reached it.
const GREETING: &str = "this is waylay\n";

/// An address of the loopback that hardly anybody uses.
const UNUSED_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1));
const UNUSED_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

pub(super) fn checks(to: Option<SocketAddr>) -> Vec<Check> {
    let mut checks = match to {
        Some(to) => vec![check(if to.is_ipv4() { "outbound IPv4" } else { "outbound IPv6" }, Ok(to), leaving)],
        None => vec![
            check("outbound IPv4", unserved(UNUSED_V4), leaving),
            check("outbound IPv6", unserved(UNUSED_V6), leaving),
        ],
    };
    checks.push(check("inbound IPv4", unserved(UNUSED_V4), arriving));
    checks.push(check("inbound IPv6", unserved(UNUSED_V6), arriving));
    checks
}

/// An address with a port at which nobody listened a moment ago.
fn unserved(ip: IpAddr) -> io::Result<SocketAddr> {
    TcpListener::bind((ip, 0))?.local_addr()
}

fn check(name: &'static str, to: io::Result<SocketAddr>, prove: fn(SocketAddr) -> anyhow::Result<Outcome>) -> Check {
    let to = match to {
        Ok(to) => to,
        Err(error) => {
            let found = format!("there is no such address to try it with ({error})");
            return Check::warning(name, found, "this machine does not use the family, or its loopback is down");
        }
    };
    match prove(to) {
        Ok(Outcome::Reached) => {
            Check::ok(name, format!("a connection to {to} reached the test listener, with its original destination"))
        }
        Ok(Outcome::Passed(why)) => {
            let mend = "see the checks above; a program that runs before waylay's may have sent it elsewhere";
            Check::failed(name, format!("a connection to {to} did not reach the test listener: {why}"), mend)
        }
        Err(error) => Check::failed(name, format!("{error:#}"), "see the checks above"),
    }
}

enum Outcome {
    Reached,
    /// With what the program and the hooks say of it.
    Passed(String),
}

/// The connect hooks take what the program sends, and hand its destination over.
fn leaving(to: SocketAddr) -> anyhow::Result<Outcome> {
    let cgroup = ExecCgroup::create()?;
    let listener = listen_beside(to)?;
    let interception = Interception::attach(&options(&cgroup, to, listener.local_addr()?))?;
    try_it(&cgroup, &listener, to, interception, |interception, accepted| {
        let handover = interception.kernel().handover(accepted)?;
        let Some(handover) = handover else { bail!("the connection came, but not its original destination") };
        Ok(handover.original_dst)
    })
}

/// The lookup hook takes what arrives at a port that nobody serves; the accepted socket has the dialled address itself.
fn arriving(to: SocketAddr) -> anyhow::Result<Outcome> {
    let cgroup = ExecCgroup::create()?;
    let listener = listen_beside(to)?;
    let options = InterceptOptions { host: false, ..options(&cgroup, to, listener.local_addr()?) };
    let mut interception = Interception::attach(&options)?;
    let netns = own_netns().context("opening the own network namespace")?;
    let at_its_port = Rule { cidr: None, ports: vec![to.port()..=to.port()] };
    let policy = Policy { include: vec![at_its_port], exclude: Vec::new() };
    let inbound = InboundEnrolment {
        policy: &policy,
        listener_v4: to.is_ipv4().then_some(listener.as_fd()),
        listener_v6: to.is_ipv6().then_some(listener.as_fd()),
    };
    interception.enrol(&netns, &Enrolment { outbound: None, inbound: Some(inbound), listeners: &[] })?;
    try_it(&cgroup, &listener, to, interception, |_, accepted| accepted.local_addr().context("asking for its address"))
}

fn own_netns() -> io::Result<Netns> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async { Netns::open(Path::new("/proc/self/ns/net"), &NetnsThread::start()?).await })
}

fn listen_beside(to: SocketAddr) -> anyhow::Result<TcpListener> {
    let here = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
    TcpListener::bind((here, 0)).context("listening on the loopback")
}

/// Lets the program connect, and asks by `dialled` what the accepted connection is known to have gone to.
fn try_it(
    cgroup: &ExecCgroup,
    listener: &TcpListener,
    to: SocketAddr,
    interception: Interception,
    dialled: impl FnOnce(&Interception, &TcpStream) -> anyhow::Result<SocketAddr>,
) -> anyhow::Result<Outcome> {
    let mut child = connect(cgroup, to)?;
    let outcome = match accept(listener, &mut child)? {
        Some(mut accepted) => {
            let dialled = dialled(&interception, &accepted)?;
            ensure!(
                dialled == to,
                "the connection came as one to {dialled}: another program has rewritten its address before waylay saw it"
            );
            accepted.write_all(GREETING.as_bytes()).context("answering")?;
            drop(accepted);
            heard(child, to)?;
            Outcome::Reached
        }
        None => Outcome::Passed(why_passed(child, &interception)),
    };
    interception.detach()?;
    Ok(outcome)
}

/// Just the one address, in just the one cgroup.
fn options(cgroup: &ExecCgroup, to: SocketAddr, listener: SocketAddr) -> InterceptOptions {
    let mut options = InterceptOptions::new(cgroup.path().to_owned());
    match listener {
        SocketAddr::V4(listener) => options.redirect_v4 = Some(listener),
        SocketAddr::V6(listener) => options.redirect_v6 = Some(listener),
    }
    let only = Rule { cidr: Some(to.ip().to_canonical().into()), ports: vec![to.port()..=to.port()] };
    options.policy = Policy { include: vec![only], exclude: Vec::new() };
    // Nobody beats, and it is over soon.
    options.heartbeat_loss = 10 * PATIENCE;
    options
}

/// Ourselves, in the cgroup, as the hidden command that connects.
fn connect(cgroup: &ExecCgroup, to: SocketAddr) -> anyhow::Result<Child> {
    let ourselves = std::env::current_exe().context("finding our own program")?;
    let mut command = Command::new(&ourselves);
    command.arg("__enter").arg(cgroup.path()).arg("--").arg(ourselves).arg("__connect").arg(to.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("starting the program that connects")
}

/// `None`: the program ended, or the time did, and nobody came.
fn accept(listener: &TcpListener, child: &mut Child) -> anyhow::Result<Option<TcpStream>> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    let mut ended = false;
    loop {
        match listener.accept() {
            Ok((accepted, _)) => {
                accepted.set_nonblocking(false)?;
                return Ok(Some(accepted));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("accepting"),
        }
        if ended || Instant::now() > deadline {
            return Ok(None);
        }
        // What it did before it ended may still be in the queue: one more look.
        ended = child.try_wait()?.is_some();
        sleep(PAUSE);
    }
}

fn heard(child: Child, to: SocketAddr) -> anyhow::Result<()> {
    let output = child.wait_with_output().context("waiting for the program that connects")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text == format!("{to}\n{GREETING}"), "the program that connected heard something else: {}", text.trim());
    Ok(())
}

fn why_passed(mut child: Child, interception: &Interception) -> String {
    let _ = child.kill();
    let said = child.wait_with_output().map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
    let counted: Vec<_> = interception.kernel().counters().unwrap_or_default();
    let counted: Vec<_> =
        counted.iter().filter(|(_, value)| *value > 0).map(|(counter, _): &(Counter, u64)| counter.name()).collect();
    let counted = if counted.is_empty() { "the hooks did not run".to_owned() } else { counted.join(", ") };
    match said {
        Ok(said) if !said.is_empty() => format!("{counted}; the program says: {said}"),
        _ => counted,
    }
}

/// Connect somewhere and say what is there
#[derive(Debug, clap::Args)]
pub struct Connect {
    /// Where to
    to: SocketAddr,
}

impl Connect {
    /// Prints the peer's address as the system tells it, and what the peer says.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.to, PATIENCE).context("connecting")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = format!("{}\n", stream.peer_addr().context("asking for the peer's address")?);
        stream.read_to_string(&mut text).context("reading")?;
        crate::cli::output::print(&text)
    }
}
