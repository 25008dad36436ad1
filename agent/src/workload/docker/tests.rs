use std::collections::HashMap;

use super::*;
use crate::workload::fixture::{Answer, Fake, Version, answer};

const DOCKER: &str = r#"{"Platform":{"Name":"Docker Engine"},"Components":[{"Name":"Engine","Version":"28.2.2"}]}"#;
const PODMAN: &str = r#"{"Components":[{"Name":"Podman Engine","Version":"4.3.1"},{"Name":"Conmon"}]}"#;

/// A runtime with these containers, by id: what `inspect` answers. Each is listed with the labels of the second.
fn fake(version: &'static str, containers: &[(&str, &str, &str)]) -> (Fake, Docker) {
    let rows: Vec<_> =
        containers.iter().map(|(id, labels, _)| format!(r#"{{"Id":"{id}","Labels":{labels}}}"#)).collect();
    let list = format!("[{}]", rows.join(","));
    let inspected: HashMap<_, _> =
        containers.iter().map(|(id, _, json)| (format!("/containers/{id}/json"), (*json).to_owned())).collect();
    let fake = Fake::serve(Version::Http1, move |path, _| {
        let json = match path {
            "/version" => version,
            "/containers/json" => &list,
            path => inspected.get(path).filter(|json| !json.is_empty())?,
        };
        Some(answer(200, json.to_owned()))
    });
    let docker = Docker::new(&fake.socket);
    (fake, docker)
}

const WEB: &str = r#"{"Id":"1a","Name":"/web","State":{"Running":true,"Pid":4711},
    "Config":{"Labels":{"waylay.io/inject":"true"}},"HostConfig":{"NetworkMode":"bridge"},
    "NetworkSettings":{"SandboxKey":"/var/run/docker/netns/8f","Networks":{
        "bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":""},
        "back":{"IPAddress":"172.18.0.2","GlobalIPv6Address":"fd00::2"},"odd":null}}}"#;

#[tokio::test]
async fn a_container_of_docker_is_found_with_all_that_is_told_of_it() {
    let (_fake, mut docker) = fake(DOCKER, &[("1a", "null", WEB)]);
    let found = docker.list().await.expect("a list");
    let labels = BTreeMap::from([("waylay.io/inject".to_owned(), "true".to_owned())]);
    let ips = ["172.18.0.2", "fd00::2", "172.17.0.2"].map(|ip| ip.parse::<IpAddr>().expect("ip"));
    let expected = Workload {
        id: "1a".into(),
        namespace: "docker".into(),
        name: "web".into(),
        uid: "1a".into(),
        annotations: labels.clone(),
        labels,
        ips: ips.into(),
        pid: Some(4711),
        netns_path: Some("/var/run/docker/netns/8f".into()),
        cgroup: None,
        host_network: false,
    };
    assert_eq!(found, [expected]);
}

#[tokio::test]
async fn a_container_of_podman_is_podmans() {
    let host = r#"{"Id":"2b","Name":"db","State":{"Running":true,"Pid":9},"HostConfig":{"NetworkMode":"host"},
        "NetworkSettings":{"SandboxKey":"","Networks":{"host":{"IPAddress":""}}}}"#;
    let (fake, mut docker) = fake(PODMAN, &[("2b", "{}", host)]);
    for _ in 0..2 {
        let found = docker.list().await.expect("a list");
        assert_eq!(found[0].to_string(), "podman/db");
        assert!(found[0].host_network && found[0].netns_path.is_none() && found[0].ips.is_empty());
    }
    assert_eq!((fake.count("/version"), fake.count("/2b/json")), (1, 2));
}

#[tokio::test]
async fn containers_that_are_no_workloads_of_ours_are_left_out() {
    let stopped = r#"{"Id":"2","Name":"/b","State":{"Running":false,"Pid":0}}"#;
    let joined =
        r#"{"Id":"3","Name":"/c","State":{"Running":true,"Pid":8},"HostConfig":{"NetworkMode":"container:1"}}"#;
    let of_kubelet = r#"{"io.kubernetes.pod.uid":"7","io.kubernetes.pod.name":"web"}"#;
    let containers = [("1", of_kubelet, WEB), ("2", "{}", stopped), ("3", "{}", joined)];
    let (fake, mut docker) = fake(DOCKER, &containers);
    assert_eq!(docker.list().await.expect("a list"), []);
    assert_eq!(fake.count("/1/json"), 0, "it is not asked about");
}

#[tokio::test]
async fn a_container_that_is_removed_after_the_list_was_made_is_left_out() {
    let fake = Fake::serve(Version::Http1, |path, _| {
        Some(match path {
            "/version" => answer(200, DOCKER),
            "/containers/json" => answer(200, r#"[{"Id":"gone"},{"Id":"1a"}]"#),
            "/containers/1a/json" => answer(200, WEB),
            _ => answer(404, r#"{"message":"No such container: gone"}"#),
        })
    });
    let found = Docker::new(&fake.socket).list().await.expect("a list");
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["docker/web"]);
}

#[track_caller]
fn check_told(error: &RuntimeError, expected: &str) {
    assert!(error.to_string().contains(expected), "{error}");
}

#[tokio::test]
async fn answers_of_another_shape_are_told() {
    type Make = fn() -> Answer;
    let cases: [(Make, &str); 6] = [
        (|| answer(200, "<html>"), "the answer to GET /containers/json cannot be read"),
        (|| answer(200, r#"[{"Id":7}]"#), "cannot be read: invalid type"),
        (|| answer(200, r#"{"Id":"a"}"#), "cannot be read"),
        (|| answer(200, ""), "cannot be read: EOF"),
        (|| answer(500, "x".repeat(100_000)), "GET /containers/json was answered with 500"),
        (|| answer(302, ""), "was answered with 302"),
    ];
    for (make, expected) in cases {
        let fake = Fake::serve(Version::Http1, move |path, _| {
            Some(if path == "/version" { answer(200, DOCKER) } else { make() })
        });
        let error = Docker::new(&fake.socket).list().await.expect_err(expected);
        check_told(&error, expected);
        assert!(error.to_string().len() < 1000, "nothing is repeated at length");
    }
}

#[tokio::test]
async fn a_runtime_that_is_not_there_or_not_http_is_told() {
    let (mut fake, mut docker) = fake(DOCKER, &[("1a", "{}", WEB)]);
    docker.list().await.expect("a list");
    fake.stop().await;
    check_told(&docker.list().await.expect_err("gone"), "cannot connect to its socket");
    fake.start_again();
    assert_eq!(docker.list().await.expect("a list").len(), 1);
    let grpc = Fake::serve(Version::Http2, |_, _| Some(answer(200, "")));
    check_told(&Docker::new(&grpc.socket).list().await.expect_err("not HTTP/1"), "the connection failed");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_answer_is_given_up() {
    // The answer to `inspect` never comes.
    let (_fake, mut docker) = fake(DOCKER, &[("1a", "{}", "")]);
    check_told(&docker.list().await.expect_err("no answer"), "no answer within 10s");
}
