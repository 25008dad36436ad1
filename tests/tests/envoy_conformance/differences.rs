//! Where the agent differs from Envoy 1.40 on purpose.

use crate::cases::Case;

/// A difference that is meant.
#[derive(Debug)]
pub struct Difference {
    pub why: &'static str,
    pub what: What,
    /// Names of cases.
    pub cases: &'static [&'static str],
}

/// In what an answer differs.
#[derive(Debug)]
pub enum What {
    /// Envoy's status and the agent's; `closed` for none.
    Status(&'static str, &'static str),
    /// These parts of the answer, sorted.
    Parts(&'static [&'static str]),
}

/// What is known of the case called so.
pub fn of(name: &str) -> Option<&'static Difference> {
    ALL.iter().find(|known| known.cases.contains(&name))
}

/// Entries for cases that there are not.
pub fn unknown(cases: &[Case]) -> impl Iterator<Item = String> {
    let names = ALL.iter().flat_map(|known| known.cases);
    names.filter(|name| cases.iter().all(|case| case.name != **name)).map(|name| format!("no case is called {name}"))
}

use What::{Parts, Status};

const ALL: &[Difference] = &[
    Difference {
        why: "A Host that is no authority, or is empty",
        what: Status("200", "400"),
        cases: &[r#"GET %41.foo.test /"#, r#"GET user@www.foo.test /"#],
    },
    Difference {
        why: "A Host that is no authority, or is empty",
        what: Status("404", "400"),
        cases: &[r#"GET  /"#, r#"GET [::1 /"#, r#"GET a@b /"#],
    },
    Difference {
        why: "A body that nobody reads is not asked for",
        what: Parts(&["interim 100"]),
        cases: &[
            r#"POST cluster.test /empty Expect: 100-continue Content-Length: 2"#,
            r#"POST direct.test /200 Expect: 100-continue Content-Length: 2"#,
            r#"head "Expect: 100-continue\r\n""#,
        ],
    },
    Difference {
        why: "A client may not have another header removed that matters by naming it in Connection, nor name what is no header",
        what: Status("200", "400"),
        cases: &[
            r#"GET cluster.test /x Connection: a b"#,
            r#"GET cluster.test /x Connection: authorization authorization: x"#,
            r#"GET cluster.test /x Connection: content-length"#,
        ],
    },
    Difference {
        why: "A direct response has the Location that the table gives it",
        what: Parts(&["header location", "header transfer-encoding"]),
        cases: &[r#"HEAD direct.test /301"#],
    },
    Difference {
        why: "A direct response has the Location that the table gives it",
        what: Parts(&["header location"]),
        cases: &[
            r#"GET direct.test /201"#,
            r#"GET direct.test /201 content-type: application/grpc"#,
            r#"GET direct.test /301"#,
            r#"GET direct.test /301 content-type: application/grpc"#,
            r#"HEAD direct.test /201"#,
            r#"POST direct.test /201 content-length: 2"#,
            r#"POST direct.test /301 content-length: 2"#,
        ],
    },
    Difference {
        why: "A method is any token, and `get` is another one than `GET`; the inspector takes it for no HTTP",
        what: Status("400", "200"),
        cases: &[r#"get path.test /exact content-length: 0"#],
    },
    Difference {
        why: "A method is any token, and `get` is another one than `GET`; the inspector takes it for no HTTP",
        what: Status("400", "404"),
        cases: &[r#"get path.test /method"#],
    },
    Difference {
        why: "A method is any token, and `get` is another one than `GET`; the inspector takes it for no HTTP",
        what: Status("400", "closed"),
        cases: &[r#"8003 "get /exact HTTP/1.1\r\nHost: path.test\r\n\r\n""#],
    },
    Difference {
        why: "A path without / is not found, whatever else it is",
        what: Status("400", "404"),
        cases: &[
            r#"8000 "GET * HTTP/1.1\r\nHost: www.foo.test\r\n\r\n""#,
            r#"8000 "GET foo HTTP/1.1\r\nHost: www.foo.test\r\n\r\n""#,
        ],
    },
    Difference {
        why: "A request has one Host (RFC 9112 section 3.2)",
        what: Status("200", "400"),
        cases: &[r#"8000 "GET / HTTP/1.1\r\nHost: www.foo.test\r\nHost: www.foo.test\r\n\r\n""#],
    },
    Difference {
        why: "A request has one Host (RFC 9112 section 3.2)",
        what: Status("404", "400"),
        cases: &[r#"8000 "GET / HTTP/1.1\r\nHost: www.foo.test\r\nHost: port.test:8080\r\n\r\n""#],
    },
    Difference {
        why: "A response to HEAD does not announce chunks that GET would not have",
        what: Parts(&["header transfer-encoding"]),
        cases: &[
            r#"HEAD direct.test /empty"#,
            r#"HEAD direct.test /none"#,
            r#"HEAD path.test /method"#,
            r#"HEAD redirect.test /307"#,
            r#"HEAD unknown.test /x"#,
        ],
    },
    Difference {
        why: "All of 127.0.0.0/8 is this host",
        what: Parts(&["raw"]),
        cases: &[r#"chains from 127.0.0.3"#, r#"chains from 127.9.0.1"#, r#"chains from 127.9.0.1:7002"#],
    },
    Difference {
        why: "An HTTP/1.0 client gets an HTTP/1.0 answer, and knows that the connection ends with it",
        what: Parts(&["closes", "header connection"]),
        cases: &[
            r#"8001 "GET / HTTP/1.0\r\nHost: x\r\n\r\n""#,
            r#"8001 "GET / HTTP/1.0\r\nHost: x\r\nx-behave: keep-chunked\r\n\r\n""#,
            r#"8001 "GET /say HTTP/1.0\r\nHost: x\r\n\r\n""#,
            r#"8001 "POST / HTTP/1.0\r\nHost: x\r\nContent-Length: 2\r\n\r\nab""#,
        ],
    },
    Difference {
        why: "An HTTP/1.0 client gets an HTTP/1.0 answer, and knows that the connection ends with it",
        what: Parts(&["version"]),
        cases: &[r#"8000 "GET / HTTP/1.0\r\nHost: www.foo.test\r\n\r\n""#, r#"8000 "GET / HTTP/1.0\r\n\r\n""#],
    },
    Difference {
        why: "An answer to an upgrade other than 101 is an ordinary response: it is passed on, and the connection stays",
        what: Parts(&[
            "closes",
            "header connection",
            "header x-envoy-upstream-service-time",
            "origin body",
            "origin header connection",
            "origin header host",
            "origin header sec-websocket-key",
            "origin header upgrade",
            "origin header x-envoy-expected-rq-timeout-ms",
            "origin header x-forwarded-proto",
            "origin header x-request-id",
            "origin line",
        ]),
        cases: &[r#"GET cluster.test /x Connection: keep-alive, Upgrade Upgrade: websocket Sec-WebSocket-Key: x"#],
    },
    Difference {
        why: "An answer to an upgrade other than 101 is an ordinary response: it is passed on, and the connection stays",
        what: Parts(&[
            "closes",
            "header connection",
            "header x-envoy-upstream-service-time",
            "origin body",
            "origin header connection",
            "origin header host",
            "origin header upgrade",
            "origin header x-envoy-expected-rq-timeout-ms",
            "origin header x-forwarded-proto",
            "origin header x-request-id",
            "origin line",
        ]),
        cases: &[
            r#"GET cluster.test /x Connection: Upgrade Upgrade: WebSocket"#,
            r#"GET cluster.test /x Connection: upgrade Upgrade: websocket"#,
        ],
    },
    Difference {
        why: "An answer to an upgrade other than 101 is an ordinary response: it is passed on, and the connection stays",
        what: Parts(&["closes", "header connection"]),
        cases: &[r#"GET direct.test /200 Connection: upgrade Upgrade: websocket"#],
    },
    Difference {
        why: "An offer of TLS may be ignored (RFC 9110 section 7.8): clients make it on ordinary requests",
        what: Status("403", "200"),
        cases: &[r#"GET cluster.test /x Connection: upgrade Upgrade: TLS/1.2"#],
    },
    Difference {
        why: "Escapes are written in capitals (RFC 3986 section 6.2.2.1)",
        what: Parts(&["origin line"]),
        cases: &[r#"8001 GET any.test /a%2fb"#, r#"8001 GET any.test /a%5cb"#, r#"8001 GET any.test /a/..%2fb"#],
    },
    Difference {
        why: "HTTP/1.0 knows no chunks: faulty framing (RFC 9112 section 6.1)",
        what: Status("200", "400"),
        cases: &[r#"8001 "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n""#],
    },
    Difference {
        why: "In a URI template `b*` is a b and then a wildcard; Envoy takes it for the regular expression",
        what: Status("200", "404"),
        cases: &[r#"GET path.test /u/b/"#],
    },
    Difference {
        why: "In a URI template `b*` is a b and then a wildcard; Envoy takes it for the regular expression",
        what: Status("404", "200"),
        cases: &[r#"GET path.test /u/bc/d/e"#],
    },
    Difference {
        why: "No HTTP/1 at all",
        what: Status("426", "400"),
        cases: &[
            r#"8000 "GET / HTTP/0.9\r\nHost: path.test\r\n\r\n""#,
            r#"8000 "GET / HTTP/1.2\r\nHost: path.test\r\n\r\n""#,
            r#"8000 "GET / HTTP/2.0\r\nHost: path.test\r\n\r\n""#,
            r#"8000 "GET /\r\n""#,
        ],
    },
    Difference {
        why: "No character of a URL (RFC 3986)",
        what: Status("200", "400"),
        cases: &[r#"GET path.test /pre<x>"#, r#"GET path.test /pre`x"#],
    },
    Difference {
        why: "Nobody asked for another protocol",
        what: Status("101", "502"),
        cases: &[r#"GET cluster.test /x x-behave: unasked-101"#],
    },
    Difference {
        why: "RFC 9110: Proxy-Connection is ignored, a Referer given twice says nothing, headers that Connection names end here",
        what: Parts(&["closes", "header connection"]),
        cases: &[r#"GET cluster.test /x Proxy-Connection: close"#],
    },
    Difference {
        why: "RFC 9110: Proxy-Connection is ignored, a Referer given twice says nothing, headers that Connection names end here",
        what: Parts(&["header x-hop"]),
        cases: &[
            r#"8001 GET any.test / x-behave: keep-hop"#,
            r#"8001 GET scoped.test /on x-remove: 1 x-remove-route: 1 x-remove-vhost: 1 x-remove-table: 1 x-route: client x-behave: keep-hop"#,
            r#"GET cluster.test /x x-behave: keep-hop"#,
            r#"GET scoped.test /bare x-remove: 1 x-remove-route: 1 x-remove-vhost: 1 x-remove-table: 1 x-route: client x-behave: keep-hop"#,
            r#"GET scoped.test /on x-remove: 1 x-remove-route: 1 x-remove-vhost: 1 x-remove-table: 1 x-route: client x-behave: keep-hop"#,
        ],
    },
    Difference {
        why: "RFC 9110: Proxy-Connection is ignored, a Referer given twice says nothing, headers that Connection names end here",
        what: Parts(&["origin header referer"]),
        cases: &[r#"GET cluster.test /x Referer: http://a/ Referer: http://b/"#],
    },
    Difference {
        why: "Read strictly (RFC 9112): no folded lines, no white space or carriage return where none belongs, no chunk that is longer than it says",
        what: Status("200", "400"),
        cases: &[
            r#"8000 "GET  /exact HTTP/1.1\r\nHost: path.test\r\n\r\n""#,
            r#"8000 "GET /exact  HTTP/1.1\r\nHost: path.test\r\n\r\n""#,
            r#"8000 "GET /exact HTTP/1.1 \r\nHost: path.test\r\n\r\n""#,
            r#"8000 "GET\t/exact HTTP/1.1\r\nHost: path.test\r\n\r\n""#,
            r#"framing "Transfer-Encoding: chunked\r\n" "3 \r\nabc\r\n0\r\n\r\n""#,
            r#"framing "Transfer-Encoding: chunked\r\n" "3\r\nabcd\r\n0\r\n\r\n""#,
            r#"head "X: a\r\n b\r\n""#,
            r#"head "X: a\r\n\tb\r\n""#,
            r#"head "X: a\rb\r\n""#,
        ],
    },
    Difference {
        why: "Read strictly (RFC 9112): no folded lines, no white space or carriage return where none belongs, no chunk that is longer than it says",
        what: Status("closed", "400"),
        cases: &[r#"8000 "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n""#],
    },
    Difference {
        why: "The HTTP library says nothing of the length of a body that is not sent",
        what: Parts(&["header content-length"]),
        cases: &[r#"GET cluster.test /x x-behave: keep-304"#],
    },
    Difference {
        why: "The connection is no TLS, whatever the target says",
        what: Status("200", "403"),
        cases: &[r#"8000 "GET https://www.foo.test/ HTTP/1.1\r\nHost: x\r\n\r\n""#],
    },
    Difference {
        why: "The original path is kept only where the new one is another",
        what: Parts(&["origin header x-envoy-original-path"]),
        cases: &[r#"GET rewrite.test /same"#, r#"GET rewrite.test /same x-envoy-original-path: /forged"#],
    },
    Difference {
        why: "The values of a repeated header are joined with a comma before they are matched",
        what: Status("200", "404"),
        cases: &[r#"GET header.test /range x-h: 7 x-h: 7"#, r#"GET header.test /regex x-h: a1 x-h: b2"#],
    },
    Difference {
        why: "The values of a repeated header are joined with a comma before they are matched",
        what: Status("404", "200"),
        cases: &[
            r#"GET header.test /cookie cookie: a=1 cookie: b=2"#,
            r#"GET header.test /range-inverted x-h: 7 x-h: 7"#,
            r#"GET header.test /regex-inverted x-h: a1 x-h: b2"#,
        ],
    },
    Difference {
        why: "Two fields and one joined with a comma are the same",
        what: Parts(&["origin header x-forwarded-host"]),
        cases: &[r#"GET rewrite.test /literal x-forwarded-host: before.test"#],
    },
    Difference {
        why: "What is not enabled is refused with 403 before there is a route, as CONNECT is",
        what: Parts(&["closes", "header connection", "header x-envoy-upstream-service-time"]),
        cases: &[r#"8001 GET cluster.test /x Connection: upgrade Upgrade: other"#],
    },
    Difference {
        why: "What is not enabled is refused with 403 before there is a route, as CONNECT is",
        what: Parts(&["closes", "header connection"]),
        cases: &[r#"GET unknown.test /x Connection: upgrade Upgrade: websocket"#],
    },
    Difference {
        why: "What is not enabled is refused with 403 before there is a route, as CONNECT is",
        what: Parts(&["header x-absent", "header x-append", "header x-overwrite", "header x-table"]),
        cases: &[r#"8001 GET cluster.test /x Connection: upgrade Upgrade: websocket"#],
    },
    Difference {
        why: "What is not enabled is refused with 403 before there is a route, as CONNECT is",
        what: Parts(&["header x-table"]),
        cases: &[
            r#"GET cluster.test /x Connection: upgrade Upgrade: other"#,
            r#"GET cluster.test /x Connection: upgrade Upgrade: websocket, other"#,
        ],
    },
    Difference {
        why: "What is not enabled is refused with 403 before there is a route, as CONNECT is",
        what: Status("400", "403"),
        cases: &[
            r#"8000 "CONNECT /x HTTP/1.1\r\nHost: www.foo.test\r\n\r\n""#,
            r#"8000 "CONNECT www.foo.test HTTP/1.1\r\nHost: www.foo.test\r\n\r\n""#,
        ],
    },
    Difference {
        why: "What is not enabled is refused with 403 before there is a route, as CONNECT is",
        what: Status("404", "403"),
        cases: &[
            r#"8000 "CONNECT www.foo.test:443 HTTP/1.1\r\nHost: www.foo.test:443\r\n\r\n""#,
            r#"GET unknown.test /x Connection: upgrade Upgrade: other"#,
        ],
    },
    Difference {
        why: "A 400 says so in its body, whatever the reason",
        what: Parts(&["body", "header content-length", "header content-type"]),
        cases: &["GET cluster.test /x Connection: host"],
    },
];
