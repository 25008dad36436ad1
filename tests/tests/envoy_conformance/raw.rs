//! What is asked below the level of routes: the connection manager's options, framing, odd heads, hop-by-hop headers, upgrades, first bytes.

use crate::cases::{Case, get, send};
use crate::tables::{CHAINS, MAIN, OPTIONS, SNIFFED};

/// All of them.
pub fn all() -> Vec<Case> {
    [options(), framing(), heads(), hygiene(), responses(), upgrades(), chains()].into_iter().flatten().collect()
}

/// The connection manager with everything on.
fn options() -> Vec<Case> {
    let on = |path: &str, headers: &[&str]| get(OPTIONS, "any.test", path, headers);
    let mut all: Vec<Case> = [
        "/a/./b",
        "/a/../a/b",
        "/a/b/..",
        "/../a/b",
        "/..",
        "/.",
        "/a/../..",
        "/%61/%62",
        "/a%2fb",
        "/a%2Fb",
        "/a\\b",
        "/a//b",
        "//a///b",
        "/a/%2e%2e/a/b",
        "/%zz",
        "/%00",
        "/a%00b",
        "/a/b?x=../y",
        "/%7Euser",
        "/a/b/.",
        "/a%5cb",
        "/a/..%2fb",
        "/a/...",
        "/a/b;x/../b",
        "/%C3%A9",
        "/a/b?//",
        "/%2",
        "/x%",
        "/a/b#frag",
    ]
    .into_iter()
    .map(|path| on(path, &[]))
    .collect();
    all.extend(identity());
    all
}

/// Headers that say who asked, and HTTP/1.0, with everything on.
fn identity() -> Vec<Case> {
    let on = |path: &str, headers: &[&str]| get(OPTIONS, "any.test", path, headers);
    let mut all = vec![
        on("/", &["x-forwarded-for: 1.2.3.4"]),
        on("/", &["x-forwarded-for: 10.0.0.1"]),
        on("/", &["x-forwarded-for: 1.2.3.4, 5.6.7.8", "x-forwarded-for: 9.9.9.9"]),
        on("/", &["x-forwarded-proto: https"]),
        on("/", &["x-envoy-internal: true", "x-envoy-external-address: 1.2.3.4", "x-forwarded-for: 1.2.3.4"]),
        on(
            "/",
            &[
                "x-envoy-retry-on: 5xx",
                "x-envoy-max-retries: 3",
                "x-envoy-upstream-rq-timeout-ms: 5",
                "x-envoy-decorator-operation: x",
                "x-forwarded-for: 1.2.3.4",
            ],
        ),
        on("/", &["x-envoy-decorator-operation: x"]),
        on("/", &["x-request-id: mine"]),
        on("/", &["x-request-id: mine", "x-forwarded-for: 1.2.3.4"]),
        on("/", &["x-forwarded-client-cert: By=x", "x-forwarded-host: h", "x-forwarded-port: 1"]),
        on("/", &["x-behave: keep-hop"]),
        on("/", &["x-behave: keep-cookies"]),
        on("/", &["x-behave: silent"]),
        get(OPTIONS, "other.test:99", "/say", &[]),
        get(OPTIONS, "redirect.test:81", "/https", &[]),
        get(OPTIONS, "redirect.test:80", "/https", &[]),
    ];
    let raw = |text: String| Case::new(OPTIONS, text.into_bytes());
    all.extend([
        raw("GET /say HTTP/1.0\r\nHost: x\r\n\r\n".into()),
        raw("GET / HTTP/1.0\r\nHost: x\r\n\r\n".into()),
        raw("GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n".into()),
        raw("GET / HTTP/1.0\r\nHost: x\r\nx-behave: keep-chunked\r\n\r\n".into()),
        raw("GET / HTTP/1.0\r\n\r\n".into()),
        raw("POST / HTTP/1.0\r\nHost: x\r\nContent-Length: 2\r\n\r\nab".into()),
        raw("POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        raw(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(19))),
        raw(format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(20))),
        raw(format!("GET / HTTP/1.1\r\nHost: x\r\na: {}\r\n\r\n", "b".repeat(7 * 1024))),
        raw(format!("GET / HTTP/1.1\r\nHost: x\r\na: {}\r\n\r\n", "b".repeat(9 * 1024))),
        raw(format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "b".repeat(9 * 1024))),
    ]);
    all
}

/// Where one message ends and the next begins: what request smuggling is made of.
fn framing() -> Vec<Case> {
    let post = |headers: &str, body: &str| {
        let text = format!("POST /x HTTP/1.1\r\nHost: cluster.test\r\n{headers}\r\n{body}");
        let mut case = Case::new(MAIN, text.into_bytes());
        case.name = format!("framing {headers:?} {body:?}");
        case
    };
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        post("Content-Length: 3\r\n", "abc"),
        post(chunked, "3\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "3;ext=1\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "3\r\nabc\r\n0\r\nx-trailer: 1\r\n\r\n"),
        post("Transfer-Encoding: Chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked \r\n", "0\r\n\r\n"),
        post("Transfer-Encoding:\tchunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"),
        post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
        post("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"),
        post("Content-Length: 3, 3\r\n", "abc"),
        post("Content-Length: +3\r\n", "abc"),
        post("Content-Length: -3\r\n", "abc"),
        post("Content-Length: 0x3\r\n", "abc"),
        post("Content-Length: 3a\r\n", "abc"),
        post("Content-Length:\r\n", ""),
        post("Content-Length: 99999999999999999999\r\n", "abc"),
        post("Content-Length: 03\r\n", "abc"),
        post("Content-Length : 3\r\n", "abc"),
        post(" Content-Length: 3\r\n", "abc"),
        post("Transfer-Encoding: gzip\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: identity\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding:\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        post("Transfer_Encoding: chunked\r\n", ""),
        post(chunked, "g\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "-1\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "0x3\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "3 \r\nabc\r\n0\r\n\r\n"),
        post(chunked, " 3\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "3\r\nabcd\r\n0\r\n\r\n"),
        post(chunked, "3\nabc\n0\n\n"),
        post(chunked, "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "\r\nabc\r\n0\r\n\r\n"),
        post(chunked, "3;a\rb\r\nabc\r\n0\r\n\r\n"),
    ]
}

fn heads() -> Vec<Case> {
    let mut all: Vec<Case> = [
        "NONSENSE\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: path.test\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: path.test\r\n\r\n",
        "GET / HTTP/0.9\r\nHost: path.test\r\n\r\n",
        "GET / http/1.1\r\nHost: path.test\r\n\r\n",
        "GET /exact  HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET  /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /exact HTTP/1.1 \r\nHost: path.test\r\n\r\n",
        " GET /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET\t/exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "G@T /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "\r\nGET /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "\r\n\r\n\r\nGET /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "\nGET /exact HTTP/1.1\nHost: path.test\n\n",
        "GET /ex\u{e9}act HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /exact#frag HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /ex\tact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /ex\0act HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /ex\x7fact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /exact HTTP/1.1\r\nHost: path.test\r\nConnection: close\r\n\r\n",
        "GET /exact HTTP/1.1\r\nHost: path.test\r\nConnection: close, keep-alive\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ]
    .into_iter()
    .map(|text: &str| Case::new(MAIN, text.as_bytes()))
    .collect();
    all.extend(header_lines());
    all
}

/// Single header lines, their number and their size; methods.
fn header_lines() -> Vec<Case> {
    let raw = |text: &str| Case::new(MAIN, text.as_bytes());
    let with = |headers: &str| {
        let mut case = raw(&format!("GET /x HTTP/1.1\r\nHost: cluster.test\r\n{headers}\r\n"));
        case.name = format!("head {:?}", &headers[..headers.len().min(40)]);
        case
    };
    let mut all = Vec::new();
    all.extend(
        [
            "X: a\r\n b\r\n",
            "X: a\r\n\tb\r\n",
            "X: a\rb\r\n",
            "X: a\0b\r\n",
            "X: a\x01b\r\n",
            "X: a\x7fb\r\n",
            "X: \u{e9}\r\n",
            "X Y: a\r\n",
            ": a\r\n",
            "X\r\n",
            "X: \r\n",
            "X:a\r\n",
            "X:\t a \t\r\n",
            "X@Y: a\r\n",
            "X_Y: a\r\n",
            "(X): a\r\n",
            "X\u{e9}: a\r\n",
            "X: a\nY: b\r\n",
            "Expect: 100-continue\r\n",
            "Expect: nonsense\r\n",
            "X: a\tb\r\n",
            "X: \"a b\"\r\n",
        ]
        .map(with),
    );
    all.push(with(&"a: b\r\n".repeat(99)));
    all.push(with(&"a: b\r\n".repeat(100)));
    all.push(with(&format!("a: {}\r\n", "b".repeat(59 * 1024))));
    all.push(with(&format!("a: {}\r\n", "b".repeat(61 * 1024))));
    all.push(raw(&format!("GET /{} HTTP/1.1\r\nHost: cluster.test\r\n\r\n", "b".repeat(58 * 1024))));
    all.push(send(MAIN, "POST", "cluster.test", "/x", &["Expect: 100-continue", "Content-Length: 2"], "ab"));
    all.push(send(MAIN, "POST", "cluster.test", "/x", &["Expect: 100-Continue", "Content-Length: 2"], "ab"));
    all.push(send(MAIN, "POST", "cluster.test", "/empty", &["Expect: 100-continue", "Content-Length: 2"], ""));
    all.push(send(MAIN, "POST", "direct.test", "/200", &["Expect: 100-continue", "Content-Length: 2"], ""));
    all.push(send(MAIN, "GET", "cluster.test", "/x", &["Content-Length: 2"], "ab"));
    all.push(send(MAIN, "HEAD", "cluster.test", "/x", &[], ""));
    all.push(send(MAIN, "HEAD", "cluster.test", "/empty", &[], ""));
    all.push(send(MAIN, "HEAD", "unknown.test", "/x", &[], ""));
    all.push(send(MAIN, "DELETE", "cluster.test", "/x", &[], ""));
    all.push(send(MAIN, "POST", "cluster.test", "/x", &[], ""));
    all.push(send(MAIN, "TRACE", "cluster.test", "/x", &[], ""));
    all
}

fn hygiene() -> Vec<Case> {
    let sets: [&[&str]; 26] = [
        &["Connection: close"],
        &["Connection: keep-alive"],
        &["Connection: x-private", "X-Private: 1"],
        &["Connection: close, x-private", "X-Private: 1"],
        &["Connection: host"],
        &["Connection: content-length"],
        &["Connection: x-forwarded-for", "x-forwarded-for: 1.2.3.4"],
        &["Connection: te", "TE: trailers"],
        &["Connection: te", "TE: gzip"],
        &["TE: trailers"],
        &["TE: gzip, trailers"],
        &["TE: trailers;q=0.5"],
        &["TE: gzip"],
        &["Keep-Alive: timeout=5"],
        &["Proxy-Connection: keep-alive"],
        &["Proxy-Connection: close"],
        &["Connection: a,b,c,d,e,f,g,h,i,j,k"],
        &["Connection: authorization", "authorization: x"],
        &["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        &["Upgrade: h2c"],
        &["Referer: http://a/", "Referer: http://b/"],
        &["Referer: not a url"],
        &["Proxy-Authorization: x", "Proxy-Authenticate: y"],
        &["X-Case-Kept: Yes", "x-twice: 1", "x-twice: 2", "cookie: a=1", "cookie: b=2"],
        &[
            "x-forwarded-for: 1.2.3.4",
            "x-forwarded-proto: https",
            "x-request-id: mine",
            "x-forwarded-client-cert: By=x",
        ],
        &[
            "x-envoy-upstream-rq-timeout-ms: 5",
            "x-envoy-retry-on: 5xx",
            "x-envoy-internal: true",
            "x-envoy-decorator-operation: y",
        ],
    ];
    let mut all: Vec<Case> = sets.iter().map(|headers| get(MAIN, "cluster.test", "/x", headers)).collect();
    all.push(get(MAIN, "cluster.test", "/x", &["x-forwarded-proto: nonsense"]));
    all.push(get(MAIN, "cluster.test", "/x", &["x-forwarded-for:"]));
    all.push(get(MAIN, "cluster.test", "/x", &["Connection:"]));
    all.push(get(MAIN, "cluster.test", "/x", &["Connection: a b"]));
    all
}

fn responses() -> Vec<Case> {
    let kinds = [
        "keep-hop",
        "keep-cookies",
        "keep-204",
        "keep-304",
        "keep-chunked",
        "keep-trailers",
        "keep-hints",
        "until-close",
        "old",
        "two-lengths",
        "both-framings",
        "teapot",
        "unasked-101",
        "keep-garbage",
        "close",
        "half",
    ];
    kinds.into_iter().map(|kind| get(MAIN, "cluster.test", "/x", &[&format!("x-behave: {kind}")])).collect()
}

fn upgrades() -> Vec<Case> {
    let on = |port: u16, headers: &[&str]| get(port, "cluster.test", "/x", headers);
    vec![
        on(MAIN, &["Connection: upgrade", "Upgrade: websocket"]),
        on(MAIN, &["Connection: Upgrade", "Upgrade: WebSocket"]),
        on(MAIN, &["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"]),
        on(MAIN, &["Upgrade: websocket"]),
        on(MAIN, &["Connection: upgrade"]),
        on(MAIN, &["Connection: upgrade", "Upgrade: other"]),
        on(MAIN, &["Connection: upgrade", "Upgrade: websocket, other"]),
        on(MAIN, &["Connection: upgrade", "Upgrade: TLS/1.2"]),
        on(MAIN, &["Connection: upgrade", "Upgrade: h2c"]),
        on(OPTIONS, &["Connection: upgrade", "Upgrade: websocket"]),
        on(OPTIONS, &["Connection: upgrade", "Upgrade: other"]),
        get(MAIN, "unknown.test", "/x", &["Connection: upgrade", "Upgrade: websocket"]),
        get(MAIN, "unknown.test", "/x", &["Connection: upgrade", "Upgrade: other"]),
        get(MAIN, "direct.test", "/200", &["Connection: upgrade", "Upgrade: websocket"]),
    ]
}

/// A TLS ClientHello with these extensions.
fn client_hello(server_name: Option<&str>, alpn: &[&str]) -> Vec<u8> {
    fn with_length(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).expect("short");
        [&length.to_be_bytes(), bytes].concat()
    }
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, data: Vec<u8>| {
        extensions.extend_from_slice(&kind.to_be_bytes());
        extensions.extend_from_slice(&with_length(&data));
    };
    if let Some(name) = server_name {
        let entry = [&[0][..], &with_length(name.as_bytes())].concat();
        extension(0, with_length(&entry));
    }
    if !alpn.is_empty() {
        let mut names = Vec::new();
        for name in alpn {
            names.push(u8::try_from(name.len()).expect("short"));
            names.extend_from_slice(name.as_bytes());
        }
        extension(16, with_length(&names));
    }
    // supported_groups, signature_algorithms: what any client sends.
    extension(10, vec![0, 2, 0, 29]);
    extension(13, vec![0, 2, 4, 3]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2f, 1, 0]);
    body.extend(with_length(&extensions));
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[22, 3, 1][..], &with_length(&handshake)].concat()
}

fn chains() -> Vec<Case> {
    let mut all = Vec::new();
    for source in ["127.0.0.1", "127.9.0.1", "127.8.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1:7001", "127.9.0.1:7002"]
    {
        let mut case = Case::new(CHAINS, *b"hello\r\n");
        case.name = format!("chains from {source}");
        case.source = Some(source.to_owned());
        all.push(case);
    }
    let hellos: [(Option<&str>, &[&str]); 14] = [
        (Some("api.example.com"), &[]),
        (Some("API.Example.COM"), &[]),
        (Some("www.example.com"), &[]),
        (Some("a.b.example.com"), &[]),
        (Some("example.com"), &[]),
        (Some("api.example.com"), &["h2"]),
        (Some("other.test"), &["h2"]),
        (Some("other.test"), &["http/1.1", "acme"]),
        (Some("other.test"), &["http/1.1"]),
        (Some("only.alpn.test"), &["http/1.1"]),
        (Some("only.alpn.test"), &["acme", "h2"]),
        (None, &["h2"]),
        (None, &[]),
        (None, &["H2"]),
    ];
    for (name, alpn) in hellos {
        let mut case = Case::new(SNIFFED, client_hello(name, alpn));
        case.name = format!("hello {name:?} {alpn:?}");
        all.push(case);
    }
    for text in [
        "GET /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /exact HTTP/1.0\r\nHost: path.test\r\n\r\n",
        "GET /exact HTTP/0.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "hello there\r\n",
        "\r\nGET /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "PURGE /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "get /exact HTTP/1.1\r\nHost: path.test\r\n\r\n",
        "GET /exact HTTP/1.2\r\nHost: path.test\r\n\r\n",
        "\0\u{1}binary",
        "SSH-2.0-x\r\n",
    ] {
        all.push(Case::new(SNIFFED, text.as_bytes()));
    }
    all
}
