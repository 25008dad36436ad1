//! What a runtime says of a sandbox beyond the CRI: the JSON that a verbose `PodSandboxStatus` brings.
//!
//! The CRI leaves its contents to the runtime. containerd and CRI-O both put it under the key `info`, with `pid` and
//! the OCI runtime's configuration as `runtimeSpec`; what they have apart from that is looked for as well. Whatever is
//! missing or of another shape is simply not known.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// The sandbox's process, in the pid namespace of the runtime. CRI-O has none unless it is told to.
    pub pid: Option<u32>,
    /// Of its network namespace: a bind mount.
    pub netns_path: Option<PathBuf>,
    /// The pod's cgroup, else the sandbox's: below the mount, beginning with `/`.
    pub cgroup: Option<PathBuf>,
}

impl Info {
    /// Reads the `info` of a `PodSandboxStatusResponse`.
    pub fn of(info: &HashMap<String, String>) -> Self {
        let json = info.get("info").and_then(|text| serde_json::from_str::<Value>(text).ok()).unwrap_or_default();
        Self { pid: pid(&json), netns_path: netns_path(&json), cgroup: cgroup(&json) }
    }
}

fn pid(json: &Value) -> Option<u32> {
    // 0 is a sandbox whose process is not there (any more).
    json.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0)
}

fn netns_path(json: &Value) -> Option<PathBuf> {
    let namespaces = json.pointer("/runtimeSpec/linux/namespaces").and_then(Value::as_array);
    let network = namespaces.into_iter().flatten().find(|namespace| namespace["type"] == "network");
    let path = network.and_then(|network| network.get("path")).and_then(text);
    // containerd 2's record of sandboxes that have no container of their own.
    path.or_else(|| json.pointer("/sandboxMetadata/NetNSPath").and_then(text)).map(PathBuf::from)
}

fn cgroup(json: &Value) -> Option<PathBuf> {
    let parent = json
        .pointer("/config/linux/cgroup_parent")
        .and_then(text)
        .or_else(|| json.pointer("/runtimeSpec/annotations/io.kubernetes.cri-o.CgroupParent").and_then(text));
    let path = json.pointer("/runtimeSpec/linux/cgroupsPath").and_then(text);
    parent.map(cgroup_of_parent).or_else(|| path.map(cgroup_of_path))
}

fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

/// A path as the kubelet gives it, or the bare name of a systemd slice.
fn cgroup_of_parent(parent: &str) -> PathBuf {
    match parent.trim_start_matches('/') {
        slice if slice.ends_with(".slice") && !slice.contains('/') => path_of_slice(slice),
        path => PathBuf::from(format!("/{path}")),
    }
}

/// The `cgroupsPath` of an OCI configuration: a path, or `SLICE:PREFIX:NAME` for systemd (runc, "systemd cgroup").
fn cgroup_of_path(path: &str) -> PathBuf {
    match path.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] => path_of_slice(slice).join(format!("{prefix}-{name}.scope")),
        _ => PathBuf::from(format!("/{}", path.trim_start_matches('/'))),
    }
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)).
fn path_of_slice(slice: &str) -> PathBuf {
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    let mut path = PathBuf::from("/");
    // The root slice is called "-".
    path.extend(ends.filter(|end| *end > 0 && name != "-").map(|end| format!("{}.slice", &name[..end])));
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, pid: Option<u32>, netns: Option<&str>, cgroup: Option<&str>) {
        let info = Info::of(&HashMap::from([("info".to_owned(), json.to_owned())]));
        let expected = Info { pid, netns_path: netns.map(PathBuf::from), cgroup: cgroup.map(PathBuf::from) };
        assert_eq!(info, expected, "{json}");
    }

    #[test]
    fn what_containerd_says_is_read() {
        check(
            r#"{"pid":1234,"processStatus":"running","config":{"metadata":{"name":"a"},
                "linux":{"cgroup_parent":"/kubepods/besteffort/pod7"}},
                "runtimeSpec":{"linux":{"cgroupsPath":"/kubepods/besteffort/pod7/abc",
                "namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/cni-1"}]}}}"#,
            Some(1234),
            Some("/var/run/netns/cni-1"),
            Some("/kubepods/besteffort/pod7"),
        );
        check(
            r#"{"pid":7,"sandboxMetadata":{"NetNSPath":"/var/run/netns/cni-2"},
                "config":{"linux":{"cgroup_parent":"/kubepods.slice/kubepods-pod7.slice"}}}"#,
            Some(7),
            Some("/var/run/netns/cni-2"),
            Some("/kubepods.slice/kubepods-pod7.slice"),
        );
    }

    #[test]
    fn what_cri_o_says_is_read_also_without_a_process() {
        check(
            r#"{"runtimeSpec":{"annotations":{"io.kubernetes.cri-o.CgroupParent":"kubepods-besteffort-pod7_8.slice"},
                "linux":{"cgroupsPath":"kubepods-besteffort-pod7_8.slice:crio:abc",
                "namespaces":[{"type":"network","path":"/var/run/netns/8f"}]}}}"#,
            None,
            Some("/var/run/netns/8f"),
            Some("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7_8.slice"),
        );
        check(
            r#"{"pid":9,"runtimeSpec":{"linux":{"cgroupsPath":"machine.slice:crio:abc"}}}"#,
            Some(9),
            None,
            Some("/machine.slice/crio-abc.scope"),
        );
    }

    #[test]
    fn what_has_another_shape_is_not_known() {
        for json in ["", "nonsense", "[]", "null", "{}", r#"{"pid":0}"#, r#"{"pid":"12"}"#, r#"{"pid":-4}"#] {
            check(json, None, None, None);
        }
        check(r#"{"pid":99999999999,"runtimeSpec":{"linux":{"namespaces":{"type":"network"}}}}"#, None, None, None);
        check(r#"{"runtimeSpec":{"linux":{"namespaces":[{"type":"network"}],"cgroupsPath":""}}}"#, None, None, None);
        check(r#"{"runtimeSpec":{"linux":{"cgroupsPath":"k8s.io/abc"}}}"#, None, None, Some("/k8s.io/abc"));
        check(r#"{"config":{"linux":{"cgroup_parent":"-.slice"}}}"#, None, None, Some("/"));
        assert_eq!(Info::of(&HashMap::new()), Info::default(), "nothing verbose at all");
    }
}
