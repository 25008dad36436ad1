//! Real pods are found through a real containerd.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use waylay::netns::NetnsThread;
use waylay::workload::{Discovery, Found, RuntimeAddress, Workload, netns_of};
use waylay_tests::world::cgroup2_mount;
use waylay_tests::{Containerd, Pod, PodSpec, SOON, World, eventually};

/// Discovery of one containerd, on a thread of its own as in the agent.
struct Watch {
    runtime: tokio::runtime::Runtime,
    found: watch::Receiver<Found>,
    _discovery: Discovery,
}

impl Watch {
    fn start(containerd: &Containerd<'_>, poll_interval: Duration) -> Self {
        Self::of(&containerd.socket(), Self::runtime(), poll_interval)
    }

    /// Without events: only the first connection, on which lists are asked for, gets through to containerd.
    fn polling(world: &World, containerd: &Containerd<'_>, poll_interval: Duration) -> Self {
        let (relay, target, runtime) = (world.folder().join("relay.sock"), containerd.socket(), Self::runtime());
        let listener = runtime.block_on(async { UnixListener::bind(&relay).expect("a socket") });
        runtime.spawn(async move {
            let (mut client, _) = listener.accept().await.expect("the first connection");
            let mut server = UnixStream::connect(target).await.expect("containerd");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
            loop {
                drop(listener.accept().await);
            }
        });
        Self::of(&relay, runtime, poll_interval)
    }

    fn runtime() -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a tokio runtime")
    }

    fn of(socket: &Path, runtime: tokio::runtime::Runtime, poll_interval: Duration) -> Self {
        let address: RuntimeAddress = format!("cri://{}", socket.display()).parse().expect("an address");
        let (discovery, found) = {
            let _inside = runtime.enter();
            Discovery::start(vec![address], poll_interval)
        };
        Self { runtime, found, _discovery: discovery }
    }

    /// Waits until what was found fulfils `condition`.
    #[track_caller]
    fn until<T>(&self, what: &str, condition: impl Fn(&Found) -> Option<T>) -> T {
        let mut found = self.found.clone();
        let waiting = async {
            loop {
                if let Some(wanted) = condition(&found.borrow_and_update()) {
                    return wanted;
                }
                found.changed().await.expect("it goes on");
            }
        };
        let waited = self.runtime.block_on(async { tokio::time::timeout(SOON, waiting).await });
        waited.unwrap_or_else(|_| panic!("still not so: {what}; found: {:?}", self.found.borrow()))
    }

    #[track_caller]
    fn until_seen(&self, pod: &Pod) -> Arc<Workload> {
        self.until(&format!("{pod:?} is found"), |found| {
            found.workloads.iter().find(|workload| *workload.id == *pod.id && !workload.ips.is_empty()).cloned()
        })
    }

    #[track_caller]
    fn until_gone(&self, pod: &Pod) {
        self.until(&format!("{pod:?} is gone"), |found| {
            found.workloads.iter().all(|workload| *workload.id != *pod.id).then_some(())
        });
    }
}

fn web(name: &str) -> PodSpec<'_> {
    PodSpec {
        namespace: "shop",
        name,
        labels: &[("app", "web")],
        annotations: &[("waylay.io/inject", "true")],
        ..PodSpec::default()
    }
}

#[track_caller]
fn check(watch: &Watch, pod: &Pod, name: &str) {
    let workload = watch.until_seen(pod);
    assert_eq!(workload.to_string(), format!("shop/{name}"));
    assert_eq!(*workload.uid, *pod.uid);
    assert_eq!(workload.labels["app"], "web");
    assert_eq!(workload.annotations["waylay.io/inject"], "true");
    assert_eq!(workload.ips, pod.ips);
    assert_eq!(workload.ips.len(), 2, "both families");
    assert_eq!(workload.pid, Some(pod.pid));
    assert_eq!(workload.netns_path.as_deref(), Some(pod.netns.as_path()));
    assert!(!workload.host_network);
    let cgroup = workload.cgroup.as_ref().expect("its cgroup").to_str().expect("UTF-8");
    assert!(cgroup.ends_with(&format!("/app/pod{}", pod.uid)), "{cgroup}");
    let cookie = |workload: Workload| {
        let thread = NetnsThread::start().expect("thread");
        watch.runtime.block_on(async { netns_of(&workload, &thread).await.expect("its namespace").cookie() })
    };
    let by_process = Workload { netns_path: None, ..(*workload).clone() };
    assert_eq!(cookie((*workload).clone()), cookie(by_process), "the path and the process are the same namespace");
}

#[test]
fn pods_from_before_and_after_the_start_are_found_until_they_are_removed() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let early = containerd.pod(&web("early"));
    let host = containerd.pod(&PodSpec { host_network: true, ..web("host") });
    let watch = Watch::start(&containerd, Duration::from_secs(60));
    check(&watch, &early, "early");
    assert!(watch.until("the first list", |found| found.complete.then_some(found.problems.is_empty())), "no problems");
    let late = containerd.pod(&web("late"));
    check(&watch, &late, "late");
    let on_host = watch.until("the pod of the host's network is found", |found| {
        found.workloads.iter().find(|workload| *workload.id == *host.id).cloned()
    });
    assert!(on_host.host_network);
    containerd.remove(&early);
    watch.until_gone(&early);
    containerd.remove(&late);
    watch.until_gone(&late);
}

#[test]
fn a_restart_of_containerd_is_told_and_ends_no_pod() {
    let world = World::new();
    let mut containerd = Containerd::start(&world);
    let pod = containerd.pod(&web("steady"));
    let watch = Watch::start(&containerd, Duration::from_millis(200));
    watch.until_seen(&pod);
    containerd.stop();
    let problem = watch.until("the outage is told", |found| found.problems.first().cloned());
    assert!(problem.contains("cannot connect to its socket") || problem.contains("failed"), "{problem}");
    assert!(watch.found.borrow().workloads.iter().any(|workload| *workload.id == *pod.id), "the pod still runs");
    containerd.start_again();
    watch.until("the outage is over", |found| found.problems.is_empty().then_some(()));
    let after = containerd.pod(&web("after"));
    check(&watch, &after, "after");
    check(&watch, &pod, "steady");
}

/// How long after containerd had made them so many pods were seen, sorted; 0 for one that was seen before that.
fn delays(containerd: &Containerd<'_>, watch: &Watch, pods: usize) -> Vec<Duration> {
    let delay = |index: usize| {
        let name = format!("pod-{index}");
        std::thread::scope(|scope| {
            let seen = scope.spawn(|| {
                watch.until(&format!("{name} is found"), |found| {
                    let mut workloads = found.workloads.iter();
                    workloads.any(|workload| *workload.name == name && !workload.ips.is_empty()).then(Instant::now)
                })
            });
            let pod = containerd.pod(&web(&name));
            seen.join().expect("it was seen").saturating_duration_since(pod.made)
        })
    };
    let mut delays: Vec<_> = (0..pods).map(delay).collect();
    delays.sort_unstable();
    eprintln!("after RunPodSandbox returned: median {:?}, longest {:?}", delays[pods / 2], delays[pods - 1]);
    delays
}

#[test]
fn a_new_pod_is_seen_at_once_by_containerds_events() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let watch = Watch::start(&containerd, Duration::from_secs(60));
    let delays = delays(&containerd, &watch, 20);
    // The kubelet needs longer than this to start the first container; the machine may be busy.
    assert!(delays[10] < Duration::from_millis(500), "{delays:?}");
}

#[test]
fn a_new_pod_is_seen_within_the_interval_without_events() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let watch = Watch::polling(&world, &containerd, Duration::from_secs(1));
    let delays = delays(&containerd, &watch, 8);
    assert!(delays[4] < Duration::from_millis(1500), "{delays:?}");
    assert!(delays[4] > Duration::from_millis(20), "events got through: {delays:?}");
}

#[test]
fn what_runs_in_a_pod_is_in_the_namespace_and_the_cgroup_that_are_told() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let watch = Watch::start(&containerd, Duration::from_secs(60));
    let (client, server) = (containerd.pod(&web("client")), containerd.pod(&web("server")));
    let hello = "import socket; s = socket.create_server(('', 8080)); print('listening', flush=True)
while True: c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()";
    let listening = containerd.run(&server, &["python3", "-c", hello]);
    eventually("the server listens", || listening.log().contains("listening"));
    let shell = containerd.run(&client, &["sleep", "1000"]);
    let address = server.ip.to_string();
    let heard = containerd.exec(&shell, &["nc", &address, "8080"]).success();
    assert_eq!(heard, client.ip.to_string(), "from pod to pod, with the pod's own address");

    let workload = watch.until_seen(&client);
    let cgroup = workload.cgroup.as_ref().expect("its cgroup");
    let mount = cgroup2_mount().expect("cgroup2");
    let inside = mount.join(cgroup.strip_prefix("/").expect("from the mount")).join(&shell.id).join("cgroup.procs");
    let pids = std::fs::read_to_string(&inside).expect("the container's cgroup is below the pod's");
    let pid = pids.lines().next().expect("a process");
    let netns = |path: &Path| std::fs::metadata(path).expect("a network namespace").ino();
    let bound = workload.netns_path.as_ref().expect("its network namespace");
    assert_eq!(netns(&Path::new("/proc").join(pid).join("ns/net")), netns(bound));
}
