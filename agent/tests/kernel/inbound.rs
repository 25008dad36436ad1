//! What arrives in a network namespace: taken by the policy, given to the agent, and let through to the application when it
//! is the agent that connects.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use waylay::{
    kernel::{Counter, Enrolment, InboundEnrolment, Interception, Policy},
    listener::TrafficDirection,
};

use crate::{
    addr,
    pod::{CLIENT_V4, CLIENT_V6, OTHER_CLIENT_V4, Pod, arriving, speak},
    world::{World, accept_from, counter, instance, wait_until},
};

#[test]
fn the_chosen_port_of_the_chosen_clients_is_taken_with_both_addresses_kept() {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    let application = pod.serve("0.0.0.0:8080");
    let other_port = pod.serve("0.0.0.0:8081");
    pod.enrol(&mut interception, &arriving("10.77.0.0/29", 8080)).unwrap();

    let client = pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap();
    let accepted = accept_from(&pod.agent_v4);
    assert_eq!(accepted.local_addr().unwrap(), addr("10.77.0.2:8080"));
    assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    speak(&client, &accepted);
    assert_eq!(counter(&interception, Counter::InboundRedirectedV4), 1);

    let client = pod.dial(OTHER_CLIENT_V4, "10.77.0.2:8080").unwrap();
    speak(&client, &accept_from(&application));
    let client = pod.dial(CLIENT_V4, "10.77.0.2:8081").unwrap();
    speak(&client, &accept_from(&other_port));
    assert_eq!(counter(&interception, Counter::InboundPassedNotIncluded), 2);
    assert_eq!(counter(&interception, Counter::InboundRedirectedV4), 1);
}

#[test]
fn a_client_over_ipv6_is_given_to_the_agent_as_well() {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    let application = pod.serve("[::]:8080");
    pod.enrol(&mut interception, &arriving("fd77::1/128", 8080)).unwrap();
    let client = pod.dial(CLIENT_V6, "[fd77::2]:8080").unwrap();
    let accepted = accept_from(&pod.agent_v6);
    assert_eq!(accepted.local_addr().unwrap(), addr("[fd77::2]:8080"));
    assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    speak(&client, &accepted);
    assert_eq!(counter(&interception, Counter::InboundRedirectedV6), 1);
    // The IPv6 application is also there for IPv4, which this policy leaves to it.
    let client = pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap();
    speak(&client, &accept_from(&application));
    assert_eq!(counter(&interception, Counter::InboundPassedNotIncluded), 1);
}

/// The agent passes a client's connection on to an application bound to `bound`, at `dialled`.
fn check_reached(bound: &str, dialled: &str) {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    let application = pod.serve(bound);
    // Everything that arrives, from anywhere: also from the agent.
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    let ours = pod.reach(&interception, dialled).unwrap();
    speak(&ours, &accept_from(&application));
    assert_eq!(counter(&interception, Counter::FlowsPublished), 1, "{dialled}");
    assert_eq!(counter(&interception, Counter::InboundPassedOwnFlow), 1, "{dialled}");
    assert_eq!(redirected(&interception), 0, "{dialled}");
    let instance = instance(&interception);
    let flows = instance.flows().unwrap();
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].netns_cookie, pod.netns.cookie());
    assert_eq!((flows[0].agent, flows[0].application), (ours.local_addr().unwrap(), addr(dialled)));
    drop(ours);
    wait_until(|| instance.flows().unwrap().is_empty());
    // The same connection without the stamp would come back to the agent.
    let unstamped = pod.inside(|| TcpStream::connect(dialled)).unwrap();
    let listener = if addr(dialled).is_ipv4() { &pod.agent_v4 } else { &pod.agent_v6 };
    speak(&unstamped, &accept_from(listener));
    assert_eq!(redirected(&interception), 1, "{dialled}");
}

#[test]
fn the_agent_reaches_an_application_that_is_bound_to_the_loopback_only() {
    check_reached("127.0.0.1:8080", "127.0.0.1:8080");
    check_reached("[::1]:8080", "[::1]:8080");
}

#[test]
fn the_agent_reaches_an_application_that_is_bound_to_the_address_of_the_namespace_only() {
    check_reached("10.77.0.2:8080", "10.77.0.2:8080");
    check_reached("[fd77::2]:8080", "[fd77::2]:8080");
}

#[test]
fn a_connection_that_the_inbound_hook_cannot_be_told_of_is_refused_instead_of_going_in_circles() {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| (options.host, options.flow_entries) = (false, 1));
    let application = pod.serve("127.0.0.1:8080");
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    let first = pod.reach(&interception, "127.0.0.1:8080").unwrap();
    speak(&first, &accept_from(&application));
    // The kernel may grant a few entries more than were asked for: one for each processor.
    let held: Vec<_> = std::iter::repeat_with(|| pod.reach(&interception, "127.0.0.1:8080"))
        .take(200)
        .take_while(Result::is_ok)
        .collect();
    assert!(held.len() < 200, "the map was never full");
    let error = pod.reach(&interception, "127.0.0.1:8080").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
    assert_eq!(counter(&interception, Counter::FlowsFull), 2);
    assert_eq!(redirected(&interception), 0);
}

#[test]
fn the_same_four_addresses_in_two_namespaces_are_two_connections() {
    let (world, pods) = (World::new(), [Pod::new(), Pod::new()]);
    let mut interception = world.attach(|options| options.host = false);
    let applications = pods.each_ref().map(|pod| pod.serve("127.0.0.1:8080"));
    for pod in &pods {
        pod.enrol(&mut interception, &Policy::default()).unwrap();
    }
    let reach = |pod: &Pod, stamped: bool| {
        pod.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&addr("127.0.0.1:4321").into()).unwrap();
            if stamped {
                interception.kernel().stamp(&socket, TrafficDirection::Inbound).unwrap();
            }
            socket.connect(&addr("127.0.0.1:8080").into()).unwrap();
            TcpStream::from(socket)
        })
    };
    let ours = reach(&pods[0], true);
    speak(&ours, &accept_from(&applications[0]));
    // In the other namespace the very same four addresses belong to somebody else.
    let theirs = reach(&pods[1], false);
    let accepted = accept_from(&pods[1].agent_v4);
    assert_eq!(accepted.peer_addr().unwrap(), addr("127.0.0.1:4321"));
    speak(&theirs, &accepted);
    assert_eq!(counter(&interception, Counter::InboundPassedOwnFlow), 1);
    assert_eq!(redirected(&interception), 1);
    let clients = pods.each_ref().map(|pod| pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap());
    for (pod, client) in pods.iter().zip(&clients) {
        speak(client, &accept_from(&pod.agent_v4));
    }
}

#[test]
fn an_agent_that_hangs_drains_or_listens_no_more_leaves_the_application_to_its_clients() {
    let (world, pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| {
        (options.host, options.heartbeat_loss) = (false, Duration::from_secs(1));
    });
    let application = pod.serve("0.0.0.0:8080");
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    let direct = || {
        let client = pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap();
        speak(&client, &accept_from(&application));
    };
    let taken = || {
        let client = pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap();
        speak(&client, &accept_from(&pod.agent_v4));
    };
    taken();
    std::thread::sleep(Duration::from_millis(1200));
    direct();
    assert_eq!(counter(&interception, Counter::InboundPassedAgentLost), 1);
    interception.heartbeat().unwrap();
    taken();
    let none = InboundEnrolment { policy: &Policy::default(), listener_v4: None, listener_v6: None };
    let nobody = Enrolment { inbound: Some(none), ..Enrolment::default() };
    interception.heartbeat().unwrap();
    interception.enrol(&pod.netns, &nobody).unwrap();
    direct();
    assert_eq!(counter(&interception, Counter::InboundPassedNoListener), 1);
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    interception.heartbeat().unwrap();
    taken();
    interception.stop_redirecting().unwrap();
    direct();
    assert_eq!(counter(&interception, Counter::InboundPassedDraining), 1);
}

#[test]
fn a_listening_socket_that_is_closed_leaves_the_map_by_itself() {
    let (world, mut pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    let application = pod.serve("0.0.0.0:8080");
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    assert_eq!(instance(&interception).listeners().unwrap().len(), 2);
    pod.agent_v4 = pod.serve("127.0.0.1:0");
    let client = pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap();
    speak(&client, &accept_from(&application));
    assert_eq!(counter(&interception, Counter::InboundPassedNoListener), 1);
    assert_eq!(instance(&interception).listeners().unwrap().len(), 1);
}

#[test]
fn policies_change_in_place_and_are_kept_once_however_many_namespaces_hold_them() {
    let (world, pods) = (World::new(), [Pod::new(), Pod::new()]);
    let mut interception = world.attach(|options| options.host = false);
    let policy = arriving("10.77.0.1/32", 8080);
    for pod in &pods {
        pod.enrol(&mut interception, &policy).unwrap();
    }
    let rows = instance(&interception).netns().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].inbound, rows[0].outbound), (rows[1].inbound, None));
    let cookie = pods[0].netns.cookie();
    let application = pods[0].serve("0.0.0.0:8080");
    interception.change(cookie, None, Some(&arriving("10.77.0.9/32", 8080))).unwrap();
    speak(&pods[0].dial(CLIENT_V4, "10.77.0.2:8080").unwrap(), &accept_from(&application));
    speak(&pods[0].dial(OTHER_CLIENT_V4, "10.77.0.2:8080").unwrap(), &accept_from(&pods[0].agent_v4));
    // The other pod keeps what it had.
    speak(&pods[1].dial(CLIENT_V4, "10.77.0.2:8080").unwrap(), &accept_from(&pods[1].agent_v4));
    interception.change(cookie, None, None).unwrap();
    speak(&pods[0].dial(OTHER_CLIENT_V4, "10.77.0.2:8080").unwrap(), &accept_from(&application));
    assert_eq!(counter(&interception, Counter::InboundPassedNetns), 1);
    let error = interception.change(1, None, None).unwrap_err();
    assert_eq!(error.to_string(), "the network namespace 1 is not enrolled: enrol it first");
}

fn redirected(interception: &Interception) -> u64 {
    counter(interception, Counter::InboundRedirectedV4) + counter(interception, Counter::InboundRedirectedV6)
}

#[test]
fn one_socket_in_the_map_stands_for_all_workers_that_share_its_port() {
    let (world, mut pod) = (World::new(), Pod::new());
    let mut interception = world.attach(|options| options.host = false);
    let worker = |address: SocketAddr| -> TcpListener {
        pod.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(64).unwrap();
            socket.into()
        })
    };
    let first = worker(addr("127.0.0.1:0"));
    let second = worker(first.local_addr().unwrap());
    pod.agent_v4 = first;
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    let clients: Vec<_> = (0..40).map(|_| pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap()).collect();
    let waiting = |listener: &TcpListener| {
        listener.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| listener.accept().ok()).count()
    };
    // All have been accepted by the kernel when their connects return, but for the last steps of a handshake.
    let (mut of_first, mut of_second) = (0, 0);
    wait_until(|| {
        of_first += waiting(&pod.agent_v4);
        of_second += waiting(&second);
        of_first + of_second == clients.len()
    });
    assert!(of_first > 0 && of_second > 0, "{of_first} and {of_second}");
}

#[test]
fn connections_that_are_made_by_syn_cookies_find_their_way_too() {
    let (world, pod) = (World::new(), Pod::new());
    // 2: always, as if the queue were full. The kernel then looks for the listening socket once more at the last ACK.
    pod.inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").unwrap());
    let mut interception = world.attach(|options| options.host = false);
    let application = pod.serve("0.0.0.0:8080");
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    let client = pod.dial(CLIENT_V4, "10.77.0.2:8080").unwrap();
    let accepted = accept_from(&pod.agent_v4);
    assert_eq!(accepted.local_addr().unwrap(), addr("10.77.0.2:8080"));
    speak(&client, &accepted);
    assert_eq!(redirected(&interception), 2);
    let ours = pod.reach(&interception, "10.77.0.2:8080").unwrap();
    speak(&ours, &accept_from(&application));
    assert_eq!(counter(&interception, Counter::InboundPassedOwnFlow), 2);
    assert_eq!(redirected(&interception), 2);
}
