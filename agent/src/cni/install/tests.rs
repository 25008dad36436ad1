//! Installing into folders of the test's own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Change, InstallError, Installation, PluginOptions, watch};
use crate::cni::OnAgentAbsent;

const LIST: &str = r#"{
  "cniVersion": "1.0.0",
  "zebra": {"b": 1, "a": [1, 2.5, "ü"]},
  "name": "pods",
  "plugins": [
    {"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/16"}]]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ],
  "disableCheck": true
}"#;

/// Folders of a node.
struct Node {
    directory: tempfile::TempDir,
    installation: Installation,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let folder = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).expect("folder");
            path
        };
        let plugin = PluginOptions {
            agent_socket: "/run/waylay/admin.sock".into(),
            timeout: Duration::from_millis(1500),
            on_agent_absent: OnAgentAbsent::Allow,
            log_file: None,
        };
        let installation = Installation { bin_dir: folder("bin"), conf_dir: folder("net.d"), plugin };
        Self { directory, installation }
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.installation.conf_dir.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.conf(name);
        fs::write(&path, text).expect("file");
        path
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.conf(name)).expect("file")).expect("JSON")
    }

    fn types(&self, name: &str) -> Vec<String> {
        let list = self.json(name);
        let plugins = list["plugins"].as_array().expect("plugins").iter();
        plugins.map(|plugin| plugin["type"].as_str().expect("type").to_owned()).collect()
    }

    fn uninstall(&self) -> Vec<Change> {
        Installation::uninstall(Some(&self.installation.bin_dir), &self.installation.conf_dir).expect("uninstalled")
    }

    /// Names in the folder of configurations.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.installation.conf_dir).expect("folder").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_first_list_gets_the_plugin_at_its_end_and_keeps_the_rest() {
    let mut node = Node::new();
    let first = node.write("10-pods.conflist", LIST);
    node.write("20-other.conflist", LIST);
    fs::set_permissions(&first, fs::Permissions::from_mode(0o640)).expect("mode");
    let program = node.installation.bin_dir.join("waylay-cni");
    let changes = node.installation.install().expect("installed");
    assert_eq!(changes, [Change::Program(program.clone()), Change::Added(first.clone())]);
    assert_eq!(fs::metadata(&program).expect("program").mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(&first).expect("list").mode() & 0o777, 0o640);

    let mut expected: Value = serde_json::from_str(LIST).expect("JSON");
    expected["plugins"].as_array_mut().expect("plugins").push(json!({
        "type": "waylay-cni",
        "capabilities": {"io.kubernetes.cri.pod-annotations": true},
        "agentSocket": "/run/waylay/admin.sock",
        "timeout": "1500ms",
        "onAgentAbsent": "allow"
    }));
    assert_eq!(node.json("10-pods.conflist").to_string(), expected.to_string(), "in the same order, too");
    assert_eq!(node.types("20-other.conflist"), ["bridge", "portmap"]);

    let inode = fs::metadata(&first).expect("list").ino();
    assert_eq!(node.installation.install().expect("again"), [], "what is there stays");
    assert_eq!(fs::metadata(&first).expect("list").ino(), inode);

    node.installation.plugin.on_agent_absent = OnAgentAbsent::Refuse;
    assert_eq!(node.installation.install().expect("other options"), [Change::Added(first.clone())]);
    assert_eq!(node.types("10-pods.conflist"), ["bridge", "portmap", "waylay-cni"]);
    assert_eq!(node.json("10-pods.conflist")["plugins"][2]["onAgentAbsent"], "refuse");

    assert_eq!(node.uninstall(), [Change::Removed(first), Change::Removed(program)]);
    assert_eq!(
        node.json("10-pods.conflist").to_string(),
        serde_json::from_str::<Value>(LIST).expect("JSON").to_string()
    );
    assert_eq!(node.uninstall(), []);
    assert_eq!(node.names(), ["10-pods.conflist", "20-other.conflist"], "nothing is left lying about");
}

#[test]
fn a_single_plugin_becomes_a_list_and_comes_back() {
    let node = Node::new();
    let text = r#"{"name": "pods", "type": "bridge", "cniVersion": "0.3.1", "ipam": {"type": "host-local"}}"#;
    let single = node.write("10-pods.conf", text);
    node.write("20-other.conflist", LIST);
    let kept = node.conf("10-pods.conf.before-waylay");
    let list = node.conf("10-pods.conflist");
    let changes = node.installation.install().expect("installed");
    assert!(changes.contains(&Change::Converted { list, kept: kept.clone() }), "{changes:?}");
    assert_eq!(node.types("10-pods.conflist"), ["bridge", "waylay-cni"]);
    let converted = node.json("10-pods.conflist");
    assert_eq!((&converted["cniVersion"], &converted["name"]), (&json!("0.3.1"), &json!("pods")));
    assert_eq!(converted["plugins"][0], json!({"type": "bridge", "ipam": {"type": "host-local"}}));
    assert_eq!(node.installation.install().expect("again"), []);

    assert!(node.uninstall().contains(&Change::Restored(single.clone())));
    assert_eq!(fs::read_to_string(single).expect("file"), text, "byte for byte");
    assert_eq!(node.names(), ["10-pods.conf", "20-other.conflist"]);
}

#[test]
fn what_is_no_network_is_passed_over_and_named() {
    let node = Node::new();
    let error = node.installation.install().expect_err("nothing there").to_string();
    assert!(error.contains("holds no network configuration yet") && error.contains("--watch"), "{error}");
    for (name, text, why) in [
        ("00-broken.conflist", "{", "not JSON"),
        ("01-empty.conflist", r#"{"plugins": []}"#, "no plugins"),
        ("02-list.conflist", r#"{"plugins": 7}"#, "no plugins"),
        ("03-array.conf", "[]", "not a JSON object"),
        ("04-typeless.conf", "{}", "no type"),
    ] {
        node.write(name, text);
        let error = node.installation.install().expect_err(name).to_string();
        assert!(
            error.contains(&format!("{name}: it {}", if why.starts_with("no ") { "has " } else { "is " })),
            "{error}"
        );
        assert!(error.contains(why), "{error}");
    }
    node.write("notes.txt", LIST);
    node.write("50-pods.conflist.bak", LIST);
    assert!(matches!(node.installation.install(), Err(InstallError::NoNetwork { .. })));
    node.write("50-pods.conflist", LIST);
    node.installation.install().expect("installed");
    assert_eq!(node.types("50-pods.conflist"), ["bridge", "portmap", "waylay-cni"]);
    assert_eq!(fs::read_to_string(node.conf("00-broken.conflist")).expect("file"), "{");
}

#[test]
fn a_link_stays_a_link() {
    let node = Node::new();
    let target = node.directory.path().join("elsewhere.conflist");
    fs::write(&target, LIST).expect("file");
    symlink(&target, node.conf("10-pods.conflist")).expect("link");
    node.installation.install().expect("installed");
    assert!(fs::symlink_metadata(node.conf("10-pods.conflist")).expect("link").is_symlink());
    assert!(fs::read_to_string(&target).expect("file").contains("waylay-cni"));
}

#[test]
fn a_missing_folder_is_named() {
    let mut node = Node::new();
    node.write("10-pods.conflist", LIST);
    node.installation.bin_dir = node.directory.path().join("missing");
    let error = node.installation.install().expect_err("no folder").to_string();
    assert!(error.contains("missing/waylay-cni"), "{error}");
    assert_eq!(node.types("10-pods.conflist"), ["bridge", "portmap"], "no runtime is told of what it cannot run");
}

#[test]
fn it_waits_for_a_network_and_comes_back_when_another_program_writes_it_again() {
    let node = Node::new();
    let installation = node.installation.clone();
    let (sender, told) = mpsc::channel();
    // It runs until the tests end; from then on it meets a folder that is gone.
    std::thread::spawn(move || {
        watch::keep(&installation, move |done| {
            let _ = sender.send(done.map(<[Change]>::to_vec).map_err(ToString::to_string));
        })
    });
    let next = || told.recv_timeout(Duration::from_secs(20)).expect("something is told");
    assert!(next().expect_err("no network yet").contains("holds no network configuration yet"));
    let list = node.conf("10-pods.conflist");
    for _ in 0..3 {
        let beside = node.write("10-pods.tmp", LIST);
        fs::rename(beside, &list).expect("renamed");
        assert!(next().expect("installed").contains(&Change::Added(list.clone())));
        assert_eq!(node.types("10-pods.conflist"), ["bridge", "portmap", "waylay-cni"]);
    }
    let earlier = node.write("05-new.conflist", LIST);
    assert_eq!(next().expect("installed"), [Change::Added(earlier)]);
}
