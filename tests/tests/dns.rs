//! Questions to DNS resolvers are answered by the agent, and no client notices.

use std::net::Ipv4Addr;

use waylay_tests::world::Side;
use waylay_tests::{Agent, Resolver, World, eventually};

const ONE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(10, 2, 2, 2);

/// The configuration of a test, with this `dns` record.
fn config(dns: &str) -> String {
    waylay_tests::config::BYTES.replace("intercept:", &format!("{dns}\nintercept:"))
}

/// What the Python programs ask with: a question for A records, and the last address of an answer.
const ASK: &str = "
import socket, struct
def question(number, name):
    labels = b''.join(bytes([len(part)]) + part.encode() for part in name.split('.'))
    return struct.pack('!HHHHHH', number, 0x100, 1, 0, 0, 0) + labels + b'\\0\\0\\x01\\0\\x01'
def udp(family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    return s
def last(answer):
    return socket.inet_ntoa(answer[-4:])
";

fn python(world: &World, program: &str) -> String {
    world.python(&format!("{ASK}{program}"))
}

fn kernel(agent: &Agent, counter: &str) -> f64 {
    agent.metric(&format!("waylay_kernel_{counter}"))
}

fn dns(agent: &Agent, counter: &str) -> f64 {
    agent.metric(&format!("waylay_dns_{counter}"))
}

/// `dig +short NAME @RESOLVER`, once.
fn dig(world: &World, resolver: &str, name: &str, more: &[&str]) -> String {
    let at = format!("@{resolver}");
    world.app("dig", &[&["+short", "+tries=1", "+time=8", at.as_str(), name], more].concat()).success()
}

/// Runs a program that finds these name servers in `/etc/resolv.conf`.
fn with_resolv_conf(world: &World, servers: &[&str], program: &[&str]) -> String {
    let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let file = world.file("resolv.conf", &lines);
    // A mount of its own, which goes with the program.
    let script = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let args = [&["--mount", "sh", "-c", script, "sh", file.to_str().expect("UTF-8")], program].concat();
    world.app("unshare", &args).success()
}

#[test]
fn two_resolvers_that_are_asked_over_one_socket_stay_apart() {
    let world = World::new();
    let (one, two) = (Resolver::start(&world, "127.0.0.53", ONE), Resolver::start(&world, "127.9.9.9", TWO));
    let agent = world.agent(&config("dns: {}"));
    let program = "
s = udp()
s.sendto(question(1, 'www.test'), ('127.0.0.53', 53))
s.sendto(question(2, 'www.test'), ('127.9.9.9', 53))
for answer, sender in sorted(s.recvfrom(4096) for _ in range(2)):
    print(answer[1], sender, last(answer))
";
    let expected = "1 ('127.0.0.53', 53) 10.1.1.1\n2 ('127.9.9.9', 53) 10.2.2.2\n";
    assert_eq!(python(&world, program), expected);
    assert_eq!(python(&world, program), expected, "from the cache");
    assert_eq!((one.asked("www.test").len(), two.asked("www.test").len()), (1, 1));
    assert_eq!((dns(&agent, "queries_total"), dns(&agent, "cache_hits")), (4.0, 2.0));
    assert_eq!(kernel(&agent, "dns_redirected_v4"), 4.0);
    let maps = agent_maps(&world);
    assert!(maps.contains("127.0.0.53") && maps.contains("127.9.9.9") && maps.contains("127.53."), "{maps}");
    agent.stop();
}

fn agent_maps(world: &World) -> String {
    world.run(Side::Outside, waylay_tests::agent::binary().to_str().expect("UTF-8"), &["maps", "resolvers"]).success()
}

#[test]
fn every_kind_of_socket_sees_the_resolver_that_it_asked() {
    let world = World::new();
    let _one = Resolver::start(&world, "127.0.0.53", ONE);
    let _six = Resolver::start(&world, "::1", TWO);
    let agent = world.agent(&config("dns: {}"));
    let printed = python(
        &world,
        "
s = udp()
s.connect(('127.0.0.53', 53))
s.send(question(1, 'a.test'))
print(last(s.recv(4096)), s.getpeername())
six = socket.AF_INET6
for name, resolver in (('b.test', '::ffff:127.0.0.53'), ('c.test', '::1')):
    s = udp(six)
    s.sendto(question(2, name), (resolver, 53))
    answer, sender = s.recvfrom(4096)
    print(last(answer), sender[:2])
    s = udp(six)
    s.connect((resolver, 53))
    s.send(question(3, name))
    answer, sender = s.recvfrom(4096)
    print(last(answer), sender[:2], s.getpeername()[:2])
s = udp()
s.bind(('127.0.0.1', 0))
s.sendto(question(4, 'd.test'), ('0.0.0.0', 5353))
print(s.getsockname()[0])
",
    );
    let expected = "10.1.1.1 ('127.0.0.53', 53)
10.1.1.1 ('::ffff:127.0.0.53', 53)
10.1.1.1 ('::ffff:127.0.0.53', 53) ('::ffff:127.0.0.53', 53)
10.2.2.2 ('::1', 53)
10.2.2.2 ('::1', 53) ('::1', 53)
127.0.0.1
";
    assert_eq!(printed, expected);
    assert_eq!((kernel(&agent, "dns_redirected_v4"), kernel(&agent, "dns_redirected_v6")), (3.0, 2.0));
    agent.stop();
}

#[test]
fn resolver_libraries_and_tools_are_answered() {
    let world = World::new();
    let one = Resolver::start(&world, "127.0.0.53", ONE);
    let two = Resolver::start(&world, "127.9.9.9", ONE);
    let agent = world.agent(&config("dns: {}"));
    assert_eq!(dig(&world, "127.0.0.53", "dig.test", &[]), "10.1.1.1\n");
    assert_eq!(dig(&world, "127.0.0.53", "DIG.test", &["+noedns"]), "10.1.1.1\n");
    let printed = with_resolv_conf(&world, &["127.0.0.53"], &["getent", "hosts", "glibc.test"]);
    assert!(printed.starts_with("10.1.1.1 "), "{printed}");
    let printed = world.app("busybox", &["nslookup", "busybox.test", "127.0.0.53"]).success();
    assert!(printed.contains("Address: 10.1.1.1"), "{printed}");
    // musl asks all name servers at once over one socket, and takes the first answer.
    let source = world.file(
        "musl.c",
        "#include <netdb.h>\n#include <stdio.h>\n#include <arpa/inet.h>\nint main(void) { struct addrinfo *a, h = {.ai_family = AF_INET}; char t[64];
         if (getaddrinfo(\"musl.test\", 0, &h, &a)) return 1;
         puts(inet_ntop(AF_INET, &((struct sockaddr_in *)a->ai_addr)->sin_addr, t, sizeof t)); return 0; }\n",
    );
    let program = world.folder().join("musl");
    let (source, program) = (source.to_str().expect("UTF-8"), program.to_str().expect("UTF-8"));
    world.run(Side::Outside, "musl-gcc", &["-static", "-o", program, source]).success();
    assert_eq!(with_resolv_conf(&world, &["127.0.0.53", "127.9.9.9"], &[program]), "10.1.1.1\n");
    for (resolver, names) in
        [(&one, &["dig.test", "glibc.test", "busybox.test", "musl.test"][..]), (&two, &["musl.test"])]
    {
        for name in names {
            // The first answer is enough for a client: another resolver may be asked a moment later.
            eventually(&format!("somebody asks for {name}"), || !resolver.asked(name).is_empty());
        }
    }
    assert_eq!(one.asked("dig.test").len(), 1, "asked twice in two ways, and kept");
    assert_eq!(dns(&agent, "queries_malformed") + dns(&agent, "queries_unanswered"), 0.0);
    agent.stop();
}

#[test]
fn a_real_resolver_is_asked_once_and_its_answer_grows_old() {
    let world = World::new();
    let args = "--keep-in-foreground --no-resolv --no-hosts --bind-interfaces --listen-address=127.0.0.54 --pid-file= \
                --local-ttl=40 --user=root --conf-file=/dev/null --address=/shop.test/10.7.7.7 --txt-record=t.test,hello";
    let mut dnsmasq = world.spawn(Side::Outside, "dnsmasq", &args.split_whitespace().collect::<Vec<_>>());
    eventually("dnsmasq answers", || {
        let asked = world.run(Side::Outside, "dig", &["+short", "+tries=1", "+time=1", "@127.0.0.54", "shop.test"]);
        asked.stdout == "10.7.7.7\n"
    });
    assert!(dnsmasq.is_running());
    let agent = world.agent(&config("dns: {}"));
    let ttl = || {
        let answer = world.app("dig", &["+noall", "+answer", "@127.0.0.54", "shop.test"]).success();
        let words: Vec<_> = answer.split_whitespace().collect();
        assert_eq!((words[0], words[4]), ("shop.test.", "10.7.7.7"), "{answer}");
        words[1].parse::<u32>().expect("a time to live")
    };
    assert_eq!(ttl(), 40);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    assert!((37..=38).contains(&ttl()));
    assert_eq!(dig(&world, "127.0.0.54", "t.test", &["txt"]), "\"hello\"\n");
    assert_eq!((dns(&agent, "upstream_queries_total"), dns(&agent, "cache_hits")), (2.0, 1.0));
    agent.stop();
}

#[test]
fn an_answer_that_is_too_long_for_udp_comes_over_tcp() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config("dns: {}"));
    let over = || resolver.asked("big.test").iter().map(|question| question.over).collect::<Vec<_>>();
    let long = dig(&world, "127.0.0.53", "big.test", &["+bufsize=4096", "+ignore"]);
    assert_eq!(long.lines().count(), 40, "the agent has fetched it, and the client takes as much");
    assert_eq!(over(), ["udp", "tcp"]);
    // A client that takes no more than 512 bytes is told to ask over TCP: that is a connection like any other.
    let long = dig(&world, "127.0.0.53", "big.test", &["+noedns"]);
    assert_eq!(long.lines().count(), 40);
    assert_eq!(over(), ["udp", "tcp", "tcp"]);
    assert_eq!(agent.wait_records("connection", 1)[0]["original_dst"], "127.0.0.53:53");
    agent.stop();
}

#[test]
fn a_question_that_many_ask_at_once_is_asked_once() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config("dns: {}"));
    let printed = python(
        &world,
        "
sockets = [udp() for _ in range(20)]
for number, s in enumerate(sockets):
    s.sendto(question(number, 'slow.test'), ('127.0.0.53', 53))
print({last(s.recv(4096)) for s in sockets})
",
    );
    assert_eq!(printed, "{'10.1.1.1'}\n");
    assert_eq!(resolver.asked("slow.test").len(), 1);
    assert_eq!(dns(&agent, "cache_misses"), 20.0);
    agent.stop();
}

#[test]
fn questions_go_to_their_resolver_at_once_when_the_agent_is_killed() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config("dns: {}"));
    assert_eq!(dig(&world, "127.0.0.53", "before.test", &[]), "10.1.1.1\n");
    agent.kill();
    let mut asked = 0;
    // The kernel frees the links of a killed process a moment after its end.
    eventually("questions go to their resolver", || {
        asked += 1;
        let name = format!("after{asked}.test");
        let printed = world.app("dig", &["+short", "+tries=1", "+time=1", "@127.0.0.53", &name]);
        printed.stdout == "10.1.1.1\n" && resolver.asked(&name).len() == 1
    });
    assert!(asked <= 2, "{asked} tries of a second each");
}

#[test]
fn without_the_record_udp_is_untouched_and_counted_as_ever() {
    let world = World::new();
    let resolver = Resolver::start(&world, "127.0.0.53", ONE);
    let agent = world.agent(&config(""));
    let printed = python(
        &world,
        "
s = udp()
s.connect(('127.0.0.53', 53))
for name in ('a.test', 'a.test'):
    s.send(question(1, name))
    print(last(s.recv(4096)))
print(s.getsockname()[1])
",
    );
    let port = printed.lines().last().and_then(|line| line.parse::<u16>().ok()).expect("a port");
    let asked = resolver.asked("a.test");
    assert_eq!(asked.iter().map(|question| question.from.port()).collect::<Vec<_>>(), [port, port]);
    assert_eq!(kernel(&agent, "passed_not_tcp"), 1.0);
    assert_eq!(kernel(&agent, "dns_redirected_v4") + kernel(&agent, "dns_restored"), 0.0);
    let (_, stats) = agent.get("/stats").expect("statistics");
    assert!(!stats.contains("dns.queries_total"), "{stats}");
    agent.stop();
}
