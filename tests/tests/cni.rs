//! The CNI plugin in a chain with Debian's, run as a container runtime runs them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use waylay_tests::agent::binary;
use waylay_tests::world::Side;
use waylay_tests::{Finished, World, eventually};

/// Where Debian's `containernetworking-plugins` lie.
const REAL_PLUGINS: &str = "/usr/lib/cni";

/// An agent that intercepts nothing: these tests are about how it is asked.
const CONFIG: &str = "
listeners:
  - name: web
    address: 127.0.0.1:8080
    default_filter_chain: {tcp_proxy: {cluster: origin}}
clusters:
  - {name: origin, type: static, endpoints: [127.0.0.1:9001]}
";

/// A node with a bridge for its pods, whose network is the world's, and one pod.
struct Node<'a> {
    world: &'a World,
    bin: PathBuf,
    conf: PathBuf,
    log: PathBuf,
    pod: PathBuf,
}

impl<'a> Node<'a> {
    fn new(world: &'a World) -> Self {
        let folder = |name: &str| {
            let path = world.folder().join(name);
            fs::create_dir(&path).expect("folder");
            path
        };
        // It goes with the world, by its name.
        let pod = format!("{}-pod", world.name());
        succeed(Command::new("ip").args(["netns", "add", &pod]));
        let pod = Path::new("/var/run/netns").join(pod);
        let node = Self { world, bin: folder("bin"), conf: folder("net.d"), log: world.folder().join("cni.log"), pod };
        let ipam = json!({
            "type": "host-local",
            "dataDir": world.folder().join("ipam"),
            "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]
        });
        let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam});
        let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]});
        fs::write(node.list(), list.to_string()).expect("conflist");
        node
    }

    fn list(&self) -> PathBuf {
        self.conf.join("10-pods.conflist")
    }

    /// `waylay cni install` with the folders of this node.
    fn install(&self, socket: &Path, more: &[&str]) -> String {
        let mut command = Command::new(binary());
        command.args(["cni", "install", "--bin-dir"]).arg(&self.bin).arg("--conf-dir").arg(&self.conf);
        command.arg("--agent-socket").arg(socket).arg("--log-file").arg(&self.log).args(more);
        Finished::of(command).success()
    }

    /// Runs one plugin as a runtime does: what it prints, or the error that it prints.
    fn plugin(&self, command: &str, plugin: &Value, netns: &Path, previous: Option<&Value>) -> Result<Value, Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = json!("1.0.0");
        config["name"] = json!("pods");
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        if config["capabilities"]["io.kubernetes.cri.pod-annotations"] == true {
            config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {"waylay.io/inject": "true"}});
        }
        let name = plugin["type"].as_str().expect("type");
        let path =
            [&self.bin, Path::new(REAL_PLUGINS)].iter().map(|folder| folder.join(name)).find(|path| path.exists());
        let path = path.unwrap_or_else(|| panic!("{name} is missing: apt-get install containernetworking-plugins"));
        let mut child = self
            .world
            .command(Side::Outside, path)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("{}-sandbox", self.world.name()))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", format!("{REAL_PLUGINS}:{}", self.bin.display()))
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("plugin");
        child.stdin.take().expect("stdin").write_all(config.to_string().as_bytes()).expect("configuration");
        let output = child.wait_with_output().expect("plugin");
        let printed = String::from_utf8_lossy(&output.stdout);
        let json = if printed.is_empty() { Value::Null } else { serde_json::from_str(&printed).expect("JSON") };
        if output.status.success() { Ok(json) } else { Err(json) }
    }

    /// The plugins of the installed list.
    fn chain(&self) -> Vec<Value> {
        let list: Value = serde_json::from_slice(&fs::read(self.list()).expect("conflist")).expect("JSON");
        list["plugins"].as_array().expect("plugins").clone()
    }

    /// The results of all plugins of the chain, until one fails.
    fn add(&self) -> Result<Vec<Value>, Value> {
        let mut results = Vec::new();
        for plugin in self.chain() {
            results.push(self.plugin("ADD", &plugin, &self.pod, results.last())?);
        }
        Ok(results)
    }

    fn del(&self, previous: Option<&Value>) {
        for plugin in self.chain().iter().rev() {
            let done = self.plugin("DEL", plugin, &self.pod, previous);
            assert_eq!(done, Ok(Value::Null), "{plugin}");
        }
    }

    /// Addresses inside the pod, from `ip`.
    fn addresses(&self) -> String {
        let netns = format!("--net={}", self.pod.display());
        succeed(Command::new("nsenter").args([&netns, "ip", "-o", "addr", "show", "scope", "global"]))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("command");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_pod_of_real_plugins_is_told_to_the_agent_and_keeps_its_network() {
    let world = World::new();
    let node = Node::new(&world);
    let agent = world.agent(CONFIG);
    let told = node.install(agent.socket(), &["--on-agent-absent", "refuse"]);
    assert!(told.contains("installed") && told.contains("added waylay-cni to"), "{told}");
    assert_eq!(node.install(agent.socket(), &["--on-agent-absent", "refuse"]), "nothing to do\n");

    let results = node.add().expect("a network");
    assert_eq!(results.len(), 2);
    assert_eq!(results[0].to_string(), results[1].to_string(), "the bridge's result is passed on unchanged");
    let address = results[0]["ips"][0]["address"].as_str().expect("address");
    assert!(node.addresses().contains(address), "{address} in {}", node.addresses());
    let expected = format!("ADD shop/web-1 ({}-sandbox): not selected: this agent enrols no pods", world.name());
    assert!(node.log().contains(&expected), "{}", node.log());

    for plugin in node.chain() {
        assert_eq!(node.plugin("CHECK", &plugin, &node.pod, results.last()), Ok(Value::Null), "{plugin}");
    }
    for _ in 0..2 {
        node.del(results.last());
    }
    assert_eq!(node.addresses(), "");
    assert!(node.log().contains("-sandbox): let go"), "{}", node.log());

    let folders = ["--bin-dir", node.bin.to_str().expect("path"), "--conf-dir", node.conf.to_str().expect("path")];
    let removed = agent_less(&[&["cni", "uninstall"], &folders[..]].concat());
    assert!(removed.contains("removed waylay-cni from"), "{removed}");
    assert_eq!(node.chain().len(), 1);
}

fn agent_less(args: &[&str]) -> String {
    let mut command = Command::new(binary());
    command.args(args);
    Finished::of(command).success()
}

#[test]
fn without_an_agent_a_pod_starts_or_not_as_configured_and_always_goes() {
    let world = World::new();
    let node = Node::new(&world);
    let agent = world.agent(CONFIG);
    let socket = agent.socket().to_owned();
    agent.kill();
    let options = |policy| ["--on-agent-absent", policy, "--timeout", "300ms"];
    node.install(&socket, &options("refuse"));
    let error = node.add().expect_err("no agent");
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(11), &json!("1.0.0")), "{error}");
    let details = error["details"].as_str().expect("details");
    assert!(details.contains("no agent answers at") && details.contains(socket.to_str().expect("path")), "{error}");
    node.del(None);
    assert_eq!(node.addresses(), "", "what the bridge made is gone");

    node.install(&socket, &options("allow"));
    let results = node.add().expect("allowed");
    assert_eq!(results[0], results[1]);
    assert!(node.log().contains("NOT enrolled, and allowed to start: no agent answers"), "{}", node.log());
    node.del(results.last());
}

#[test]
fn an_agent_that_is_stopped_costs_the_timeout_and_one_that_goes_on_answers() {
    let world = World::new();
    let node = Node::new(&world);
    let mut agent = world.agent(CONFIG);
    node.install(agent.socket(), &["--on-agent-absent", "refuse", "--timeout", "400ms"]);
    agent.child().signal(Signal::SIGSTOP);
    let started = Instant::now();
    let error = node.add().expect_err("no answer");
    let took = started.elapsed();
    assert_eq!(error["code"], 11, "{error}");
    assert!(error["details"].as_str().is_some_and(|why| why.contains("did not answer within 400 ms")), "{error}");
    assert!((Duration::from_millis(400)..Duration::from_secs(10)).contains(&took), "{took:?}");
    node.del(None);
    agent.child().signal(Signal::SIGCONT);
    eventually("the agent answers again", || agent.get("/ready").is_ok_and(|(status, _)| status == 200));
    let results = node.add().expect("it answers again");
    node.del(results.last());
}

#[test]
fn what_is_no_pods_namespace_is_refused_by_the_agent() {
    let world = World::new();
    let node = Node::new(&world);
    let agent = world.agent(CONFIG);
    node.install(agent.socket(), &["--on-agent-absent", "refuse"]);
    let ours = node.chain().pop().expect("our plugin");
    let previous = json!({"cniVersion": "1.0.0", "ips": []});
    for (netns, why) in [
        (world.netns(), "is the network namespace of the agent itself"),
        (PathBuf::from("/dev/null"), "/dev/null is no namespace"),
        (PathBuf::from("/var/run/netns/no-such-pod"), "does the agent's container see"),
    ] {
        let error = node.plugin("ADD", &ours, &netns, Some(&previous)).expect_err(why);
        assert_eq!(error["code"], 11, "{error}");
        assert!(error["details"].as_str().is_some_and(|details| details.contains(why)), "{error}");
    }
}

#[test]
fn it_is_installed_again_until_it_is_told_to_end() {
    let world = World::new();
    let node = Node::new(&world);
    let (bin, conf) = (node.bin.to_str().expect("path"), node.conf.to_str().expect("path"));
    let by_another = fs::read(node.list()).expect("conflist");
    fs::remove_file(node.list()).expect("no network yet");
    let args = ["cni", "install", "--watch", "--bin-dir", bin, "--conf-dir", conf];
    let mut watching = world.spawn(Side::Outside, binary(), &args);
    watching.wait_for("holds no network configuration yet");
    for time in 1..=2 {
        fs::write(node.list(), &by_another).expect("another program writes it");
        eventually("the plugin is in the list", || {
            watching.stdout().matches("added waylay-cni to").count() == time && node.chain().len() == 2
        });
    }
    watching.signal(Signal::SIGTERM);
    let status = watching.wait(waylay_tests::SOON);
    assert!(status.success(), "{status}: {}", watching.stderr());
    assert_eq!(node.chain().len(), 2, "it stays installed");
    let names: Vec<_> = fs::read_dir(&node.conf).expect("folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["10-pods.conflist"]);
}

#[test]
fn the_plugin_explains_itself_to_people() {
    let world = World::new();
    let waylay = binary();
    let by_hand = world.run(Side::Outside, waylay.to_str().expect("path"), &["cni"]);
    let error: Value = serde_json::from_str(&by_hand.stdout).expect("JSON");
    assert_eq!(by_hand.status.code(), Some(1));
    assert_eq!(error["code"], 4);
    assert!(error["details"].as_str().is_some_and(|details| details.contains("waylay cni install")), "{error}");
    let folder = world.folder().to_str().expect("path").to_owned();
    let early = ["cni", "install", "--bin-dir", &folder, "--conf-dir", &folder];
    let why = world.run(Side::Outside, waylay.to_str().expect("path"), &early).failure();
    assert!(why.contains("holds no network configuration yet") && why.contains("--watch"), "{why}");
    let long = world.run(Side::Outside, waylay.to_str().expect("path"), &["cni", "install", "--timeout", "5m"]);
    assert_eq!(long.status.code(), Some(2), "{}", long.stderr);
}
