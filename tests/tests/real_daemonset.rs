//! The agent as a pod, with exactly the rights and mounts of the DaemonSet's manifest, beside the pods that it takes.
//!
//! What differs from a node: the program is the test's own build, which finds its libraries in the host's `/usr`; the
//! configuration names the test's cgroup in place of `/`; and the folders of the node are the test's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use waylay_tests::agent::binary;
use waylay_tests::containerd::{Container, Containerd, Mount, Pod, PodSpec, Rights};
use waylay_tests::world::Side;
use waylay_tests::{Finished, World, eventually};

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/base");

fn manifest() -> Value {
    let mut command = Command::new("python3");
    command.args(["-c", "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"]);
    command.arg(Path::new(BASE).join("daemonset.yaml"));
    serde_json::from_str(&Finished::of(command).success()).expect("JSON")
}

/// The node's folder that stands for a volume of the manifest.
fn folder(world: &World, volume: &Value) -> PathBuf {
    let own = world.folder();
    match volume["hostPath"]["path"].as_str() {
        None => own.join("config"),
        Some("/run/waylay") => own.join("run"),
        Some("/run/containerd") => own.join("containerd"),
        Some(path @ ("/sys/fs/cgroup" | "/var/run/netns")) => path.into(),
        Some(other) => panic!("a volume that the test does not know: {other}"),
    }
}

/// The rights and mounts of the manifest's container.
fn rights(world: &World, pod: &Value) -> Rights {
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!((&security["privileged"], &security["appArmorProfile"]["type"]), (&false.into(), &"Unconfined".into()));
    let add = security["capabilities"]["add"].as_array().expect("capabilities").iter();
    let volumes = pod["volumes"].as_array().expect("volumes");
    let mount = |mount: &Value| {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("a volume");
        let mut made = Mount::new(
            mount["mountPath"].as_str().expect("a path"),
            &folder(world, volume),
            mount["readOnly"].as_bool().unwrap_or(false),
        );
        made.propagation = i32::from(mount["mountPropagation"] == "HostToContainer");
        made
    };
    let mounts = container["volumeMounts"].as_array().expect("mounts").iter().map(mount);
    Rights {
        mounts: mounts.chain([Mount::new("/waylay", &binary(), true)]).collect(),
        capabilities: Some(add.map(|name| name.as_str().expect("a name").to_owned()).collect()),
        readonly_rootfs: security["readOnlyRootFilesystem"] == true,
        seccomp: security["seccompProfile"]["type"] == "RuntimeDefault",
    }
}

/// Starts the DaemonSet's pod.
fn start(world: &World, containerd: &Containerd<'_>) -> (Pod, Container) {
    for name in ["run", "config"] {
        fs::create_dir_all(world.folder().join(name)).expect("a folder");
    }
    let config = fs::read_to_string(Path::new(BASE).join("waylay.yaml")).expect("the configuration");
    assert!(config.contains("  cgroup: /\n"), "{config}");
    let config = config.replace("  cgroup: /\n", &format!("  cgroup: {}\n", world.cgroup_name(Side::App)));
    world.file("config/waylay.yaml", &config);
    let template = &manifest()["spec"]["template"];
    let (labels, spec) = (&template["metadata"]["labels"], &template["spec"]);
    let inject = labels["waylay.io/inject"].as_str().expect("a label");
    let pod = containerd.pod(&PodSpec {
        namespace: "waylay-system",
        name: "waylay",
        labels: &[("waylay.io/inject", inject)],
        host_network: spec["hostNetwork"] == true,
        host_pid: spec["hostPID"] == true,
        ..PodSpec::default()
    });
    let args = spec["containers"][0]["args"].as_array().expect("arguments").iter().filter_map(Value::as_str);
    let command: Vec<&str> = std::iter::once("/waylay").chain(args).collect();
    let container = containerd.run_with(&pod, &command, rights(world, spec));
    (pod, container)
}

#[test]
fn the_daemonset_takes_the_pods_beside_it_with_the_rights_of_its_manifest() {
    let world = World::new();
    let containerd = Containerd::start_with_shared_mounts(&world);
    let (agent, running) = start(&world, &containerd);
    let ready = || world.run(Side::Outside, "curl", &["-sf", "http://127.0.0.1:15021/healthz/ready"]).status.success();
    let deadline = std::time::Instant::now() + waylay_tests::SOON;
    while !ready() {
        assert!(std::time::Instant::now() < deadline, "it is not ready, it said:\n{}", running.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }

    // After it, so that their namespaces have to reach it through the mounts.
    let label: &[(&str, &str)] = &[("waylay.io/inject", "true")];
    let spec = |name| PodSpec { namespace: "shop", name, labels: label, ..PodSpec::default() };
    let (web, shop) = (containerd.pod(&spec("web")), containerd.pod(&spec("shop")));
    let serving = "echo shop >/www/index.html; httpd -p 8080 -h /www; exec sleep 1000000";
    let in_shop = containerd.run(&shop, &["sh", "-c", serving]);
    let in_web = containerd.run(&web, &["sleep", "1000000"]);
    eventually("the pod's server serves", || {
        containerd.exec(&in_shop, &["wget", "-qO-", "http://127.0.0.1:8080/"]).status.success()
    });
    let pods = || containerd.exec(&running, &["/waylay", "pods"]).success();
    eventually(&format!("both are enrolled: {}\n{}", pods(), running.log()), || {
        pods().matches("enrolled").count() == 2
    });
    assert!(pods().contains("its label waylay.io/inject"), "the agent's own pod is none of its customers: {}", pods());

    let url = format!("http://{}:8080/", shop.ip);
    assert_eq!(containerd.exec(&in_web, &["wget", "-qO-", "-T", "5", &url]).success(), "shop\n");
    let records = || running.log().lines().filter(|line| line.contains("\"kind\":\"request\"")).count();
    eventually("a record of either side", || records() == 2);
    assert!(running.log().contains("\"comm\":\"wget\""), "{}", running.log());
    assert!(!running.log().contains("ERROR") && !running.log().contains("WARN"), "{}", running.log());
    let maps = containerd.exec(&running, &["/waylay", "maps"]).success();
    assert!(maps.contains("shop/web"), "{maps}");

    containerd.remove(&agent);
    assert_eq!(containerd.exec(&in_web, &["wget", "-qO-", "-T", "5", &url]).success(), "shop\n", "without it");
    assert_eq!(world.attached_programs(), 0);
}
