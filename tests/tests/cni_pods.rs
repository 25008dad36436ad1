//! The CNI plugin as containerd runs it, for real pods.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use waylay_tests::agent::binary;
use waylay_tests::containerd::{Containerd, PodSpec};
use waylay_tests::{Finished, World, eventually};

/// How long the agent of these tests takes for a pod: longer than anything else that containerd waits for.
const ENROLMENT: Duration = Duration::from_millis(700);

/// What the plugin asked, and when it was answered.
type Asked = Arc<Mutex<Vec<(String, Value, Instant)>>>;

/// Answers the plugin in the place of an agent, slowly.
fn slow_agent(socket: &Path) -> Asked {
    let listener = UnixListener::bind(socket).expect("the agent's socket");
    let asked = Asked::default();
    let notes = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &notes);
        }
    });
    asked
}

fn answer(mut stream: UnixStream, notes: &Mutex<Vec<(String, Value, Instant)>>) {
    let mut request = String::new();
    let mut buffer = [0; 4096];
    loop {
        let Ok(n @ 1..) = stream.read(&mut buffer) else { return };
        request.push_str(&String::from_utf8_lossy(&buffer[..n]));
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let Ok(body) = serde_json::from_str(body) else { continue };
        let path = head.split(' ').nth(1).expect("a path").to_owned();
        if path == "/cni/add" {
            std::thread::sleep(ENROLMENT);
        }
        notes.lock().expect("notes").push((path, body, Instant::now()));
        let answer = r#"{"answer":"enrolled"}"#;
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        return;
    }
}

fn install(containerd: &Containerd<'_>, socket: &Path, more: &[&str]) -> String {
    let mut command = Command::new(binary());
    command.args(["cni", "install", "--bin-dir"]).arg(containerd.plugins());
    command.arg("--conf-dir").arg(containerd.networks()).arg("--agent-socket").arg(socket).args(more);
    Finished::of(command).success()
}

#[test]
fn containerd_waits_with_a_pod_until_the_agent_has_enrolled_it() {
    let world = World::new();
    let containerd = Containerd::start(&world);
    let socket: PathBuf = world.folder().join("admin.sock");
    let asked = slow_agent(&socket);
    install(&containerd, &socket, &["--on-agent-absent", "refuse"]);
    let spec = PodSpec {
        namespace: "shop",
        name: "web-1",
        labels: &[("app", "web")],
        annotations: &[("waylay.io/inject", "true"), ("note", "a=b;c\"d")],
        ..PodSpec::default()
    };
    // containerd reads the configuration again by itself, a moment after it changed.
    let mut pod = containerd.pod(&spec);
    eventually("containerd runs the plugin", || {
        if asked.lock().expect("notes").is_empty() {
            containerd.remove(&pod);
            pod = containerd.pod(&spec);
        }
        !asked.lock().expect("notes").is_empty()
    });

    let (path, told, answered) = asked.lock().expect("notes")[0].clone();
    let annotations = told["annotations"].as_object().expect("containerd hands annotations over");
    for (key, value) in spec.annotations {
        assert_eq!(annotations[*key], *value, "{told}");
    }
    let mut told = told.clone();
    told.as_object_mut().expect("an object").remove("annotations");
    let expected = json!({
        "container_id": pod.id, "netns": pod.netns, "namespace": "shop", "name": "web-1", "uid": pod.uid, "ips": pod.ips
    });
    assert_eq!((path.as_str(), &told), ("/cni/add", &expected));
    assert!(pod.made >= answered, "the pod is made only when the agent has answered");

    containerd.remove(&pod);
    let calls: Vec<_> =
        asked.lock().expect("notes").iter().map(|(path, body, _)| (path.clone(), body.clone())).collect();
    let del = ("/cni/del".to_owned(), json!({"container_id": pod.id}));
    assert!(calls.len() >= 2 && calls[1..].iter().all(|call| *call == del), "{calls:?}");
}
