//! Network namespaces that come and go: what is taken in them in either direction, and that nothing of them is left.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    process::Command,
};

use waylay::{
    kernel::{Counter, Enrolment, Interception, KernelError, Policy, Verdict},
    listener::TrafficDirection,
    netns::{Netns, NetnsThread},
};

use crate::{
    addr,
    pod::{CLIENT_V4, Pod, arriving, speak},
    world::{World, accept_from, counter, instance},
};

/// Cookies that stand in any map, and how often.
fn traces_of(interception: &Interception, cookie: u64) -> Vec<String> {
    let instance = instance(interception);
    let netns = instance.netns().unwrap().into_iter().map(|row| (row.netns_cookie, "netns"));
    let listeners = instance.listeners().unwrap().into_iter().map(|row| (row.netns_cookie, "listeners"));
    let exempt = instance.exempt().unwrap().into_iter().map(|row| (row.netns_cookie, "exempt"));
    let flows = instance.flows().unwrap().into_iter().map(|row| (row.netns_cookie, "flows"));
    let handover = instance.handover().unwrap().into_iter().map(|row| (row.process.netns_cookie, "handover"));
    let all = netns.chain(listeners).chain(exempt).chain(flows).chain(handover);
    all.filter(|(found, _)| *found == cookie).map(|(_, map)| map.to_owned()).collect()
}

/// How many links the kernel has in the pod's namespace.
fn links(pod: &Pod) -> usize {
    let output = Command::new("bpftool").args(["-j", "link", "show"]).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links.as_array().unwrap().iter().filter(|link| link["netns_ino"] == pod.inode()).count()
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_pages() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_withdrawn_namespace_leaves_nothing_behind_and_its_application_takes_over() {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    let application = pod.serve("0.0.0.0:8080");
    let (cookie, files) = (pod.netns.cookie(), open_files());
    let policy = arriving("0.0.0.0/0", 8080);
    let enrolment = Enrolment { outbound: Some(&Policy::default()), ..pod.enrolment(&policy) };
    interception.enrol(&pod.netns, &enrolment).unwrap();
    speak(&pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap(), &accept_from(&pod.agent_v4));
    let there: BTreeSet<_> = traces_of(&interception, cookie).into_iter().collect();
    assert_eq!(there.iter().map(String::as_str).collect::<Vec<_>>(), ["exempt", "listeners", "netns"]);
    assert_eq!(links(&pod), 1);

    interception.withdraw(cookie).unwrap();
    assert_eq!(traces_of(&interception, cookie), Vec::<String>::new());
    assert_eq!(links(&pod), 0);
    speak(&pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap(), &accept_from(&application));
    // Only the private bpffs of the inbound hooks stays.
    assert_eq!(open_files(), files + 1);
    interception.withdraw(cookie).unwrap();
}

#[test]
fn two_hundred_rounds_leave_memory_and_files_as_they_were() {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    let cookie = pod.netns.cookie();
    let mut round = |port| {
        let policy = arriving("10.0.0.0/8", port);
        let enrolment = Enrolment { outbound: Some(&policy), ..pod.enrolment(&policy) };
        interception.enrol(&pod.netns, &enrolment).unwrap();
        interception.withdraw(cookie).unwrap();
    };
    (0..20).for_each(&mut round);
    let (files, pages) = (open_files(), resident_pages());
    (0..200).for_each(&mut round);
    assert_eq!(open_files(), files);
    // A leak of one page for each round would be seen.
    assert!(resident_pages() < pages + 100, "{pages} pages before, {} after", resident_pages());
    assert_eq!(traces_of(&interception, cookie), Vec::<String>::new());
    assert_eq!(links(&pod), 0);
    // What the last round has left goes at the next change.
    assert!(instance(&interception).policy().unwrap().len() <= 3);
}

#[test]
fn a_namespace_that_is_gone_can_still_be_withdrawn() {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    let cookie = pod.netns.cookie();
    drop(pod);
    interception.withdraw(cookie).unwrap();
    assert_eq!(traces_of(&interception, cookie), Vec::<String>::new());
    // And the kernel side still serves others.
    let pod = Pod::new();
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    speak(&pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap(), &accept_from(&pod.agent_v4));
}

#[test]
fn what_a_pod_connects_to_is_redirected_to_the_listener_in_its_own_namespace() {
    let pod = Pod::new();
    let world = World::new();
    let listener: TcpListener = pod.serve("127.0.0.1:0");
    let SocketAddr::V4(redirect) = listener.local_addr().unwrap() else { panic!("IPv4") };
    let mut interception = world.attach(|options| {
        (options.host, options.redirect_v4, options.redirect_v6) = (false, Some(redirect), None);
    });
    let policy = arriving("192.0.2.0/24", 80);
    let enrolment = Enrolment { outbound: Some(&policy), inbound: None, listeners: &[] };
    interception.enrol(&pod.netns, &enrolment).unwrap();
    let script = "s = socket.create_connection(('192.0.2.7', 80))\nprint(peer(s), s.recv(9).decode())";
    let client = world.python_in(&pod, script);
    let accepted = accept_from(&listener);
    let handover = interception.kernel().handover(&accepted).unwrap().unwrap();
    assert_eq!(handover.original_dst, addr("192.0.2.7:80"));
    assert_eq!(handover.process.netns_cookie, pod.netns.cookie());
    World::answer(accepted, "agent");
    assert_eq!(client.output(), "192.0.2.7:80 agent");
    // The agent's own namespace is not enrolled.
    let direct = world.python("s = socket.socket()\ns.settimeout(0.2)\nprint(s.connect_ex(('127.77.0.1', 80)))");
    assert_eq!(direct.output(), "111");
    assert_eq!(counter(&interception, Counter::PassedNetns), 1);
}

#[test]
fn the_agents_addresses_in_a_pod_are_exempt_there_with_every_instance() {
    let (world, pod) = (World::new(), Pod::new());
    let mut first = world.attach(|options| options.host = false);
    let below = World::below(&world);
    let second = below.attach(|options| options.host = false);
    let own = [addr("127.0.0.1:15090")];
    let enrolment = Enrolment { listeners: &own, ..pod.enrolment(&EVERYTHING) };
    first.enrol(&pod.netns, &enrolment).unwrap();
    let cookie = pod.netns.cookie();
    for interception in [&first, &second] {
        let rows = instance(interception).exempt().unwrap();
        let there =
            rows.into_iter().filter(|row| row.netns_cookie == cookie && row.instance == first.kernel().instance());
        let listeners: BTreeSet<_> = there.map(|row| row.listener).collect();
        let mut expected = BTreeSet::from(own);
        expected.extend([&pod.agent_v4, &pod.agent_v6].map(|listener| listener.local_addr().unwrap()));
        assert_eq!(listeners, expected);
    }
    let served = pod.serve("127.0.0.1:15090");
    speak(&pod.inside(|| std::net::TcpStream::connect(own[0])).unwrap(), &accept_from(&served));
    assert_eq!(counter(&first, Counter::InboundPassedOwnListener), 1);
    first.withdraw(cookie).unwrap();
    for interception in [&first, &second] {
        assert_eq!(traces_of(interception, cookie), Vec::<String>::new());
    }
}

static EVERYTHING: Policy = Policy { include: vec![], exclude: vec![] };

#[test]
fn an_agent_does_not_take_what_another_takes_in_the_same_namespace() {
    let (worlds, pod) = ([World::new(), World::new()], Pod::new());
    let [mut first, mut second] = worlds.each_ref().map(|world| world.attach(|options| options.host = false));
    pod.enrol(&mut first, &arriving("10.77.0.0/24", 8080)).unwrap();
    let error = pod.enrol(&mut second, &EVERYTHING).unwrap_err();
    assert!(matches!(error, KernelError::InboundRival { pid, .. } if pid == std::process::id()), "{error}");
    // Of the namespace, the second one knows only what the first has told it: addresses to leave alone.
    let left = traces_of(&second, pod.netns.cookie());
    assert!(left.iter().all(|map| map == "exempt"), "{left:?}");
    // Other ports are another matter, and so is a namespace that the first one has left.
    pod.enrol(&mut second, &arriving("10.77.0.0/24", 8081)).unwrap();
    first.withdraw(pod.netns.cookie()).unwrap();
    pod.enrol(&mut second, &EVERYTHING).unwrap();
}

#[test]
fn the_agents_own_namespace_is_enrolled_for_arrivals_as_any_other() {
    let world = World::new();
    let mut interception = world.attach(|_| {});
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let own = runtime
        .block_on(async { Netns::open("/proc/self/ns/net".as_ref(), &NetnsThread::start().unwrap()).await.unwrap() });
    assert_eq!(own.cookie(), interception.kernel().netns_cookie());
    let (agent, application) = (listen(), listen());
    let policy = arriving("127.0.0.0/8", application.local_addr().unwrap().port());
    let outbound = crate::exclude(application.local_addr().unwrap());
    {
        use std::os::fd::AsFd as _;
        let inbound =
            waylay::kernel::InboundEnrolment { policy: &policy, listener_v4: Some(agent.as_fd()), listener_v6: None };
        let enrolment = Enrolment { outbound: Some(&outbound), inbound: Some(inbound), listeners: &[] };
        interception.enrol(&own, &enrolment).unwrap();
    }
    let to = application.local_addr().unwrap();
    let mut trace = interception.kernel().trace().unwrap();
    let client = std::net::TcpStream::connect(to).unwrap();
    speak(&client, &accept_from(&agent));
    let event = std::iter::from_fn(|| trace.next()).find(|event| event.destination == to).unwrap();
    assert_eq!(event.direction, TrafficDirection::Inbound);
    assert_eq!((event.verdict, event.reason), (Verdict::Redirected, Counter::InboundRedirectedV4));
    assert_eq!(event.source, Some(client.local_addr().unwrap()));
    assert_eq!(event.process.netns_cookie, own.cookie());
    // The outbound side is as it was: the policy is replaced by itself.
    interception.replace_policy(&outbound).unwrap();
    let client = std::net::TcpStream::connect(to).unwrap();
    speak(&client, &accept_from(&agent));
    let agents = interception.kernel().instance();
    assert_eq!(instance(&interception).id(), agents);
    interception.detach().unwrap();
    let client = std::net::TcpStream::connect(to).unwrap();
    speak(&client, &accept_from(&application));
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}
