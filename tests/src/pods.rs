//! Pods without a cluster: network namespaces on a bridge inside a world, and a container runtime that lists them.
//!
//! The world's own namespace is the node. A pod is a namespace with an address on the node's bridge and a cgroup of its
//! own; the runtime speaks docker's HTTP API on a unix socket, as far as the agent asks. Tests with a real runtime are
//! slower: this is for all that does not depend on one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::Origin;
use crate::process::{Child, Finished};
use crate::world::{PRELUDE, Side, World};

/// The node's end of the bridge.
pub const NODE: &str = "10.99.0.1";

/// A node with a bridge and a runtime.
#[derive(Debug)]
pub struct Node<'w> {
    world: &'w World,
    runtime: Runtime,
    next: std::cell::Cell<u16>,
}

/// One pod; taken away when it is dropped.
#[derive(Debug)]
pub struct Pod<'w> {
    /// A pod does not outlive its node.
    node: PhantomData<&'w World>,
    runtime: Runtime,
    netns: String,
    cgroup: PathBuf,
    /// As the runtime calls it.
    pub id: String,
    /// `docker/NAME` to the agent.
    pub name: String,
    /// On the bridge.
    pub ip: String,
    /// The same for IPv6.
    pub ip6: String,
}

impl<'w> Node<'w> {
    /// Makes a node of `world`.
    pub fn new(world: &'w World) -> Self {
        let host = |args: &[&str]| world.host("ip", args).expect("the node's bridge");
        host(&["link", "add", "br0", "type", "bridge"]);
        host(&["addr", "add", &format!("{NODE}/16"), "dev", "br0"]);
        host(&["-6", "addr", "add", "fd99::1/64", "dev", "br0", "nodad"]);
        host(&["link", "set", "br0", "up"]);
        let runtime = Runtime::serve(&world.folder().join("runtime.sock"));
        Self { world, runtime, next: std::cell::Cell::new(2) }
    }

    /// What `intercept.pods.runtimes` has to name.
    pub fn runtime(&self) -> String {
        format!("docker://{}", self.world.folder().join("runtime.sock").display())
    }

    /// The world that the node is in.
    pub fn world(&self) -> &'w World {
        self.world
    }

    /// Starts a pod with these labels; the runtime tells of it at once.
    pub fn pod(&self, name: &str, labels: &[(&str, &str)]) -> Pod<'w> {
        let pod = self.hidden(name);
        pod.announce(labels);
        pod
    }

    /// Starts a pod that the runtime does not tell of yet.
    pub fn hidden(&self, name: &str) -> Pod<'w> {
        let number = self.next.get();
        self.next.set(number + 1);
        let (netns, veth) = (format!("{}-p{number}", self.world.name()), format!("v{number}"));
        let ip = format!("10.99.{}.{}", number / 250, number % 250 + 1);
        let host = |args: &[&str]| self.world.host("ip", args).expect("a pod's network");
        run("ip", &["netns", "add", &netns]);
        host(&["link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &format!("/run/netns/{netns}")]);
        host(&["link", "set", &veth, "master", "br0", "up"]);
        let inside = |args: &[&str]| run("ip", &[&["-n", netns.as_str()], args].concat());
        inside(&["link", "set", "lo", "up"]);
        inside(&["addr", "add", &format!("{ip}/16"), "dev", "eth0"]);
        let ip6 = format!("fd99::{number:x}");
        inside(&["-6", "addr", "add", &format!("{ip6}/64"), "dev", "eth0", "nodad"]);
        inside(&["link", "set", "eth0", "up"]);
        inside(&["route", "add", "default", "via", NODE]);
        let cgroup = self.world.cgroup(Side::App).join(format!("pod{number}"));
        fs::create_dir(&cgroup).expect("a pod's cgroup");
        let id = format!("{number:064x}");
        Pod { node: PhantomData, runtime: self.runtime.clone(), netns, cgroup, id, name: name.to_owned(), ip, ip6 }
    }
}

impl Pod<'_> {
    /// The runtime tells of it, or of its new labels.
    pub fn announce(&self, labels: &[(&str, &str)]) {
        let sandbox = self.netns_path();
        let networks = json!({"bridge": {"IPAddress": self.ip, "GlobalIPv6Address": self.ip6}});
        self.tell(labels, "bridge", json!({"SandboxKey": sandbox, "Networks": networks}));
    }

    /// The runtime tells of it as a container in the node's own network, which docker says thus.
    pub fn announce_on_host(&self, labels: &[(&str, &str)]) {
        let networks = json!({"host": {"IPAddress": "", "GlobalIPv6Address": ""}});
        let settings = json!({"SandboxKey": "/var/run/docker/netns/default", "Networks": networks});
        self.tell(labels, "host", settings);
    }

    fn tell(&self, labels: &[(&str, &str)], network_mode: &str, network_settings: Value) {
        let labels: BTreeMap<_, _> = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let container = json!({
            "Id": self.id,
            "Name": format!("/{}", self.name),
            "State": {"Running": true, "Pid": 0},
            "Config": {"Labels": labels},
            "HostConfig": {"NetworkMode": network_mode},
            "NetworkSettings": network_settings,
        });
        self.runtime.change(|containers| _ = containers.insert(self.id.clone(), container));
    }

    /// The runtime forgets it; its namespace stays until it is dropped.
    pub fn forget(&self) {
        self.runtime.change(|containers| _ = containers.remove(&self.id));
    }

    /// Where its network namespace is bound.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// The command that starts a program in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("echo $$ >\"$1/cgroup.procs\" && ns=$2 && shift 2 && exec nsenter --net=\"$ns\" -- \"$@\"")
            .arg("sh")
            .arg(&self.cgroup)
            .arg(self.netns_path())
            .arg(program);
        command
    }

    /// Runs a program in it to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        let mut command = self.command(program);
        command.args(args);
        Finished::of(command)
    }

    /// Starts a program in it that runs until it is dropped.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Child {
        let mut command = self.command(program);
        command.args(args);
        Child::spawn(command)
    }

    /// Runs a Python program in it; it must succeed.
    #[track_caller]
    pub fn python(&self, program: &str) -> String {
        self.run("python3", &["-c", &format!("{PRELUDE}{program}")]).success()
    }

    /// Calls `inside` on a thread in its network namespace and its cgroup's stead: for sockets that listen.
    pub fn inside<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(self.netns_path()).expect("the pod's network namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the pod's network namespace");
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// An origin inside that answers HTTP requests with its name.
    pub fn origin(&self, name: &str, address: &str) -> Origin {
        Origin::serve(name, self.inside(|| std::net::TcpListener::bind(address).expect("binding an origin")))
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        self.forget();
        let pids = fs::read_to_string(self.cgroup.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).output();
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("starting a program");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A container runtime with docker's HTTP API, as far as the agent asks.
#[derive(Clone, Debug)]
struct Runtime(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    containers: BTreeMap<String, Value>,
    /// Those that follow /events.
    followers: Vec<UnixStream>,
}

impl Runtime {
    fn serve(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("the runtime's socket");
        let runtime = Self(Arc::default());
        let serving = runtime.clone();
        // It lives as long as the test process; each connection has a thread, as there are few.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let runtime = serving.clone();
                std::thread::spawn(move || runtime.answer_all(&stream));
            }
        });
        runtime
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Value>)) {
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut books.containers);
        let event = "{\"Type\":\"container\",\"Action\":\"start\"}\n";
        books.followers.retain_mut(|follower| {
            write!(follower, "{:x}\r\n{event}\r\n", event.len()).and_then(|()| follower.flush()).is_ok()
        });
    }

    fn answer_all(&self, stream: &UnixStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let Some(path) = request(&mut reader) else { return };
            if path.starts_with("/events") {
                let mut writer = stream;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
                if writer.write_all(head.as_bytes()).is_ok()
                    && let Ok(follower) = stream.try_clone()
                {
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).followers.push(follower);
                }
                return;
            }
            let (status, body) = self.page(&path);
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let mut writer = stream;
            if writer.write_all(format!("{head}{body}").as_bytes()).is_err() {
                return;
            }
        }
    }

    fn page(&self, path: &str) -> (&'static str, String) {
        let books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = path.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json"));
        let body = match (path, id) {
            ("/version", _) => Some(json!({"Components": [{"Name": "Engine"}]})),
            ("/containers/json", _) => {
                let rows = books.containers.values();
                Some(rows.map(|row| json!({"Id": row["Id"], "Labels": row["Config"]["Labels"]})).collect())
            }
            (_, Some(id)) => books.containers.get(id).cloned(),
            _ => None,
        };
        match body {
            Some(body) => ("200 OK", body.to_string()),
            None => ("404 Not Found", json!({"message": "no such page"}).to_string()),
        }
    }
}

/// The path of the next request; without its version prefix.
fn request(reader: &mut impl BufRead) -> Option<String> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1)?;
    let unversioned = path.strip_prefix("/v").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    Some(unversioned.filter(|rest| rest.starts_with('/')).unwrap_or(path).to_owned())
}
