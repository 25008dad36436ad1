use prost::Message as _;

use super::messages::{Namespace, NamespaceOption, PodIp, PodSandboxMetadata, PodSandboxNetworkStatus};
use super::*;
use crate::workload::fixture::{
    Answer, Fake, Version, answer, framed, framed_bytes, grpc_broken, grpc_bytes, grpc_status,
};

const NOT_FOUND: u32 = 5;
const UNKNOWN: u32 = 2;
const UNIMPLEMENTED: u32 = 12;

fn sandbox(id: &str, annotation: &str) -> PodSandbox {
    let metadata = PodSandboxMetadata {
        name: format!("{id}-name"),
        uid: format!("{id}-uid"),
        namespace: "shop".to_owned(),
        attempt: 0,
    };
    PodSandbox {
        id: id.to_owned(),
        metadata: Some(metadata),
        state: PodSandboxState::Ready.into(),
        labels: HashMap::from([("app".to_owned(), "web".to_owned())]),
        annotations: HashMap::from([("a".to_owned(), annotation.to_owned())]),
    }
}

fn status(network: NamespaceMode, ips: &[&str]) -> PodSandboxStatusResponse {
    let ips: Vec<_> = ips.iter().map(|ip| (*ip).to_owned()).collect();
    let network_status = PodSandboxNetworkStatus {
        ip: ips.first().cloned().unwrap_or_default(),
        additional_ips: ips.iter().skip(1).cloned().map(|ip| PodIp { ip }).collect(),
    };
    let options = Some(NamespaceOption { network: network.into() });
    let linux = Some(messages::LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) });
    let state = PodSandboxState::Ready.into();
    let status = PodSandboxStatus { id: String::new(), state, network: Some(network_status), linux };
    let info = HashMap::from([("info".to_owned(), r#"{"pid":42}"#.to_owned())]);
    PodSandboxStatusResponse { status: Some(status), info }
}

fn grpc(message: &impl prost::Message) -> Option<Answer> {
    Some(grpc_bytes(framed(message)))
}

fn list_of(items: &[PodSandbox]) -> Option<Answer> {
    grpc(&ListPodSandboxResponse { items: items.to_vec() })
}

/// What `PodSandboxStatus` is asked for.
fn asked_for(body: &[u8]) -> String {
    PodSandboxStatusRequest::decode(&body[5..]).expect("a question").pod_sandbox_id
}

/// A runtime that answers all lists with `list` and all questions for a status with `status`.
fn fake(
    list: impl Fn() -> Option<Answer> + Send + Sync + 'static,
    status: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static,
) -> (Fake, Cri) {
    let fake = Fake::serve(Version::Http2, move |path, body| match path.rsplit('/').next() {
        Some("ListPodSandbox") => list(),
        Some("PodSandboxStatus") => status(&asked_for(&body)),
        _ => Some(grpc_status(UNIMPLEMENTED, "unknown method")),
    });
    let cri = Cri::new(&fake.socket);
    (fake, cri)
}

#[tokio::test]
async fn a_list_costs_one_call_and_one_for_each_new_sandbox() {
    let rows = Arc::new(std::sync::Mutex::new(vec![sandbox("one", "x"), sandbox("two", "x")]));
    let shared = rows.clone();
    let (fake, mut cri) = fake(
        move || list_of(&shared.lock().expect("rows")),
        |_| grpc(&status(NamespaceMode::Pod, &["10.0.0.7", "fd00::7"])),
    );
    let first = cri.list().await.expect("a list");
    assert_eq!(first.len(), 2);
    let one = &first[0];
    assert_eq!((one.to_string(), &*one.uid, one.pid), ("shop/one-name".to_owned(), "one-uid", Some(42)));
    assert_eq!(one.ips, ["10.0.0.7".parse::<IpAddr>().expect("ip"), "fd00::7".parse().expect("ip")]);
    assert_eq!((&*one.labels["app"], &*one.annotations["a"], one.host_network), ("web", "x", false));

    *rows.lock().expect("rows") = vec![sandbox("two", "y"), sandbox("three", "x")];
    let second = cri.list().await.expect("a list");
    assert_eq!(second.iter().map(|workload| &*workload.id).collect::<Vec<_>>(), ["two", "three"]);
    assert_eq!(second[0].annotations["a"], "y", "annotations are those of the list");
    assert_eq!((fake.count("ListPodSandbox"), fake.count("PodSandboxStatus")), (2, 3));
    assert_eq!(cri.details.len(), 2, "what is gone is forgotten");
}

#[tokio::test]
async fn a_sandbox_that_is_gone_before_its_status_was_asked_is_left_out() {
    let rows =
        || list_of(&[sandbox("removed", "x"), sandbox("stopped", "x"), sandbox("odd", "x"), sandbox("host", "x")]);
    let (fake, mut cri) = fake(rows, |id| match id {
        "removed" => Some(grpc_status(NOT_FOUND, "no such sandbox")),
        "stopped" => {
            let mut answer = status(NamespaceMode::Pod, &[]);
            answer.status.as_mut().expect("set").state = PodSandboxState::NotReady.into();
            grpc(&answer)
        }
        "odd" => Some(grpc_status(UNKNOWN, "its shim does not answer")),
        _ => grpc(&status(NamespaceMode::Node, &[])),
    });
    let mut found = cri.list().await.expect("a list");
    found.sort_by(|a, b| a.id.cmp(&b.id));
    let [host, odd] = &found[..] else { panic!("{found:?}") };
    assert!(host.host_network && &*host.id == "host");
    assert!((&*odd.id, odd.pid, &*odd.ips) == ("odd", None, &[]), "{odd:?}");
    cri.list().await.expect("a list");
    assert_eq!(fake.count("PodSandboxStatus"), 4 + 3, "all but that of the host are asked for again");
}

#[tokio::test]
async fn rows_that_are_not_ready_or_have_no_id_are_left_out() {
    let mut stopped = sandbox("stopped", "x");
    stopped.state = PodSandboxState::NotReady.into();
    let rows = [stopped, sandbox("", "x"), PodSandbox { metadata: None, ..sandbox("bare", "x") }, sandbox("bare", "x")];
    let (_fake, mut cri) = fake(move || list_of(&rows), |_| grpc(&status(NamespaceMode::Pod, &["nonsense"])));
    let found = cri.list().await.expect("a list");
    assert_eq!(found.len(), 1, "a second row with the same id is not another pod");
    assert_eq!((found[0].to_string(), &*found[0].ips), ("/".to_owned(), &[][..]));
}

#[tokio::test]
async fn answers_that_are_not_of_the_protocol_are_errors_and_the_next_list_may_succeed() {
    type Make = fn() -> Answer;
    let cases: [(&str, Make); 7] = [
        ("not a message", || grpc_bytes(framed_bytes(b"\xff\xff\xff\xff"))),
        ("cut off", || grpc_bytes(framed(&ListPodSandboxResponse { items: vec![sandbox("a", "x")] }).slice(..9))),
        ("longer than any", || grpc_bytes(vec![0, 0xff, 0xff, 0xff, 0xff, 1, 2].into())),
        ("nothing", || grpc_bytes(bytes::Bytes::new())),
        ("not gRPC", || answer(500, "oops")),
        ("broken off", || grpc_broken(vec![0, 0, 0].into())),
        ("invalid UTF-8", || grpc_bytes(framed_bytes(b"\x0a\x03\x0a\x01\xff"))),
    ];
    for (name, make) in cases {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let rows = move || match calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Some(make()),
            _ => list_of(&[]),
        };
        let (_fake, mut cri) = fake(rows, |_| None);
        let error = cri.list().await.expect_err(name);
        assert!(matches!(error, RuntimeError::Call { method: "ListPodSandbox", .. }), "{name}: {error:?}");
        assert!(cri.list().await.expect("the next list").is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_runtime_without_the_cri_is_told_from_one_that_fails() {
    let (mut fake, mut cri) =
        fake(|| Some(grpc_status(UNIMPLEMENTED, "unknown service runtime.v1.RuntimeService")), |_| None);
    assert!(matches!(cri.list().await, Err(RuntimeError::NoCri)));
    fake.stop().await;
    assert!(matches!(cri.list().await, Err(RuntimeError::Connect(_))));
    let http1 = Fake::serve(Version::Http1, |_, _| Some(answer(200, "hello")));
    let error = Cri::new(&http1.socket).list().await.expect_err("not HTTP/2");
    assert!(matches!(error, RuntimeError::Call { .. } | RuntimeError::Connection(_)), "{error:?}");
}

#[tokio::test]
async fn a_runtime_that_goes_in_the_middle_of_a_list_fails_it_and_is_connected_to_anew() {
    let (mut fake, mut cri) =
        fake(|| list_of(&[sandbox("a", "x")]), |_| grpc(&status(NamespaceMode::Pod, &["10.0.0.7"])));
    cri.list().await.expect("a list");
    fake.stop().await;
    let error = cri.list().await.expect_err("it is gone");
    assert!(matches!(error, RuntimeError::Call { .. }), "the connection is lost: {error:?}");
    fake.start_again();
    assert_eq!(cri.list().await.expect("a list").len(), 1);
    assert_eq!(fake.count("PodSandboxStatus"), 1, "what is known of its sandboxes is still true");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_does_not_answer_is_given_up() {
    let (_fake, mut cri) = fake(|| list_of(&[sandbox("a", "x")]), |_| None);
    let error = cri.list().await.expect_err("no answer");
    assert!(error.to_string().contains("no answer within 10s"), "{error}");
}
