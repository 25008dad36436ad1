//! The plugin against an agent of the test's own, or none.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Done, VERSIONS, is_plugin_name, run};

/// How the test's agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Status and body of every answer.
    Answers(u16, &'static str),
    /// It closes the first connections without a word, then answers.
    ClosesFirst(usize),
    /// It accepts and says nothing.
    Hangs,
}

/// An agent that notes what it is asked.
struct FakeAgent {
    socket: PathBuf,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    _directory: tempfile::TempDir,
}

const ENROLLED: Manner = Manner::Answers(200, r#"{"answer":"enrolled"}"#);

impl FakeAgent {
    fn new(manner: Manner) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).expect("socket");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = asked.clone();
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for (index, stream) in listener.incoming().flatten().enumerate() {
                match manner {
                    Manner::Hangs => silent.push(stream),
                    Manner::ClosesFirst(count) if index < count => drop(stream),
                    Manner::ClosesFirst(_) => answer(stream, 200, r#"{"answer":"enrolled"}"#, &notes),
                    Manner::Answers(status, body) => answer(stream, status, body, &notes),
                }
            }
        });
        Self { socket, asked, _directory: directory }
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().expect("notes").clone()
    }
}

fn answer(mut stream: UnixStream, status: u16, body: &str, notes: &Mutex<Vec<(String, Value)>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        request.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, content)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse::<usize>().expect("length"));
        if content.len() < length {
            continue;
        }
        let path = head.split(' ').nth(1).expect("path").to_owned();
        notes.lock().expect("notes").push((path, serde_json::from_str(content).unwrap_or(Value::Null)));
        let _ = write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        return;
    }
}

/// The environment of a usual call.
fn environment(command: &str) -> HashMap<&'static str, OsString> {
    HashMap::from([
        ("CNI_COMMAND", command.into()),
        ("CNI_CONTAINERID", "0123abc".into()),
        ("CNI_NETNS", "/run/netns/cni-1".into()),
        ("CNI_IFNAME", "eth0".into()),
        ("CNI_PATH", "/opt/cni/bin".into()),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=0123abc;K8S_POD_UID=u-1"
                .into(),
        ),
    ])
}

fn config(socket: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "waylay-cni",
        "agentSocket": socket,
        "timeout": "300ms",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "00:11"},
                {"name": "eth0", "mac": "00:22", "sandbox": "/run/netns/cni-1"}
            ],
            "ips": [
                {"address": "10.1.0.1/16", "interface": 0},
                {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
                {"address": "fd00::5/64", "interface": 1}
            ],
            "routes": [{"dst": "0.0.0.0/0", "priority": 18446744073709551615u64}],
            "dns": {},
            "another plugin's": {"z": 1, "a": [null, true, -5]}
        }
    })
}

fn call(environment: &HashMap<&'static str, OsString>, stdin: &[u8]) -> Done {
    run(&|name| environment.get(name).cloned(), stdin)
}

#[track_caller]
fn failure(done: &Done) -> Value {
    assert!(!done.success, "{}", done.stdout);
    let error: Value = serde_json::from_str(&done.stdout).expect("an error is a JSON object");
    for (field, is_right) in [
        ("cniVersion", error["cniVersion"].is_string()),
        ("msg", error["msg"].is_string()),
        ("code", error["code"].is_u64()),
    ] {
        assert!(is_right, "{field} of {error}");
    }
    error
}

#[track_caller]
fn result(done: &Done) -> Value {
    assert!(done.success, "{}", done.stdout);
    serde_json::from_str(&done.stdout).expect("JSON")
}

#[test]
fn add_tells_the_agent_of_the_pod_and_passes_the_result_on() {
    let agent = FakeAgent::new(ENROLLED);
    let mut config = config(&agent.socket);
    config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {"waylay.io/inject": "true"}});
    let done = call(&environment("ADD"), config.to_string().as_bytes());
    assert_eq!(result(&done).to_string(), config["prevResult"].to_string(), "unchanged, and in its order");
    let expected = json!({
        "container_id": "0123abc", "netns": "/run/netns/cni-1", "namespace": "shop", "name": "web-1", "uid": "u-1",
        "ips": ["10.1.0.5", "fd00::5"], "annotations": {"waylay.io/inject": "true"}
    });
    assert_eq!(agent.asked(), [("/cni/add".to_owned(), expected)]);
}

#[test]
fn annotations_that_are_not_handed_over_are_not_known() {
    let agent = FakeAgent::new(ENROLLED);
    let mut environment = environment("ADD");
    environment.remove("CNI_ARGS");
    assert!(call(&environment, config(&agent.socket).to_string().as_bytes()).success);
    let (_, pod) = agent.asked().remove(0);
    assert_eq!((&pod["annotations"], &pod["name"]), (&Value::Null, &json!("")));
}

#[test]
fn every_version_is_spoken() {
    let agent = FakeAgent::new(ENROLLED);
    for version in VERSIONS {
        let mut config = config(&agent.socket);
        config["cniVersion"] = json!(version);
        config["prevResult"]["cniVersion"] = json!(version);
        for (command, since) in
            [("ADD", "0.3.0"), ("DEL", "0.3.0"), ("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")]
        {
            let done = call(&environment(command), config.to_string().as_bytes());
            if version < since {
                let error = failure(&done);
                assert_eq!((&error["code"], &error["cniVersion"]), (&json!(1), &json!(version)), "{command} {version}");
            } else {
                assert!(done.success, "{command} {version}: {}", done.stdout);
                assert_eq!(done.stdout.is_empty(), command != "ADD", "{command} {version}: {}", done.stdout);
            }
        }
    }
}

#[test]
fn version_needs_nothing_but_the_command() {
    let environment = HashMap::from([("CNI_COMMAND", OsString::from("VERSION"))]);
    for (stdin, version) in [("", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("{}", "1.1.0"), ("7", "1.1.0")] {
        let answer = result(&call(&environment, stdin.as_bytes()));
        assert_eq!(answer, json!({"cniVersion": version, "supportedVersions": VERSIONS}), "{stdin}");
    }
}

#[test]
fn a_result_without_a_version_gets_the_one_that_is_spoken() {
    let agent = FakeAgent::new(ENROLLED);
    let mut config = config(&agent.socket);
    config["prevResult"] = json!({"ips": []});
    let done = call(&environment("ADD"), config.to_string().as_bytes());
    assert_eq!(result(&done), json!({"ips": [], "cniVersion": "1.0.0"}));
}

/// One field of the configuration, or one variable, that is not as it should be, and the error's code.
#[test]
fn what_is_wrong_is_told_with_its_code() {
    let agent = FakeAgent::new(ENROLLED);
    let good = config(&agent.socket);
    for (field, value, code, text) in [
        ("cniVersion", json!("0.2.0"), 1, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        ("cniVersion", Value::Null, 1, "0.1.0"),
        ("cniVersion", json!(1), 1, "is not supported"),
        ("prevResult", Value::Null, 7, "after the plugin that does"),
        ("prevResult", json!([1]), 7, "map"),
        ("timeout", json!("soon"), 7, "expected a duration"),
        ("timeout", json!("0s"), 7, "between"),
        ("timeout", json!("2m"), 7, "between"),
        ("timeout", json!(5), 7, "string"),
        ("onAgentAbsent", json!("perhaps"), 7, "`allow` or `refuse`"),
        ("runtimeConfig", json!({"io.kubernetes.cri.pod-annotations": {"a": 1}}), 7, "string"),
        ("agentSocket", json!(["x"]), 7, "path"),
    ] {
        let mut config = good.clone();
        config[field] = value.clone();
        let error = failure(&call(&environment("ADD"), config.to_string().as_bytes()));
        assert_eq!(error["code"], code, "{field}: {value}: {error}");
        assert!(error.to_string().contains(text), "{field}: {value}: {error}");
    }
    for (variable, value, text) in [
        ("CNI_COMMAND", "", "ADD, DEL, CHECK, VERSION, STATUS, GC"),
        ("CNI_COMMAND", "add", "is not known"),
        ("CNI_CONTAINERID", "", "ADD needs it"),
        ("CNI_CONTAINERID", "../x", "begins with a letter"),
        ("CNI_IFNAME", "", "ADD needs it"),
        ("CNI_IFNAME", "a/b", "1 to 15 bytes"),
        ("CNI_IFNAME", "sixteen-letters-", "1 to 15 bytes"),
        ("CNI_IFNAME", "..", "1 to 15 bytes"),
        ("CNI_NETNS", "", "ADD needs it"),
        ("CNI_ARGS", "K8S_POD_NAME", "KEY=VALUE"),
    ] {
        let mut environment = environment("ADD");
        environment.insert(variable, value.into());
        let error = failure(&call(&environment, good.to_string().as_bytes()));
        assert_eq!(error["code"], 4, "{variable}={value}: {error}");
        assert!(error.to_string().contains(text), "{variable}={value}: {error}");
    }
    let mut bad = environment("ADD");
    bad.insert("CNI_NETNS", OsString::from_vec(vec![b'/', 0xff]));
    assert_eq!(failure(&call(&bad, good.to_string().as_bytes()))["code"], 4);
    for stdin in ["", " \n", "{", "[]", "null", "\u{fffd}"] {
        assert_eq!(failure(&call(&environment("ADD"), stdin.as_bytes()))["code"], 6, "{stdin:?}");
    }
    assert_eq!(agent.asked(), [], "the agent is not asked about what is wrong");
}

#[test]
fn a_configuration_without_end_is_not_read_to_its_end() {
    let done = run(&|name| environment("ADD").get(name).cloned(), std::io::repeat(b' '));
    assert_eq!(failure(&done)["code"], 6);
}

#[test]
fn without_an_agent_the_policy_decides() {
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("admin.sock");
    let log = directory.path().join("cni.log");
    let mut config = config(&socket);
    config["cniVersion"] = json!("1.1.0");
    config["logFile"] = json!(log);
    let run = |config: &Value, command: &str| {
        let start = Instant::now();
        (call(&environment(command), config.to_string().as_bytes()), start.elapsed())
    };
    config["timeout"] = json!("30s");
    for policy in [Value::Null, json!("allow")] {
        config["onAgentAbsent"] = policy;
        for command in ["ADD", "DEL", "CHECK", "STATUS"] {
            let (done, took) = run(&config, command);
            assert!(done.success && took < Duration::from_secs(10), "{command} took {took:?}: {}", done.stdout);
        }
    }
    config["onAgentAbsent"] = json!("refuse");
    config["timeout"] = json!("300ms");
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("STATUS", 50)] {
        let error = failure(&run(&config, command).0);
        assert_eq!(error["code"], code, "{command}: {error}");
        assert!(error["details"].as_str().is_some_and(|why| why.contains("no agent answers at")), "{error}");
    }
    assert!(run(&config, "DEL").0.success, "a pod can always go");
    let log = std::fs::read_to_string(log).expect("log");
    for line in
        ["ADD shop/web-1 (0123abc): NOT enrolled, and allowed", "ADD shop/web-1 (0123abc): refused: no agent", "DEL"]
    {
        assert!(log.contains(line), "{line}\nin\n{log}");
    }
}

#[test]
fn an_agent_that_comes_back_in_time_is_waited_for() {
    let directory = tempfile::tempdir().expect("directory");
    let socket = directory.path().join("admin.sock");
    let mut config = config(&socket);
    config["onAgentAbsent"] = json!("refuse");
    config["timeout"] = json!("20s");
    let agent = FakeAgent::new(ENROLLED);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            std::os::unix::fs::symlink(&agent.socket, &socket).expect("link");
        });
        result(&call(&environment("ADD"), config.to_string().as_bytes()));
    });
    assert_eq!(agent.asked().len(), 1);
}

#[test]
fn an_agent_with_its_hands_full_is_asked_again() {
    let agent = FakeAgent::new(Manner::ClosesFirst(2));
    let mut config = config(&agent.socket);
    config["timeout"] = json!("20s");
    assert!(call(&environment("ADD"), config.to_string().as_bytes()).success);
    assert_eq!(agent.asked().len(), 1, "two attempts found no answer");
}

#[test]
fn an_agent_that_hangs_costs_no_more_than_the_timeout() {
    let agent = FakeAgent::new(Manner::Hangs);
    let mut config = config(&agent.socket);
    for (policy, command, code) in
        [("allow", "ADD", None), ("allow", "DEL", None), ("refuse", "ADD", Some(11)), ("refuse", "DEL", None)]
    {
        config["onAgentAbsent"] = json!(policy);
        let start = Instant::now();
        let done = call(&environment(command), config.to_string().as_bytes());
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
        match code {
            None => assert!(done.success, "{policy} {command}: {}", done.stdout),
            Some(code) => assert_eq!(failure(&done)["code"], code, "{policy} {command}"),
        }
    }
}

#[test]
fn what_the_agent_answers_decides() {
    for (status, body, on_refuse) in [
        (200, r#"{"answer":"not_selected","reason":"no row of pods.select"}"#, None),
        (200, r#"{"answer":"provisional","reason":"labels are not known yet"}"#, None),
        (200, "pardon?", Some("same version")),
        (400, "/x is no namespace\n", Some("/x is no namespace")),
        (404, "Not found", Some("404")),
        (503, "the agent is shutting down\n", Some("shutting down")),
    ] {
        let agent = FakeAgent::new(Manner::Answers(status, body));
        let mut config = config(&agent.socket);
        assert!(call(&environment("ADD"), config.to_string().as_bytes()).success, "{status} {body}");
        config["onAgentAbsent"] = json!("refuse");
        let done = call(&environment("ADD"), config.to_string().as_bytes());
        let Some(text) = on_refuse else {
            result(&done);
            continue;
        };
        let error = failure(&done);
        assert_eq!(error["code"], 11);
        assert!(error["details"].as_str().is_some_and(|why| why.contains(text)), "{status} {body}: {error}");
    }
}

#[test]
fn the_programs_name_makes_it_the_plugin() {
    for (argv0, expected) in [
        ("/opt/cni/bin/waylay-cni", true),
        ("waylay-cni", true),
        ("10-waylay-cni", true),
        ("/usr/bin/waylay", false),
        ("/opt/waylay-cni/waylay", false),
        ("", false),
    ] {
        assert_eq!(is_plugin_name(Path::new(argv0)), expected, "{argv0}");
    }
}

/// JSON of any shape, with our names among the keys.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        prop::sample::select(VERSIONS.to_vec()).prop_map(Value::from),
        Just(json!("refuse")),
        Just(json!("1ms")),
    ];
    let names = ["cniVersion", "prevResult", "runtimeConfig", "ips", "interfaces", "address", "interface", "timeout"];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        let key = prop_oneof![prop::sample::select(names.to_vec()).prop_map(str::to_owned), "[a-z]{1,4}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_comes_is_answered_as_the_protocol_has_it(
        command in prop_oneof![Just("ADD"), Just("DEL"), Just("CHECK"), Just("VERSION"), Just("STATUS"), Just("GC"), Just("?")],
        variables in prop::collection::vec(prop::collection::vec(1u8..=255, 0..20), 4),
        usual in any::<bool>(),
        mut config in any_json(),
        raw in prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..64)),
    ) {
        let mut environment = environment(command);
        if !usual {
            for (name, value) in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"].into_iter().zip(variables) {
                environment.insert(name, OsString::from_vec(value));
            }
        }
        // Nobody must be asked, or waited for.
        if let Value::Object(fields) = &mut config {
            fields.insert("agentSocket".to_owned(), json!("/nonexistent/admin.sock"));
            fields.insert("timeout".to_owned(), json!("1ms"));
            fields.remove("logFile");
        }
        let done = call(&environment, &raw.unwrap_or_else(|| config.to_string().into_bytes()));
        if done.success {
            prop_assert!(done.stdout.is_empty() || serde_json::from_str::<Value>(&done.stdout).is_ok());
        } else {
            let error: Value = serde_json::from_str(&done.stdout).expect("an error is JSON");
            prop_assert!([1, 4, 5, 6, 7, 11, 50].iter().any(|code| error["code"] == *code), "{}", error);
        }
    }
}
