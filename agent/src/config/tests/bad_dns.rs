//! What `dns` refuses, and what it takes.

use std::time::Duration;

use super::{check, check_errors, warnings};

const LISTENER: &str = "listeners: [{name: v, address: 127.0.0.1:15001, use_original_dst: true, default_filter_chain: {tcp_proxy: {cluster: c}}}]\nclusters: [{name: c, type: original_dst}]\n";

fn with(dns: &str) -> String {
    format!("dns: {{{dns}}}\n{LISTENER}")
}

#[test]
fn what_is_not_given_gets_its_default() {
    let dns = check(&with("")).expect("valid").snapshot.dns.expect("switched on");
    assert_eq!(dns.address.to_string(), "127.0.0.1:15053");
    assert_eq!((dns.upstreams.len(), dns.timeout, dns.attempts), (0, Duration::from_secs(2), 2));
    assert_eq!((dns.cache.entries, dns.cache.bytes, dns.max_pending), (10_000, 16 * 1024 * 1024, 1000));
    assert!(check(LISTENER).expect("valid").snapshot.dns.is_none(), "off without the record");
}

#[test]
fn addresses_that_cannot_be_used_are_refused() {
    let cases = [
        (
            "address: '10.0.0.1:53'",
            "1:16: dns.address: questions come over the loopback interface: give an address of 127.0.0.0/8, such as 127.0.0.1:53",
        ),
        (
            "address: '127.0.0.1:65530'",
            "1:16: dns.address: the port must be 1 to 65528: the 7 behind it are taken as well",
        ),
        (
            "address: '127.53.0.1:53'",
            "1:16: dns.address: the addresses of 127.53.0.0/16 stand for resolvers: choose another, such as 127.0.0.1",
        ),
        (
            "upstreams: ['0.0.0.0:53']",
            "1:19: dns.upstreams[0]: nobody can be asked at 0.0.0.0:53: give the address and port of a resolver, such as 10.96.0.10:53",
        ),
        (
            "upstreams: ['[::ffff:10.0.0.1]:53']",
            "1:19: dns.upstreams[0]: [::ffff:10.0.0.1]:53 is an IPv4 address: write it as one",
        ),
        (
            "upstreams: ['127.0.0.1:15053']",
            "1:19: dns.upstreams[0]: 127.0.0.1:15053 is the agent itself: it would ask itself for ever",
        ),
        ("attempts: 0", "1:17: dns.attempts: must be 1 to 10, found 0"),
        ("timeout: 0s", "1:16: dns.timeout: must be longer than 0s"),
    ];
    for (dns, expected) in cases {
        check_errors(&[(&with(dns), &[expected])]);
    }
}

#[test]
fn a_resolver_on_this_host_may_ask_in_circles() {
    assert_eq!(warnings(&with("upstreams: ['10.0.0.1:53']")), [""; 0]);
    assert!(warnings(&with("upstreams: ['127.0.0.53:53']"))[0].contains("dns.upstreams[0]: a resolver on this host"));
}

#[test]
fn without_interception_there_are_no_questions() {
    check_errors(&[(
        "dns: {}\n",
        &[
            "1:6: dns: nothing is intercepted, so that no question comes here: give one listener `use_original_dst: true`",
        ],
    )]);
}
