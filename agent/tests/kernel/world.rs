//! A cgroup, listening sockets in the agent's place, and python clients inside the cgroup.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{Domain, Socket, Type};
use waylay::kernel::{
    Counter, InterceptOptions, Interception, KernelError, cgroup,
    inspect::{self, Instance},
};

use crate::pod::Pod;

const PATIENCE: Duration = Duration::from_secs(20);

/// What every client script begins with.
const PRELUDE: &str = r#"
import ctypes, socket, struct
def peer(s):
    a = s.getpeername()
    return (f"[{a[0]}]" if ":" in a[0] else a[0]) + ":" + str(a[1])
def disconnect(s):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(s.fileno(), struct.pack("H14x", 0), 16) == 0
"#;

pub struct World {
    dir: PathBuf,
    v4: TcpListener,
    v6: TcpListener,
}

impl World {
    pub fn new() -> Self {
        Self::at(cgroup::mount_point().expect("cgroup v2"))
    }

    pub fn below(other: &Self) -> Self {
        Self::at(other.dir.clone())
    }

    fn at(parent: PathBuf) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("waylay-test-{}-{number}", std::process::id()));
        fs::create_dir(&dir).expect("making a cgroup takes root");
        Self::around(dir)
    }

    /// Moves this whole process into a cgroup beside or below that of the world; only for [`run_again_as`].
    pub fn for_an_agent_placed(placement: &str) -> Self {
        let mount = cgroup::mount_point().unwrap();
        let (world, agent) = placement_dirs(&mount, placement, &std::env::var(PLACEMENT_ID).unwrap());
        fs::create_dir(&world).unwrap();
        fs::create_dir(&agent).unwrap();
        fs::write(agent.join("cgroup.procs"), "0").unwrap();
        Self::around(world)
    }

    fn around(dir: PathBuf) -> Self {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        Self { dir, v4, v6 }
    }

    /// Replaces the IPv4 listener.
    pub fn listen_with_backlog(&mut self, backlog: i32) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(backlog).unwrap();
        self.v4 = socket.into();
    }

    pub fn try_attach(&self, change: impl FnOnce(&mut InterceptOptions)) -> Result<Interception, KernelError> {
        let mut options = InterceptOptions::new(self.dir.clone());
        options.redirect_v4 = match self.redirect_v4() {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        };
        options.redirect_v6 = match self.v6.local_addr().unwrap() {
            SocketAddr::V6(address) => Some(address),
            SocketAddr::V4(_) => None,
        };
        // Tests do not beat, and may be slow.
        options.heartbeat_loss = 3 * PATIENCE;
        change(&mut options);
        Interception::attach(&options)
    }

    pub fn attach(&self, change: impl FnOnce(&mut InterceptOptions)) -> Interception {
        self.try_attach(change).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub fn redirect_v4(&self) -> SocketAddr {
        self.v4.local_addr().unwrap()
    }

    /// A second handle on the IPv4 listener.
    pub fn listener_v4(&self) -> TcpListener {
        self.v4.try_clone().unwrap()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn cgroup_id(&self) -> u64 {
        fs::metadata(&self.dir).unwrap().ino()
    }

    pub fn accept(&self, v6: bool) -> TcpStream {
        accept_from(if v6 { &self.v6 } else { &self.v4 })
    }

    pub fn answer(mut accepted: TcpStream, text: &str) {
        accepted.write_all(text.as_bytes()).unwrap();
    }

    /// Runs a script inside the cgroup.
    pub fn python(&self, script: &str) -> Client {
        self.command(&["/usr/bin/python3", "-c", &format!("{PRELUDE}\n{script}")])
    }

    /// Runs a script inside the cgroup and inside the pod.
    pub fn python_in(&self, pod: &Pod, script: &str) -> Client {
        let enter = format!("--net={}", pod.path());
        self.command(&["nsenter", &enter, "--", "/usr/bin/python3", "-c", &format!("{PRELUDE}\n{script}")])
    }

    /// Runs a command inside the cgroup.
    pub fn command(&self, command: &[&str]) -> Client {
        Self::command_in(&self.dir, command)
    }

    /// Runs a command inside any cgroup.
    pub fn command_in(dir: &Path, command: &[&str]) -> Client {
        let child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(dir)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Client::new(child)
    }

    pub fn pins(&self) -> Vec<PathBuf> {
        let dir = PathBuf::from("/sys/fs/bpf/waylay").join(self.cgroup_id().to_string());
        fs::read_dir(dir).map_or_else(|_| vec![], |all| all.map(|entry| entry.unwrap().path()).collect())
    }

    pub fn has_pins_of(&self, instance: u32) -> bool {
        self.pins().iter().any(|path| path.ends_with(instance.to_string()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pins in self.pins() {
            for pin in fs::read_dir(&pins).into_iter().flatten().flatten() {
                let _ = fs::remove_file(pin.path());
            }
            let _ = fs::remove_dir(&pins);
            let _ = pins.parent().map(fs::remove_dir);
        }
        // Whoever placed this process removes its cgroups, when it is gone.
        if std::env::var_os(PLACEMENT).is_some() {
            return;
        }
        // The kernel needs a moment to let the last process go.
        let end = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.dir).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Tells the test binary, run once more, where its agent shall live.
pub const PLACEMENT: &str = "WAYLAY_TEST_PLACEMENT";
/// Names the cgroups of that run.
const PLACEMENT_ID: &str = "WAYLAY_TEST_PLACEMENT_ID";

fn placement_dirs(mount: &Path, placement: &str, id: &str) -> (PathBuf, PathBuf) {
    let world = mount.join(format!("waylay-test-{id}-{placement}"));
    let agent = if placement == "below" { world.join("agent") } else { mount.join(format!("waylay-test-{id}-agent")) };
    (world, agent)
}

/// Runs one test of this binary in a process of its own, which may change its cgroup.
pub fn run_again_as(test: &str, placement: &str) {
    run_again_by(&[], test, placement);
}

/// As [`run_again_as`], started by another command, whose last arguments are that process.
pub fn run_again_by(starter: &[&str], test: &str, placement: &str) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("{}-again-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let this = std::env::current_exe().unwrap();
    let mut all = starter.iter().map(OsStr::new).chain([this.as_os_str()]);
    let mut child = Command::new(all.next().unwrap())
        .args(all)
        .args(["--exact", test, "--nocapture"])
        .env(PLACEMENT, placement)
        .env(PLACEMENT_ID, &id)
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let (world, agent) = placement_dirs(&cgroup::mount_point().unwrap(), placement, &id);
    wait_until(|| !agent.exists() || fs::remove_dir(&agent).is_ok());
    wait_until(|| !world.exists() || fs::remove_dir(&world).is_ok());
    assert!(status.success(), "{placement}");
}

pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "it did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A program inside the cgroup; killed when dropped.
pub struct Client {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn new(mut child: Child) -> Self {
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// A duplicate of one of the client's descriptors.
    pub fn descriptor(&self, fd: i32) -> OwnedFd {
        let pid = Pid::from_child(&self.child);
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).unwrap()
    }

    /// Waits for the end, which must be a good one, and returns the rest of what was printed.
    pub fn output(mut self) -> String {
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "the client failed after {text:?}");
        text.trim().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn accept_from(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return stream;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "nobody came");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A server outside the agent that says `word` to its one client.
pub fn greeter(word: &'static str) -> (JoinHandle<()>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (std::thread::spawn(move || World::answer(accept_from(&listener), word)), address)
}

pub fn counter(interception: &Interception, wanted: Counter) -> u64 {
    let counters = interception.kernel().counters().unwrap();
    counters.into_iter().find(|(counter, _)| *counter == wanted).unwrap().1
}

/// What the kernel has of it.
pub fn instance(interception: &Interception) -> Instance {
    let id = interception.kernel().instance();
    inspect::instances().unwrap().into_iter().find(|instance| instance.id() == id).unwrap()
}

pub fn original_dst_v4(socket: &TcpStream) -> SocketAddrV4 {
    let raw = getsockopt(socket, sockopt::OriginalDst).unwrap();
    SocketAddrV4::new(raw.sin_addr.s_addr.to_ne_bytes().into(), u16::from_be(raw.sin_port))
}

pub fn original_dst_v6(socket: &TcpStream) -> SocketAddrV6 {
    let raw = getsockopt(socket, sockopt::Ip6tOriginalDst).unwrap();
    SocketAddrV6::new(raw.sin6_addr.s6_addr.into(), u16::from_be(raw.sin6_port), 0, 0)
}

/// `host:port` as a python address tuple.
pub fn py_addr(text: &str) -> String {
    let (host, port) = text.rsplit_once(':').unwrap();
    format!("('{}', {port})", host.trim_matches(['[', ']']))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
