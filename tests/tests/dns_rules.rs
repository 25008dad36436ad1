//! Whom the agent asks, what it keeps, and what it says when it does not know.

use std::net::Ipv4Addr;
use std::time::Duration;

use waylay_tests::{Agent, Resolver, World, eventually};

const ONE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(10, 2, 2, 2);

fn config(dns: &str) -> String {
    waylay_tests::config::BYTES.replace("intercept:", &format!("dns: {{{dns}}}\nintercept:"))
}

/// The status and the answers of one question by dig.
fn ask(world: &World, to: &[&str], name: &str) -> (String, String) {
    let args = [&["+tries=1", "+time=9", "+noall", "+comments", "+answer"], to, &[name]].concat();
    let printed = world.app("dig", &args).success();
    let status = printed.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none").to_owned();
    let answers: Vec<_> = printed
        .lines()
        .filter(|line| !line.starts_with(';'))
        .filter_map(|line| line.split_whitespace().nth(4))
        .collect();
    (status, answers.join(" "))
}

fn answered(address: Ipv4Addr) -> (String, String) {
    ("NOERROR".to_owned(), address.to_string())
}

fn failed(status: &str) -> (String, String) {
    (status.to_owned(), String::new())
}

fn dns(agent: &Agent, counter: &str) -> f64 {
    agent.metric(&format!("waylay_dns_{counter}"))
}

#[test]
fn configured_resolvers_are_asked_in_place_of_the_clients_own() {
    let world = World::new();
    let (one, two) = (Resolver::start(&world, "127.0.0.53", ONE), Resolver::start(&world, "127.9.9.9", TWO));
    // Nobody is at the first one.
    let agent = world.agent(&config("upstreams: ['127.77.0.1:53', '127.9.9.9:53']"));
    assert_eq!(ask(&world, &["@127.0.0.53"], "www.test"), answered(TWO));
    assert_eq!(ask(&world, &["@127.88.0.1"], "www.test"), answered(TWO), "for everybody, from one cache");
    assert_eq!(ask(&world, &["@127.0.0.1", "-p", "15053"], "direct.test"), answered(TWO), "the agent itself");
    assert_eq!(one.asked("www.test").len(), 0);
    assert_eq!((two.asked("www.test").len(), two.asked("direct.test").len()), (1, 1));
    assert!(dns(&agent, "upstream_error") >= 1.0);
    // Whoever does not want recursion means this very resolver.
    assert_eq!(ask(&world, &["@127.0.0.53", "+norecurse"], "www.test"), answered(ONE));
    assert_eq!(dns(&agent, "queries_passed_on"), 1.0);
    agent.rewrite(&world, &config("upstreams: ['127.0.0.53:53']"));
    eventually("the other resolver is asked", || ask(&world, &["@127.9.9.9"], "www.test") == answered(ONE));
    agent.stop();
}

#[test]
fn a_no_is_kept_and_an_answer_only_as_long_as_it_lives() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config(""));
    for _ in 0..2 {
        assert_eq!(ask(&world, &["@127.0.0.53"], "nx.test"), failed("NXDOMAIN"));
        assert_eq!(ask(&world, &["@127.0.0.53", "-t", "aaaa"], "none.test"), failed("NOERROR"));
        assert_eq!(ask(&world, &["@127.0.0.53"], "short.test"), answered(ONE));
        std::thread::sleep(Duration::from_millis(1100));
    }
    let asked = ["nx.test", "none.test", "short.test"].map(|name| resolver.asked(name).len());
    assert_eq!(asked, [1, 1, 2]);
    agent.stop();
}

#[test]
fn what_nobody_answers_is_a_failure_in_time() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config("timeout: 0.3s, attempts: 2, max_pending: 3"));
    assert_eq!(ask(&world, &["@127.0.0.53"], "silent.test"), failed("SERVFAIL"));
    assert_eq!(resolver.asked("silent.test").len(), 2);
    assert_eq!((dns(&agent, "upstream_timeout"), dns(&agent, "queries_unanswered")), (2.0, 1.0));
    // Five at once, of which three may wait.
    let printed = world.python(
        "import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
for number in range(5):
    s.sendto(struct.pack('!HHHHHH', number, 0x100, 1, 0, 0, 0) + b'\\x06silent\\x01%d\\0\\0\\x01\\0\\x01' % number, ('127.0.0.53', 53))
answers = [s.recv(4096) for _ in range(5)]
print(sorted(answer[1] for answer in answers), {answer[3] & 15 for answer in answers})
",
    );
    assert_eq!(printed, "[0, 1, 2, 3, 4] {2}\n");
    assert_eq!(dns(&agent, "pending_overflow"), 2.0);
    agent.stop();
}

#[test]
fn what_is_no_question_is_refused_or_dropped() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config(""));
    let printed = world.python(
        "import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
header = lambda number, flags, questions: struct.pack('!HHHHHH', number, flags, questions, 0, 0, 0)
for junk in (b'', b'x', header(1, 0x8000, 0), header(2, 0x100, 1), header(3, 0x100, 2) + b'\\x01a\\0\\0\\x01\\0\\x01' * 2):
    s.sendto(junk, ('127.0.0.53', 53))
for _ in range(2):
    answer, sender = s.recvfrom(4096)
    print(answer[1], answer[3] & 15, sender)
s.settimeout(0.3)
try: print(s.recv(4096))
except TimeoutError: print('no more')
s.settimeout(10)
s.sendto(header(4, 0x100, 1) + b'\\x01a\\0\\0\\x01\\0\\x01', ('127.0.0.1', 15053))
answer, sender = s.recvfrom(4096)
print(answer[1], answer[3] & 15, sender)
",
    );
    let expected = "2 1 ('127.0.0.53', 53)\n3 1 ('127.0.0.53', 53)\nno more\n4 5 ('127.0.0.1', 15053)\n";
    assert_eq!(printed, expected, "FORMERR twice; REFUSED where nobody says whom to ask");
    assert_eq!(ask(&world, &["@127.0.0.53"], "www.test"), answered(ONE), "and it goes on");
    assert_eq!((dns(&agent, "queries_malformed"), resolver.asked("www.test").len()), (5.0, 1));
    agent.stop();
}

#[test]
fn an_excluded_resolver_is_left_alone() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config("").replace(
        "intercept: {",
        "intercept: {outbound: {include: [{ports: [80]}], exclude: [{cidr: 127.0.0.53/32}]}, ",
    ));
    for _ in 0..2 {
        assert_eq!(ask(&world, &["@127.0.0.53"], "www.test"), answered(ONE));
    }
    assert_eq!(resolver.asked("www.test").len(), 2);
    assert!(agent.metric("waylay_kernel_dns_passed_excluded") >= 2.0);
    let _two = Resolver::start(&world, "127.9.9.9", TWO);
    assert_eq!(ask(&world, &["@127.9.9.9"], "www.test"), answered(TWO));
    assert_eq!(dns(&agent, "cache_misses"), 1.0, "include rules are not for questions");
    agent.stop();
}

#[test]
fn a_draining_agent_leaves_questions_alone_and_finishes_what_it_has() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let mut agent = world.agent(&config(""));
    let waiting =
        world.spawn(waylay_tests::world::Side::App, "dig", &["+short", "+tries=1", "@127.0.0.53", "slow.test"]);
    eventually("the question is on its way", || resolver.asked("slow.test").len() == 1);
    agent.child().signal(nix::sys::signal::Signal::SIGTERM);
    waiting.wait_for("10.1.1.1");
    assert_eq!(resolver.asked("slow.test").len(), 1);
    assert!(agent.child().wait(Duration::from_secs(20)).success());
    assert_eq!(ask(&world, &["@127.0.0.53"], "after.test"), answered(ONE));
}

#[test]
fn ports_that_are_taken_are_told_of() {
    let world = World::new();
    let _taken = world.inside(|| std::net::UdpSocket::bind("127.0.0.1:15053").expect("binding"));
    let mut agent = Agent::spawn(&world, &config(""));
    assert!(!agent.child().wait(Duration::from_secs(20)).success());
    let said = agent.child().stderr();
    assert!(said.contains("UDP ports 15053 to 15060") && said.contains("choose another dns.address"), "{said}");
}
