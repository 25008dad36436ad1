use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::*;
use crate::workload::fixture::{Fake, Version, answer, framed, framed_bytes, grpc_bytes, grpc_status, streamed};

const LONG: Duration = Duration::from_secs(3600);
const UNIMPLEMENTED: u32 = 12;

/// A sandbox as in the list, on the wire: its id, and its name in the metadata.
#[derive(Clone, PartialEq, prost::Message)]
struct Row {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Row>,
}

/// A CRI with as many sandboxes as `count` says; it answers `method` with a stream of events, and other subscriptions with
/// "unimplemented".
fn cri(count: Arc<AtomicUsize>, method: &'static str) -> (Fake, mpsc::UnboundedSender<Bytes>) {
    let (events, receiver) = mpsc::unbounded_channel();
    let receiver = Mutex::new(Some(receiver));
    let fake = Fake::serve(Version::Http2, move |path, _| {
        Some(match path.rsplit('/').next().unwrap_or_default() {
            "ListPodSandbox" => {
                let items = (0..count.load(Relaxed)).map(|index| Row { id: format!("pod-{index}") }).collect();
                grpc_bytes(framed(&List { items }))
            }
            "PodSandboxStatus" => grpc_bytes(framed(&List::default())),
            // The second field of the answer is the runtime's name.
            "Version" if method == "Subscribe" => grpc_bytes(framed_bytes(b"\x12\x0acontainerd")),
            "Version" => grpc_bytes(framed_bytes(b"\x12\x05cri-o")),
            path if path == method => match receiver.lock().expect("events").take() {
                Some(receiver) => streamed(receiver),
                None => grpc_status(14, "busy"),
            },
            _ => grpc_status(UNIMPLEMENTED, "unknown method"),
        })
    });
    (fake, events)
}

fn address(fake: &Fake) -> RuntimeAddress {
    RuntimeAddress::new(Protocol::Cri, &fake.socket)
}

async fn until<T>(found: &mut watch::Receiver<Found>, condition: impl Fn(&Found) -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(wanted) = condition(&found.borrow_and_update()) {
                return wanted;
            }
            found.changed().await.expect("it goes on");
        }
    };
    timeout(Duration::from_secs(20), waiting).await.expect("what was waited for")
}

async fn until_count(found: &mut watch::Receiver<Found>, count: usize) {
    until(found, |found| (found.workloads.len() == count).then_some(())).await;
}

/// The address of the fake, what it has now, how it is given one more, and how it tells.
async fn check_events(address: RuntimeAddress, one_more: impl Fn(), tell: impl Fn(), fake: &Fake, method: &str) {
    let (_discovery, mut found) = Discovery::start(vec![address], LONG);
    until_count(&mut found, 1).await;
    // Until the lists after the first one are over: from now on only an event can tell.
    sleep(AFTER_HINT.iter().sum::<Duration>() + Duration::from_millis(500)).await;
    assert_eq!(fake.count(method), 1, "it has subscribed");
    one_more();
    tell();
    until_count(&mut found, 2).await;
}

#[tokio::test]
async fn an_event_makes_it_list_again() {
    for (method, other) in [("GetContainerEvents", "Subscribe"), ("Subscribe", "GetContainerEvents")] {
        let count = Arc::new(AtomicUsize::new(1));
        let (fake, events) = cri(count.clone(), method);
        let tell = || events.send(framed(&List::default())).expect("subscribed");
        check_events(address(&fake), || count.store(2, Relaxed), tell, &fake, method).await;
        assert_eq!(fake.count(other), 0, "events of containerd's CRI belong to the kubelet");
    }
}

#[tokio::test]
async fn an_event_of_docker_makes_it_list_again() {
    let (events, receiver) = mpsc::unbounded_channel();
    let receiver = Mutex::new(Some(receiver));
    let rows = Arc::new(Mutex::new(r#"[{"Id":"a"}]"#));
    let shared = rows.clone();
    let fake = Fake::serve(Version::Http1, move |path, _| {
        let container = |id: &str| format!(r#"{{"Id":"{id}","Name":"/{id}","State":{{"Running":true,"Pid":7}}}}"#);
        Some(match path {
            "/version" => answer(200, "{}"),
            "/containers/json" => answer(200, *shared.lock().expect("rows")),
            "/containers/a/json" => answer(200, container("a")),
            "/containers/b/json" => answer(200, container("b")),
            path if path.starts_with("/events?") => streamed(receiver.lock().expect("events").take()?),
            _ => answer(404, ""),
        })
    });
    let address = RuntimeAddress::new(Protocol::Docker, &fake.socket);
    let one_more = || *rows.lock().expect("rows") = r#"[{"Id":"a"},{"Id":"b"}]"#;
    let tell =
        || events.send(Bytes::from_static(b"{\"Type\":\"container\",\"Action\":\"start\"}\n")).expect("subscribed");
    let path = "%22start%22%2C%22die%22%2C%22rename%22%2C%22connect%22%2C%22disconnect%22%5D%7D";
    check_events(address, one_more, tell, &fake, path).await;
}

#[tokio::test]
async fn what_an_event_tells_too_early_is_found_a_moment_later_and_lists_do_not_pile_up() {
    let count = Arc::new(AtomicUsize::new(0));
    let (fake, events) = cri(count.clone(), "Subscribe");
    let (_discovery, mut found) = Discovery::start(vec![address(&fake)], LONG);
    until(&mut found, |found| found.complete.then_some(())).await;
    while fake.count("Subscribe") == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..1000 {
        events.send(framed(&List::default())).expect("subscribed");
    }
    sleep(Duration::from_millis(50)).await;
    count.store(1, Relaxed);
    until_count(&mut found, 1).await;
    sleep(Duration::from_secs(2)).await;
    let lists = fake.count("ListPodSandbox");
    assert!((2..60).contains(&lists), "{lists} lists for a thousand events");
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(fake.count("ListPodSandbox"), lists, "nothing happens, so nothing is asked");
}

#[tokio::test]
async fn a_runtime_without_events_is_polled() {
    let count = Arc::new(AtomicUsize::new(0));
    let (fake, _events) = cri(count.clone(), "none");
    let (_discovery, mut found) = Discovery::start(vec![address(&fake)], Duration::from_millis(100));
    until(&mut found, |found| found.complete.then_some(())).await;
    count.store(2, Relaxed);
    until_count(&mut found, 2).await;
    let first = found.borrow().workloads[0].clone();
    count.store(1, Relaxed);
    until_count(&mut found, 1).await;
    assert!(Arc::ptr_eq(&first, &found.borrow().workloads[0]), "what is the same is kept");
    found.mark_unchanged();
    sleep(Duration::from_millis(400)).await;
    assert!(!found.has_changed().expect("it goes on"), "what has not changed is not told");
}

#[tokio::test]
async fn a_lost_runtime_is_told_and_keeps_its_workloads_until_it_answers_again() {
    let count = Arc::new(AtomicUsize::new(1));
    let (mut fake, _events) = cri(count.clone(), "none");
    let (other, _others_events) = cri(Arc::new(AtomicUsize::new(0)), "none");
    let addresses = vec![address(&fake), address(&other)];
    let (_discovery, mut found) = Discovery::start(addresses, Duration::from_millis(50));
    until_count(&mut found, 1).await;
    fake.stop().await;
    let problem = until(&mut found, |found| found.problems.first().cloned()).await;
    assert!(problem.starts_with(&format!("the container runtime cri://{}: ", fake.socket.display())), "{problem}");
    assert_eq!(found.borrow().workloads.len(), 1);
    count.store(2, Relaxed);
    fake.start_again();
    until_count(&mut found, 2).await;
    assert_eq!(found.borrow().problems, Vec::<String>::new());
}

#[tokio::test]
async fn all_runtimes_are_one_list() {
    let (fake, _events) = cri(Arc::new(AtomicUsize::new(2)), "none");
    let docker = Fake::serve(Version::Http1, |path, _| {
        Some(match path {
            "/version" => answer(200, "{}"),
            "/containers/json" => answer(200, r#"[{"Id":"d"}]"#),
            "/containers/d/json" => answer(200, r#"{"Id":"d","Name":"/web","State":{"Running":true,"Pid":7}}"#),
            _ => answer(404, ""),
        })
    });
    let nobody = RuntimeAddress::new(Protocol::Docker, docker.socket.with_file_name("nobody.sock"));
    let addresses = vec![address(&fake), RuntimeAddress::new(Protocol::Docker, &docker.socket), nobody];
    let (discovery, mut found) = Discovery::start(addresses, LONG);
    until(&mut found, |found| found.complete.then_some(())).await;
    let now = found.borrow().clone();
    assert_eq!(now.workloads.iter().map(|workload| &*workload.id).collect::<Vec<_>>(), ["pod-0", "pod-1", "d"]);
    let [problem] = &now.problems[..] else { panic!("{now:?}") };
    assert!(problem.contains("nobody.sock: cannot connect to its socket: No such file"), "{problem}");
    drop(discovery);
    assert!(timeout(Duration::from_secs(5), found.changed()).await.expect("it ends").is_err(), "nobody asks any more");
}

#[tokio::test]
async fn a_socket_at_a_usual_place_is_found_when_it_appears() {
    let count = Arc::new(AtomicUsize::new(1));
    let (mut fake, _events) = cri(count, "none");
    fake.stop().await;
    let (sender, mut found) = watch::channel(Found::default());
    let board = Arc::new(Board { state: Mutex::default(), sender });
    let absent = RuntimeAddress::new(Protocol::Docker, PathBuf::from("/nonexistent/docker.sock"));
    let looking = tokio::spawn(look_for(vec![absent, address(&fake)], Duration::from_millis(50), board));
    let problem = until(&mut found, |found| found.problems.first().cloned()).await;
    assert!(problem.contains("no container runtime was found: name yours in intercept.pods.runtimes"), "{problem}");
    assert!(problem.contains("/nonexistent/docker.sock"), "{problem}");
    fake.start_again();
    until_count(&mut found, 1).await;
    assert!(found.borrow().problems.is_empty());
    looking.abort();
}

#[tokio::test]
async fn a_containerd_that_is_dockers_is_a_problem_only_when_it_was_named() {
    let no_cri = || Fake::serve(Version::Http2, |_, _| Some(grpc_status(UNIMPLEMENTED, "unknown service")));
    let (named, at_its_place) = (no_cri(), no_cri());
    let (_discovery, mut found) = Discovery::start(vec![address(&named)], LONG);
    let problem = until(&mut found, |found| found.problems.first().cloned()).await;
    assert!(problem.contains("it does not serve the CRI: remove `cri` from `disabled_plugins`"), "{problem}");
    let (sender, mut found) = watch::channel(Found::default());
    let board = Arc::new(Board { state: Mutex::default(), sender });
    let looking = tokio::spawn(look_for(vec![address(&at_its_place)], LONG, board));
    while at_its_place.count("ListPodSandbox") == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    until(&mut found, |found| (found.complete && found.problems.is_empty()).then_some(())).await;
    looking.abort();
}
