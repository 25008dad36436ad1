//! Two network namespaces joined by a cable: a pod with an application, and its clients.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};
use waylay::{
    kernel::{Enrolment, InboundEnrolment, Interception, KernelError, Policy, Rule},
    listener::TrafficDirection,
    netns::{Netns, NetnsThread},
};

/// Every pod has these addresses: the same 4-tuple may exist in each.
const POD_V4: &str = "10.77.0.2";
const POD_V6: &str = "fd77::2";
/// Two clients.
pub const CLIENT_V4: &str = "10.77.0.1";
pub const OTHER_CLIENT_V4: &str = "10.77.0.9";
pub const CLIENT_V6: &str = "fd77::1";

const PATIENCE: Duration = Duration::from_secs(20);

pub struct Pod {
    name: String,
    pub netns: Netns,
    /// The agent's listening sockets in the pod.
    pub agent_v4: TcpListener,
    pub agent_v6: TcpListener,
}

impl Pod {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let name = format!("wlk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = Names(name.clone());
        for suffix in ["p", "c"] {
            ip(&format!("netns add {name}{suffix}"));
            ip(&format!("-n {name}{suffix} link set lo up"));
        }
        ip(&format!("link add e0 netns {name}p type veth peer name e0 netns {name}c"));
        for address in [POD_V4, POD_V6] {
            add(&format!("{name}p"), address);
        }
        for address in [CLIENT_V4, OTHER_CLIENT_V4, CLIENT_V6] {
            add(&format!("{name}c"), address);
        }
        for suffix in ["p", "c"] {
            ip(&format!("-n {name}{suffix} link set e0 up"));
        }
        let pod = Self::existing(&name);
        std::mem::forget(made);
        pod
    }

    /// One that was made already, with listening sockets of this process.
    pub fn existing(name: &str) -> Self {
        let pod_path = path(&format!("{name}p"));
        let netns = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(async { Netns::open(pod_path.as_ref(), &NetnsThread::start().unwrap()).await })
            .unwrap();
        let listen = |address: &str| enter(&pod_path, || TcpListener::bind(address).unwrap());
        let (agent_v4, agent_v6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
        Self { name: name.to_owned(), netns, agent_v4, agent_v6 }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its namespace is bound.
    pub fn path(&self) -> String {
        path(&format!("{}p", self.name))
    }

    /// The number by which the kernel's lists know the namespace.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(self.path()).unwrap().ino()
    }

    /// Does `job` inside the pod; sockets made there stay there.
    pub fn inside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        enter(&self.path(), job)
    }

    /// Does `job` where the clients are.
    pub fn outside<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        enter(&path(&format!("{}c", self.name)), job)
    }

    /// An application of the pod.
    pub fn serve(&self, address: &str) -> TcpListener {
        self.inside(|| TcpListener::bind(address).unwrap())
    }

    /// A client at `from` connects.
    pub fn dial(&self, from: &str, to: &str) -> std::io::Result<TcpStream> {
        self.outside(|| connect(from, to))
    }

    pub fn enrol(&self, interception: &mut Interception, policy: &Policy) -> Result<(), KernelError> {
        interception.enrol(&self.netns, &self.enrolment(policy))
    }

    pub fn enrolment<'a>(&'a self, policy: &'a Policy) -> Enrolment<'a> {
        use std::os::fd::AsFd as _;
        let inbound = InboundEnrolment {
            policy,
            listener_v4: Some(self.agent_v4.as_fd()),
            listener_v6: Some(self.agent_v6.as_fd()),
        };
        Enrolment { outbound: None, inbound: Some(inbound), listeners: &[] }
    }

    /// The agent's own connection to an application of the pod.
    pub fn reach(&self, interception: &Interception, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            interception.kernel().stamp(&socket, TrafficDirection::Inbound).unwrap();
            socket.connect_timeout(&to.into(), PATIENCE)?;
            Ok(socket.into())
        })
    }

    /// Takes the namespaces away; whatever still refers to them keeps them a little longer.
    pub fn delete(&self) {
        drop(Names(self.name.clone()));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.delete();
    }
}

struct Names(String);

impl Drop for Names {
    fn drop(&mut self) {
        for suffix in ["p", "c"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{suffix}", self.0)]).output();
        }
    }
}

/// Takes away the namespaces of test processes that were killed: those could not do it themselves.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix("wlk-").and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid.to_owned());
        if maker.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// What arrives at one port from one network.
pub fn arriving(cidr: &str, port: u16) -> Policy {
    let rule = Rule { cidr: Some(cidr.parse().unwrap()), ports: vec![port..=port] };
    Policy { include: vec![rule], exclude: vec![] }
}

/// A connection from a local address of the calling thread's namespace.
pub fn connect(from: &str, to: &str) -> std::io::Result<TcpStream> {
    let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

/// Sends a word each way, and so proves who is at the other end.
pub fn speak(mut one: &TcpStream, mut other: &TcpStream) {
    let mut word = [0; 4];
    one.write_all(b"ping").unwrap();
    other.read_exact(&mut word).unwrap();
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}

fn path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

fn enter<T: Send>(path: &str, job: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(path).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn add(namespace: &str, address: &str) {
    let (bits, nodad) = if address.contains(':') { (64, " nodad") } else { (24, "") };
    ip(&format!("-n {namespace} address add {address}/{bits} dev e0{nodad}"));
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
