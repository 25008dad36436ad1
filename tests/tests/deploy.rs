//! What `deploy/` delivers: manifests and chart fit Kubernetes' schemas, give no more rights than documented, and hold
//! configurations that the agent loads and explains.
//!
//! Manifests are rendered by kubectl's kustomize and by Helm itself (as a Python package), not by a look-alike.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use waylay_tests::{Finished, agent, tools};

/// Kubernetes versions that are asked: the oldest that the manifests are for, and a new one.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

/// What the agent's container may do, and no more.
const CAPABILITIES: [&str; 5] = ["SYS_ADMIN", "BPF", "NET_ADMIN", "PERFMON", "SYS_PTRACE"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// Runs the Python helper with `input` on its standard input; what it prints is an array of objects.
fn manifests(args: &[&str], input: &str) -> Result<Vec<Value>, String> {
    let mut command = Command::new(tools::python());
    command.arg(root().join("tests/deploy/manifests.py")).args(args);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starting the Python helper");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("writing to the Python helper");
    let output = child.wait_with_output().expect("the Python helper's end");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("an array of objects"))
}

fn chart(values: &Value) -> Result<Vec<Value>, String> {
    let folder = root().join("deploy/helm/waylay");
    let mut rendered = Vec::new();
    for version in VERSIONS {
        rendered = manifests(&["chart", folder.to_str().expect("a UTF-8 path"), version, &values.to_string()], "")?;
    }
    Ok(rendered)
}

/// The base with these components, as `kubectl apply -k` would have it.
fn kustomized(components: &[&str]) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&root().join("deploy/kubernetes"), &folder.path().join("kubernetes"));
    let mut command = Command::new("kubectl");
    command.arg("kustomize").arg(folder.path());
    write(&folder.path().join("kustomization.yaml"), &kustomization(components));
    let text = Finished::of(command).success();
    let mut rendered = Vec::new();
    for version in VERSIONS {
        rendered = manifests(&["validate", version], &text).unwrap_or_else(|error| panic!("{components:?}: {error}"));
    }
    rendered
}

/// Debian 12's kubectl is from before components and finds no folders under `resources`; there the components' patches
/// are named one by one, which is the same.
fn kustomization(components: &[&str]) -> String {
    let mut version = Command::new("kubectl");
    version.args(["version", "--client", "--output", "json"]);
    let version: Value = serde_json::from_str(&Finished::of(version).success()).expect("kubectl's version");
    let minor: u32 = version["clientVersion"]["minor"]
        .as_str()
        .and_then(|minor| minor.trim_end_matches('+').parse().ok())
        .expect("kubectl's minor version");
    let (resources, named, file) =
        if minor >= 21 { ("resources", "components", "") } else { ("bases", "patchesStrategicMerge", "/patch.yaml") };
    let mut text = format!("{resources}: [kubernetes/base]\n");
    if !components.is_empty() {
        let paths: Vec<_> = components.iter().map(|name| format!("kubernetes/components/{name}{file}")).collect();
        text.push_str(&format!("{named}: [{}]\n", paths.join(", ")));
    }
    text
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("making a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            std::fs::copy(&source, &target).expect("copying a file");
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("writing a file of the test");
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let (Some(one), None) = (found.next(), found.next()) else { panic!("not one {kind}: {objects:#?}") };
    one
}

fn container<'a>(objects: &'a [Value], name: &str) -> Option<&'a Value> {
    let containers = of_kind(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"].as_array();
    containers.expect("containers").iter().find(|container| container["name"] == name)
}

/// Those that come first as well.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().filter_map(|kind| pod[kind].as_array()).flatten()
}

/// What holds whatever the values are.
fn check_rights(objects: &[Value]) {
    let pod = &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(30), "longer than drain_timeout");
    for container in containers(pod) {
        let context = &container["securityContext"];
        assert_eq!((&context["privileged"], &context["readOnlyRootFilesystem"]), (&json!(false), &json!(true)));
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        let added = context["capabilities"]["add"].clone();
        let expected = if container["name"] == "waylay" { json!(CAPABILITIES) } else { Value::Null };
        assert_eq!(added, expected, "{}", container["name"]);
        assert_eq!(container["image"], "waylay:0.1.0");
    }
    // No mount without a volume, and the other way round.
    let names = |list: &Value| -> std::collections::BTreeSet<String> {
        let list = list.as_array().expect("a list");
        list.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    };
    let mounted = containers(pod).flat_map(|one| names(&one["volumeMounts"]));
    assert_eq!(names(&pod["volumes"]), mounted.collect());
    assert!(objects.iter().all(|object| {
        ["Namespace", "ConfigMap", "DaemonSet"].contains(&object["kind"].as_str().unwrap_or_default())
    }));
}

/// The embedded configuration is one that the agent takes without a warning, and walks a request through.
fn check_config(objects: &[Value]) -> String {
    let text = of_kind(objects, "ConfigMap")["data"]["waylay.yaml"].as_str().expect("a configuration");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("waylay.yaml");
    write(&file, text);
    let waylay = |args: &[&str]| {
        let mut command = Command::new(agent::binary());
        command.args(args).arg("-c").arg(&file);
        Finished::of(command).success()
    };
    let checked = waylay(&["check"]);
    assert!(checked.contains("0 warnings"), "{checked}");
    let explained = waylay(&["explain", "--dst", "10.1.2.3:8080", "http://shop/checkout"]);
    assert!(explained.contains("row") && explained.contains("passthrough"), "{explained}");
    text.to_owned()
}

#[test]
fn the_base_and_its_components_fit_kubernetes_and_give_no_more_rights_than_documented() {
    for components in
        [&[][..], &["cni"], &["cni-remove"], &["cri-o"], &["k3s", "cni"], &["refuse"], &["cri-o", "cni", "refuse"]]
    {
        let objects = kustomized(components);
        check_rights(&objects);
        check_config(&objects);
        assert_eq!(container(&objects, "cni").is_some(), components.contains(&"cni"));
        let mounts = &container(&objects, "waylay").expect("the agent")["volumeMounts"];
        let mounted = |path: &str| mounts.as_array().expect("a list").iter().any(|mount| mount["mountPath"] == path);
        assert_eq!(mounted("/run/crio"), components.contains(&"cri-o"), "{components:?}");
        assert_ne!(mounted("/run/crio"), mounted("/run/containerd"), "{components:?}");
        assert_eq!(mounted("/sys/fs/bpf"), components.contains(&"refuse"), "{components:?}");
    }
}

#[test]
fn the_chart_fits_kubernetes_with_all_kinds_of_values() {
    for values in [
        json!({}),
        json!({"runtime": "cri-o", "cni": {"enabled": true, "onAgentAbsent": "refuse"}}),
        json!({"cni": {"remove": true}}),
        json!({"runtime": "k3s", "select": [{"namespaces": ["shop"], "labels": {"app": "web"}}]}),
        json!({"config": {"intercept": {"on_agent_loss": "refuse"}}, "seLinuxOptions": {"type": "spc_t"}}),
        json!({"imagePullSecrets": [{"name": "registry"}], "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}}),
    ] {
        let objects = chart(&values).unwrap_or_else(|error| panic!("{values}: {error}"));
        check_rights(&objects);
        let config = check_config(&objects);
        assert_eq!(config.contains("select:"), values["select"].is_array());
        let cni = container(&objects, "cni");
        assert_eq!(cni.is_some(), values["cni"]["enabled"] == true);
        assert!(cni.is_none_or(|cni| cni["args"].as_array().expect("a list").ends_with(&[json!("refuse")])));
    }
}

#[test]
fn the_charts_schema_refuses_what_would_fail_later() {
    for (values, named) in [
        (json!({"runtime": "docker"}), "/runtime"),
        (json!({"selectors": []}), "selectors"),
        (json!({"select": [{"label": {"a": "b"}}]}), "/select/0"),
        (json!({"cni": {"onAgentAbsent": "maybe"}}), "/cni/onAgentAbsent"),
        (json!({"cni": {"enabled": true, "remove": true}}), "/cni"),
        (json!({"config": {"listeners": []}}), "/config/listeners"),
    ] {
        let error = chart(&values).expect_err("values that are wrong");
        assert!(error.contains(named), "{values}: {error}");
    }
}

#[test]
fn every_example_is_explained() {
    for entry in std::fs::read_dir(root().join("deploy/examples")).expect("the examples").flatten() {
        let mut command = Command::new(agent::binary());
        command.arg("explain").arg("-c").arg(entry.path());
        command.args(["--dst", "10.0.0.7:8080", "http://shop/checkout/cart"]);
        let explained = Finished::of(command).success();
        let told = |part: &str| explained.lines().any(|line| line.starts_with(part));
        let file = entry.path();
        assert!(told("listener ") && told("filter chain "), "{}: {explained}", file.display());
        assert!(told("cluster ") || told("action "), "{}: {explained}", file.display());
    }
}

#[test]
fn the_chart_and_the_base_are_the_same_daemon() {
    let [mut base, mut chart] = [kustomized(&[]), chart(&json!({})).expect("the chart")].map(|objects| {
        let spec = of_kind(&objects, "DaemonSet")["spec"].clone();
        (spec, check_config(&objects))
    });
    // Names and labels are the chart's matter.
    for (spec, _) in [&mut base, &mut chart] {
        spec["selector"].take();
        spec["template"]["metadata"].take();
        // Said by default.
        spec["template"]["spec"]["containers"][0].as_object_mut().expect("an object").remove("imagePullPolicy");
    }
    assert_eq!(base.0, chart.0);
    let parsed = |yaml: &str| manifests(&["yaml"], yaml).expect("YAML");
    assert_eq!(parsed(&base.1), parsed(&chart.1));
}
