//! Real pods: a containerd of the test's own, with its CRI plugin and a CNI bridge.
//!
//! It runs in the network namespace of a [`World`], so the bridge, the pods' addresses and their traffic exist only
//! there, and in the world's cgroups: pods lie below the one of the intercepted programs. Root, state, socket and
//! CNI's files are in the world's folder. Dropping it removes the pods and whatever containerd leaves behind.

mod cleanup;
mod image;
mod messages;

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use waylay::workload::cri::Channel;

use crate::process::{Child, Finished};
use crate::world::Side;
use crate::{World, eventually};
pub use cleanup::clean_up;
pub use messages::Mount;
use messages::{
    Capabilities, ContainerConfig, ContainerSecurity, CreateContainer, Done, ExecSync, ExecSyncAnswer, Id, Image,
    ImageStatus, LinuxContainer, LinuxPod, Metadata, NamespaceOption, PodConfig, PodStatus, PodStatusAnswer, Profile,
    RunPodSandbox, SecurityContext,
};

/// The pods' networks; every containerd has them in a network namespace of its own.
pub const SUBNETS: [&str; 2] = ["10.88.0.0/16", "fd00:88::/64"];

/// A containerd; see the module's documentation.
pub struct Containerd<'w> {
    world: &'w World,
    /// What becomes containerd.
    through: &'static [&'static str],
    runtime: tokio::runtime::Runtime,
    daemon: Child,
    channel: Channel,
    pods: Mutex<HashMap<String, PodConfig>>,
    next: AtomicU32,
}

/// What a pod is made from.
#[derive(Clone, Debug, Default)]
pub struct PodSpec<'a> {
    /// Kubernetes' namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a [(&'a str, &'a str)],
    /// Its annotations.
    pub annotations: &'a [(&'a str, &'a str)],
    /// Whether it is in containerd's network namespace instead of one of its own.
    pub host_network: bool,
    /// Whether it sees the machine's processes.
    pub host_pid: bool,
}

/// What a container has beside its command.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// Mounts beside the host's `/usr`.
    pub mounts: Vec<Mount>,
    /// Capabilities, beside which it has none; without them those that the runtime gives.
    pub capabilities: Option<Vec<String>>,
    /// Whether it cannot write into its image.
    pub readonly_rootfs: bool,
    /// Whether the runtime's seccomp profile is in force.
    pub seccomp: bool,
}

/// A pod that runs; its first container does nothing until it is told to.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Of its sandbox.
    pub id: String,
    /// Kubernetes' uid.
    pub uid: String,
    /// Its IPv4 address; the unspecified one in the host's network.
    pub ip: IpAddr,
    /// All of its addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace, as `nsenter --net` takes it; empty in the host's network.
    pub netns: PathBuf,
    /// The process of its sandbox.
    pub pid: u32,
    /// When containerd had made it.
    pub made: Instant,
}

/// A container that runs in a pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    log: PathBuf,
}

impl Container {
    /// What it printed so far, on both streams, as the CRI logs it: a line is `TIME stdout|stderr F|P TEXT`.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl<'w> Containerd<'w> {
    /// Starts one and waits until it serves.
    ///
    /// # Panics
    /// It does not start: one of the packages containerd, runc, containernetworking-plugins and busybox-static is missing,
    /// or the world is not one in which containers can be made.
    pub fn start(world: &'w World) -> Self {
        Self::start_through(world, &[])
    }

    /// The same in a mount namespace of its own whose mounts are shared, as systemd makes them on a node: only then
    /// containers can have mounts that follow the node's.
    ///
    /// # Panics
    /// As [`Containerd::start`].
    pub fn start_with_shared_mounts(world: &'w World) -> Self {
        Self::start_through(world, &["unshare", "--mount", "--propagation", "shared"])
    }

    fn start_through(world: &'w World, through: &'static [&'static str]) -> Self {
        let folder = world.folder().join("containerd");
        fs::create_dir_all(folder.join("cni")).expect("a folder for containerd");
        link_plugins(&folder.join("plugins"));
        fs::write(folder.join("cni/10-bridge.conflist"), conflist(world, &folder)).expect("CNI's configuration");
        fs::write(folder.join("config.toml"), config(&folder)).expect("containerd's configuration");
        let archive = image::archive(&folder).expect("the image of the pods");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
        let (daemon, channel) = launch(world, through, &runtime);
        let mut ctr = world.command(Side::Outside, "ctr");
        ctr.arg("--address").arg(socket(world)).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        Finished::of(ctr).success();
        let (pods, next) = (Mutex::default(), AtomicU32::new(0));
        let containerd = Self { world, through, runtime, daemon, channel, pods, next };
        // The CRI hears of it by an event.
        let image = ImageStatus { image: Some(Image { image: image::NAME.to_owned() }) };
        eventually("containerd's CRI knows the image", || {
            let answer: ImageStatus = containerd.call("/runtime.v1.ImageService/ImageStatus", image.clone());
            answer.image.is_some()
        });
        containerd
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket(self.world)
    }

    /// Where it finds CNI plugins: a folder of its own with links to Debian's.
    pub fn plugins(&self) -> PathBuf {
        self.world.folder().join("containerd/plugins")
    }

    /// Where it finds network configurations.
    pub fn networks(&self) -> PathBuf {
        self.world.folder().join("containerd/cni")
    }

    /// Ends the daemon; the pods go on.
    pub fn stop(&mut self) {
        self.daemon.signal(nix::sys::signal::Signal::SIGTERM);
        self.daemon.wait(crate::SOON);
    }

    /// Starts the daemon again after [`Containerd::stop`].
    pub fn start_again(&mut self) {
        (self.daemon, self.channel) = launch(self.world, self.through, &self.runtime);
    }

    /// Makes a pod and returns when it runs.
    ///
    /// # Panics
    /// containerd cannot make it.
    pub fn pod(&self, spec: &PodSpec<'_>) -> Pod {
        let config = self.pod_config(spec);
        let uid = config.metadata.as_ref().expect("set").uid.clone();
        let made: Id =
            self.call("/runtime.v1.RuntimeService/RunPodSandbox", RunPodSandbox { config: Some(config.clone()) });
        let made_at = Instant::now();
        self.pods.lock().expect("pods").insert(made.id.clone(), config);
        let question = PodStatus { id: made.id.clone(), verbose: true };
        let answer: PodStatusAnswer = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", question);
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        let texts =
            std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|additional| additional.ip));
        let ips: Vec<IpAddr> = texts.filter_map(|ip| ip.parse().ok()).collect();
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).expect("verbose information");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let netns = namespaces.iter().find(|namespace| namespace["type"] == "network");
        let netns = PathBuf::from(netns.and_then(|netns| netns["path"].as_str()).unwrap_or_default());
        cleanup::remember(self.world.folder(), &made.id, &netns);
        Pod {
            id: made.id,
            uid,
            ip: ips.iter().copied().find(IpAddr::is_ipv4).unwrap_or(IpAddr::from([0; 4])),
            ips,
            netns,
            pid: info["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid"),
            made: made_at,
        }
    }

    fn pod_config(&self, spec: &PodSpec<'_>) -> PodConfig {
        let uid = format!("{}-{}", self.world.name(), self.next.fetch_add(1, Relaxed));
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let log_directory = self.world.folder().join("containerd/logs").join(&uid);
        fs::create_dir_all(&log_directory).expect("a folder for logs");
        let node = |its: bool| if its { 2 } else { 0 };
        let namespace_options = Some(NamespaceOption { network: node(spec.host_network), pid: node(spec.host_pid) });
        PodConfig {
            // A pod in the host's network has the host's name.
            hostname: if spec.host_network { String::new() } else { spec.name.to_owned() },
            log_directory: log_directory.to_str().expect("UTF-8").to_owned(),
            labels: map(spec.labels),
            annotations: map(spec.annotations),
            linux: Some(LinuxPod {
                cgroup_parent: format!("{}/pod{uid}", self.world.cgroup_name(Side::App)),
                security_context: Some(SecurityContext { namespace_options }),
            }),
            metadata: Some(Metadata { name: spec.name.to_owned(), namespace: spec.namespace.to_owned(), uid }),
        }
    }

    /// Starts a container in `pod` that runs `command`; it finds the host's `/usr`, so also its Python.
    ///
    /// # Panics
    /// containerd cannot start it.
    pub fn run(&self, pod: &Pod, command: &[&str]) -> Container {
        self.run_with(pod, command, Rights::default())
    }

    /// The same with mounts, and with its rights as given.
    ///
    /// # Panics
    /// containerd cannot start it.
    pub fn run_with(&self, pod: &Pod, command: &[&str], rights: Rights) -> Container {
        let pod_config = self.pods.lock().expect("pods")[&pod.id].clone();
        let name = format!("c{}", self.next.fetch_add(1, Relaxed));
        let log_path = format!("{name}.log");
        let log = Path::new(&pod_config.log_directory).join(&log_path);
        let usr = Mount::new("/usr", Path::new("/usr"), true);
        let linux = LinuxContainer { security_context: Some(security(&rights, &pod_config)) };
        let config = ContainerConfig {
            metadata: Some(Metadata { name, ..Metadata::default() }),
            image: Some(Image { image: image::NAME.to_owned() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            mounts: std::iter::once(usr).chain(rights.mounts).collect(),
            log_path,
            linux: Some(linux),
        };
        let question = CreateContainer { pod: pod.id.clone(), config: Some(config), pod_config: Some(pod_config) };
        let container: Id = self.call("/runtime.v1.RuntimeService/CreateContainer", question);
        let _: Done = self.call("/runtime.v1.RuntimeService/StartContainer", container.clone());
        Container { id: container.id, log }
    }

    /// Runs a program in a container to its end.
    ///
    /// # Panics
    /// containerd cannot run it, or it takes longer than eight seconds.
    pub fn exec(&self, container: &Container, command: &[&str]) -> Finished {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let question = ExecSync { container: container.id.clone(), command, timeout: 8 };
        let started = Instant::now();
        let answer: ExecSyncAnswer = self.call("/runtime.v1.RuntimeService/ExecSync", question);
        Finished {
            status: ExitStatus::from_raw(answer.exit_code << 8),
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            took: started.elapsed(),
        }
    }

    /// Removes a pod with all that runs in it.
    ///
    /// # Panics
    /// containerd cannot remove it.
    pub fn remove(&self, pod: &Pod) {
        self.pods.lock().expect("pods").remove(&pod.id);
        for method in ["/runtime.v1.RuntimeService/StopPodSandbox", "/runtime.v1.RuntimeService/RemovePodSandbox"] {
            let _: Done = self.call(method, Id { id: pod.id.clone() });
        }
    }

    /// A call that must succeed.
    #[track_caller]
    fn call<Q, A>(&self, method: &'static str, question: Q) -> A
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let answer = self.runtime.block_on(self.channel.call(method, question));
        answer.unwrap_or_else(|status| panic!("{method}: {status}\ncontainerd said:\n{}", last(&self.daemon.stderr())))
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let pods = std::mem::take(&mut *self.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for (id, _) in pods {
            for method in ["/runtime.v1.RuntimeService/StopPodSandbox", "/runtime.v1.RuntimeService/RemovePodSandbox"] {
                let done = self.runtime.block_on(self.channel.call::<_, Done>(method, Id { id: id.clone() }));
                if let Err(status) = done {
                    eprintln!("{method} of {id}: {status}");
                }
            }
        }
        self.daemon.end();
        clean_up(self.world.name(), self.world.folder());
    }
}

fn security(rights: &Rights, pod: &PodConfig) -> ContainerSecurity {
    let of_pod = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let capabilities = rights.capabilities.clone().map(|add| Capabilities { add, drop: vec!["ALL".to_owned()] });
    ContainerSecurity {
        capabilities,
        namespace_options: of_pod.and_then(|security| security.namespace_options.clone()),
        readonly_rootfs: rights.readonly_rootfs,
        seccomp: Some(Profile { kind: i32::from(!rights.seccomp) }),
        apparmor: Some(Profile { kind: 1 }),
    }
}

/// A folder with all of Debian's CNI plugins, to which a test may add its own.
fn link_plugins(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder for CNI plugins");
    for plugin in fs::read_dir("/usr/lib/cni").expect("containernetworking-plugins are installed").flatten() {
        std::os::unix::fs::symlink(plugin.path(), folder.join(plugin.file_name())).expect("a link to a CNI plugin");
    }
}

fn socket(world: &World) -> PathBuf {
    world.folder().join("containerd/containerd.sock")
}

fn launch(world: &World, through: &[&str], runtime: &tokio::runtime::Runtime) -> (Child, Channel) {
    let line = [through, &["containerd"]].concat();
    let mut command = world.command(Side::Outside, line[0]);
    command.args(&line[1..]).arg("--config").arg(world.folder().join("containerd/config.toml"));
    let daemon = Child::spawn(command);
    let deadline = Instant::now() + crate::SOON;
    loop {
        let serving = runtime.block_on(async {
            let channel = Channel::connect(&socket(world)).await.map_err(|error| format!("{error:?}"))?;
            let version = channel.call::<_, Done>("/runtime.v1.RuntimeService/Version", Done {}).await;
            version.map(|_| channel).map_err(|status| status.to_string())
        });
        match serving {
            Ok(channel) => return (daemon, channel),
            Err(error) if Instant::now() > deadline => {
                panic!("containerd does not serve: {error}\nit said:\n{}", last(&daemon.stderr()))
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The end of a long text.
fn last(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn conflist(world: &World, folder: &Path) -> String {
    let ranges = SUBNETS.map(|subnet| serde_json::json!([{ "subnet": subnet }]));
    serde_json::json!({
        "cniVersion": "0.4.0",
        // The name of what CNI remembers outside of the folder: see `clean_up`.
        "name": world.name(),
        "plugins": [{
            "type": "bridge", "bridge": "pods0", "isGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": folder.join("ipam"),
                "ranges": ranges,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    })
    .to_string()
}

fn config(folder: &Path) -> String {
    let folder = folder.display();
    let image = image::NAME;
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
disable_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/plugins"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{folder}/runc"
"#
    )
}
