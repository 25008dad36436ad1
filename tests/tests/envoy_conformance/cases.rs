//! What is asked.

use crate::tables::{MAIN, OPTIONS};

/// One thing to ask both.
#[derive(Debug)]
pub struct Case {
    /// By which [`crate::differences`] knows it.
    pub name: String,
    pub port: u16,
    /// The address from which it is asked.
    pub source: Option<String>,
    pub request: Vec<u8>,
}

impl Case {
    pub fn new(port: u16, request: impl Into<Vec<u8>>) -> Self {
        let request = request.into();
        let name = format!("{port} {:?}", String::from_utf8_lossy(&request[..request.len().min(100)]));
        Self { name, port, source: None, request }
    }
}

/// A GET.
pub fn get(port: u16, host: &str, path: &str, headers: &[&str]) -> Case {
    send(port, "GET", host, path, headers, "")
}

/// Any request.
pub fn send(port: u16, method: &str, host: &str, path: &str, headers: &[&str], body: &str) -> Case {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.push_str(body);
    let mut case = Case::new(port, text);
    case.name = [&[method, host, path][..], headers].concat().join(" ");
    if port != MAIN {
        case.name.insert_str(0, &format!("{port} "));
    }
    case
}

/// All of them.
pub fn all() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(paths());
    all.extend(headers());
    all.extend(queries());
    all.extend(hosts());
    all.extend(targets());
    all.extend(redirects());
    all.extend(rewrites());
    all.extend(clusters());
    all.extend(scopes());
    all.extend(crate::raw::all());
    all
}

fn paths() -> Vec<Case> {
    let on = |path: &str| get(MAIN, "path.test", path, &[]);
    let mut all: Vec<Case> = [
        "/",
        "/exact",
        "/exact/",
        "/exact?a=b",
        "/exactly",
        "/Exact",
        "/case",
        "/CASE?x",
        "/caser",
        "/pre",
        "/pre/fix/x",
        "/PRE/FIX",
        "/prefab",
        "/Pre",
        "/re/12",
        "/re/12/x?y",
        "/re/",
        "/re/12/xy",
        "/REG/A",
        "/reg/b",
        "/reg/a/b",
        "/b",
        "/sep/a",
        "/sep/a/",
        "/sep/a/b?c",
        "/sep/ab",
        "/sep/a?b",
        "/Sep/a",
        "/SEP/B/c",
        "/t/1/x/2",
        "/t//x/2",
        "/t/1/x/",
        "/t/1/x/2/3",
        "/t/1/y/2",
        "/u/bc/d/e",
        "/u/b/",
        "/u/b",
        "/u/c/d",
        "/w/a.m3u8",
        "/w/a/b.m3u8",
        "/w/.m3u8",
        "/v/x/end",
        "/v/x/y/end",
        "/v/end",
        "/t/%20/x/a%2fb",
        "/t/a;b/x/c",
        "/method",
        "/grpc",
        "/50%25",
        "/50%",
        "/never",
        "//exact",
        "/./exact",
        "/pre//x",
        "/exact;a=b",
        "/%65xact",
        "/pre?#x",
        "/exact??",
        "/t/a@b/x/~",
        "/t/a:b/x/c",
        "/t/*/x/c",
        "/t/$a/x/!b",
        "/t/'/x/(b)",
        "/t/a,b/x/c=d&e",
        "/t/a|b/x/c",
        "/pre|x",
        "/pre\"x",
        "/pre<x>",
        "/pre{x}",
        "/pre^x",
        "/pre`x",
        "/pre\\x",
        "/pre[x]",
    ]
    .into_iter()
    .map(on)
    .collect();
    for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "get", "PURGE"] {
        all.push(send(MAIN, method, "path.test", "/method", &[], ""));
        all.push(send(MAIN, method, "path.test", "/exact", &["content-length: 0"], ""));
    }
    for kind in ["application/grpc", "application/grpc+proto", "application/grpc-web", "Application/GRPC", "text/plain"]
    {
        all.push(get(MAIN, "path.test", "/grpc", &[&format!("content-type: {kind}")]));
    }
    all.push(get(MAIN, "path.test", "/nowhere", &["content-type: application/grpc"]));
    all
}

fn headers() -> Vec<Case> {
    let kinds = [
        "exact",
        "exact-any-case",
        "exact-inverted",
        "prefix",
        "suffix",
        "suffix-any-case",
        "contains",
        "regex",
        "regex-inverted",
        "range",
        "range-inverted",
        "present",
        "absent",
        "present-inverted",
        "absent-inverted",
        "bare",
        "bare-inverted",
        "empty-is-missing",
        "empty-inverted",
    ];
    let of = |kind: &str| -> Vec<&[&str]> {
        match kind.split('-').next() {
            Some("exact" | "empty") => {
                vec![&["x-h: One"], &["X-H: ONE"], &["x-h: One, Two"], &["x-h:  One  "], &["x-h: x"]]
            }
            Some("prefix") => vec![&["x-h: abc"], &["x-h: a"], &["x-h: ABc"], &["x-h: ab"]],
            Some("suffix") => vec![&["x-h: xyz"], &["x-h: z"], &["x-h: XYZ"], &["x-h: a", "x-h: yz"]],
            Some("contains") => vec![&["x-h: amidst"], &["x-h: MID"], &["x-h: mi", "x-h: d"]],
            Some("regex") => vec![&["x-h: abc1"], &["x-h: abc12"], &["x-h: a1", "x-h: b2"], &["x-h: \u{e9}1"]],
            Some("range") => vec![
                &["x-h: -5"],
                &["x-h: 9"],
                &["x-h: 10"],
                &["x-h: -6"],
                &["x-h: 1.5"],
                &["x-h: +7"],
                &["x-h: 07"],
                &["x-h: 0x7"],
                &["x-h: 7 7"],
                &["x-h: 7", "x-h: 7"],
                &["x-h: 99999999999999999999"],
            ],
            _ => vec![&["x-h: One"], &["x-h: 1", "x-h: 2"]],
        }
    };
    let mut all = Vec::new();
    for kind in kinds {
        let mut values = of(kind);
        values.extend([&[] as &[&str], &["x-h:"]]);
        all.extend(values.into_iter().map(|value| get(MAIN, "header.test", &format!("/{kind}"), value)));
    }
    for path in ["/authority", "/method", "/scheme", "/path?q", "/path", "/host"] {
        all.push(get(MAIN, "header.test", path, &[]));
    }
    all.push(get(MAIN, "Header.Test", "/authority", &[]));
    all.push(get(MAIN, "header.test", "/cookie", &["cookie: a=1", "cookie: b=2"]));
    all.push(get(MAIN, "header.test", "/cookie", &["cookie: a=1; b=2"]));
    all
}

fn queries() -> Vec<Case> {
    let mut all = Vec::new();
    for (kind, values) in [
        ("exact", ["q=One", "q=one", "q=One&q=two", "q=two&q=One", "q=On%65"]),
        ("any-case", ["q=ONE", "q=o", "Q=One", "q=One;a", "a=b&q=oNe"]),
        ("prefix", ["q=abc", "q=a", "q=Ab", "q=", "q"]),
        ("suffix", ["q=xyz", "q=yz#x", "q=Yz", "q=z", "?q=yz"]),
        ("contains", ["q=amidst", "q=mi%64", "q=m=mid=1", "q=m&id", "q=a+mid"]),
        ("regex", ["q=abc", "q=abcd", "q=", "q=a&b", "q=a%20"]),
        ("present", ["q", "q=", "qq=1", "&q", "a=1&&q=2"]),
        ("absent", ["q", "q=", "qq=1", "", "=q"]),
        ("bare", ["q", "q=1", "a=q", "", "%71=1"]),
    ] {
        all.extend(values.map(|query| get(MAIN, "query.test", &format!("/{kind}?{query}"), &[])));
        all.push(get(MAIN, "query.test", &format!("/{kind}"), &[]));
    }
    all
}

fn hosts() -> Vec<Case> {
    [
        "www.foo.test",
        "WWW.Foo.Test",
        "upper.test",
        "a.foo.test",
        "a.b.foo.test",
        "foo.test",
        ".foo.test",
        "x.bar.foo.test",
        "bar.foo.test",
        "a-x.foo.test",
        "-x.foo.test",
        "pre.a",
        "pre.",
        "pre",
        "pre.fix.a",
        "pre.fix.",
        "pre.foo.test",
        "www.foo.test:80",
        "www.foo.test:8000",
        "port.test:8080",
        "port.test",
        "port.test:80",
        "unknown",
        "none.test",
        "pre.a:8000",
        "127.0.0.1",
        "[::1]",
        "[::1]:80",
        "[::1",
        "a b",
        "a@b",
        "user@www.foo.test",
        "a/b",
        "a,b",
        "a_b.foo.test",
        "www.foo.test.",
        "www.foo.test:",
        "www.foo.test:x",
        "www.foo.test:99999",
        "%41.foo.test",
        "a\"b",
        "a<b",
        "",
    ]
    .into_iter()
    .map(|host| get(MAIN, host, "/", &[]))
    .collect()
}

/// Request targets, with hosts that contradict them.
fn targets() -> Vec<Case> {
    let raw = |text: &str| Case::new(MAIN, text.as_bytes());
    vec![
        raw("GET / HTTP/1.1\r\n\r\n"),
        raw("GET / HTTP/1.1\r\nHost: www.foo.test\r\nHost: www.foo.test\r\n\r\n"),
        raw("GET / HTTP/1.1\r\nHost: www.foo.test\r\nHost: port.test:8080\r\n\r\n"),
        raw("GET http://www.foo.test/ HTTP/1.1\r\nHost: port.test:8080\r\n\r\n"),
        raw("GET http://www.foo.test HTTP/1.1\r\nHost: x\r\n\r\n"),
        raw("GET http://www.foo.test/ HTTP/1.1\r\n\r\n"),
        raw("GET HTTP://www.foo.test/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        raw("GET https://www.foo.test/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        raw("GET ftp://www.foo.test/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        raw("GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n"),
        raw("GET http://path.test?q HTTP/1.1\r\nHost: x\r\n\r\n"),
        raw("GET http://path.test/exact?q HTTP/1.1\r\nHost: x\r\n\r\n"),
        raw("OPTIONS * HTTP/1.1\r\nHost: www.foo.test\r\n\r\n"),
        raw("GET * HTTP/1.1\r\nHost: www.foo.test\r\n\r\n"),
        raw("GET foo HTTP/1.1\r\nHost: www.foo.test\r\n\r\n"),
        raw("CONNECT www.foo.test:443 HTTP/1.1\r\nHost: www.foo.test:443\r\n\r\n"),
        raw("CONNECT www.foo.test HTTP/1.1\r\nHost: www.foo.test\r\n\r\n"),
        raw("CONNECT /x HTTP/1.1\r\nHost: www.foo.test\r\n\r\n"),
        raw("GET / HTTP/1.0\r\nHost: www.foo.test\r\n\r\n"),
        raw("GET / HTTP/1.0\r\n\r\n"),
        raw("GET /\r\n"),
    ]
}

fn redirects() -> Vec<Case> {
    let mut all = Vec::new();
    for path in [
        "/https",
        "/scheme",
        "/host",
        "/port",
        "/hostport",
        "/httpsport",
        "/path",
        "/query",
        "/strippath",
        "/stripown",
        "/fix",
        "/slash",
        "/strip",
        "/regex/a/b",
        "/302",
        "/303",
        "/307",
        "/308",
        "/",
    ] {
        for suffix in ["", "/x?q=1&r"] {
            all.push(get(MAIN, "redirect.test", &format!("{path}{suffix}"), &[]));
        }
        for host in ["redirect.test:80", "redirect.test:8000", "redirect.test:443", "Redirect.Test", "[::1]:80"] {
            all.push(get(MAIN, host, path, &[]));
        }
        for proto in ["https", "http", "ftp"] {
            all.push(get(MAIN, "redirect.test:443", path, &[&format!("x-forwarded-proto: {proto}")]));
        }
    }
    all.push(get(MAIN, "redirect.test", "/path", &["x-forwarded-proto: HTTPS"]));
    all.push(send(MAIN, "POST", "redirect.test", "/307", &["content-length: 3"], "abc"));
    all.push(send(MAIN, "HEAD", "redirect.test", "/307", &[], ""));
    for path in ["/", "/x?q"] {
        all.push(get(MAIN, "tls.test", path, &[]));
        all.push(get(MAIN, "tls.test", path, &["x-forwarded-proto: https"]));
        all.push(get(OPTIONS, "external.test", path, &[]));
        all.push(get(OPTIONS, "external.test", path, &["x-forwarded-for: 8.8.8.8"]));
        all.push(get(OPTIONS, "external.test:81", path, &["x-forwarded-for: 8.8.8.8"]));
    }
    all
}

fn rewrites() -> Vec<Case> {
    let mut all: Vec<Case> = [
        "/foo/x",
        "/foo",
        "/foobar",
        "/foo/",
        "/foo?q",
        "/foo/?q=/foo",
        "/bar/x?y",
        "/barn",
        "/ANY/x",
        "/same",
        "/exact?q=1",
        "/sep/a/b?c",
        "/sep",
        "/xx/y/z?q",
        "/swap/a/b?x",
        "/swap/a/b/c",
        "/all/aXa?a",
        "/query/x",
        "/query/x?their=2",
        "/tmpl/1/2/3?q",
        "/literal",
        "/samehost",
        "/header",
        "/plainhost",
        "/foo//x",
        "/foo/../x",
    ]
    .into_iter()
    .map(|path| get(MAIN, "rewrite.test", path, &[]))
    .collect();
    all.push(get(MAIN, "rewrite.test", "/header", &["x-host: from.header"]));
    all.push(get(MAIN, "rewrite.test", "/header", &["x-host: from.header", "x-host: again"]));
    all.push(get(MAIN, "rewrite.test", "/header", &["x-host:"]));
    all.push(get(MAIN, "rewrite.test", "/literal", &["x-forwarded-host: before.test"]));
    all.push(get(MAIN, "rewrite.test", "/bar", &["x-envoy-original-path: /forged"]));
    all.push(get(MAIN, "rewrite.test", "/same", &["x-envoy-original-path: /forged"]));
    all
}

fn clusters() -> Vec<Case> {
    let on = |path: &str, headers: &[&str]| get(MAIN, "cluster.test", path, headers);
    let mut all: Vec<Case> = ["/first", "/middle", "/last", "/empty", "/refused", "/retried"]
        .into_iter()
        .map(|path| on(path, &[]))
        .collect();
    for path in ["/named", "/404", "/500"] {
        all.extend([
            on(path, &[]),
            on(path, &["x-cluster: b"]),
            on(path, &["x-cluster: unknown"]),
            on(path, &["x-cluster: b", "x-cluster: c"]),
        ]);
    }
    let grpc = "content-type: application/grpc";
    all.extend(["/empty", "/refused", "/named", "/404"].map(|path| on(path, &[grpc])));
    all.push(on("/slow", &["x-behave: silent"]));
    all.push(on("/slow", &["x-behave: silent", grpc]));
    all.push(on("/tries", &["x-behave: silent"]));
    all.push(on("/idle", &["x-behave: silent"]));
    all.push(send(MAIN, "POST", "cluster.test", "/idle", &["content-length: 5"], "ab"));
    for path in ["/200", "/204", "/503", "/empty", "/301", "/201", "/typed", "/none"] {
        all.push(get(MAIN, "direct.test", path, &[]));
        all.push(send(MAIN, "HEAD", "direct.test", path, &[], ""));
        all.push(send(MAIN, "POST", "direct.test", path, &["content-length: 2"], "ab"));
        all.push(get(MAIN, "direct.test", path, &[grpc]));
    }
    all.push(send(MAIN, "POST", "direct.test", "/200", &["content-length: 200"], "ab"));
    all.push(send(MAIN, "POST", "cluster.test", "/empty", &["content-length: 200"], "ab"));
    all
}

fn scopes() -> Vec<Case> {
    let sets: [&[&str]; 4] = [
        &[],
        &["x-append: client", "x-overwrite: client", "x-absent: client", "x-exists: client"],
        &["x-exists: one", "x-exists: two", "x-overwrite: one", "x-overwrite: two", "x-append: one", "x-append: two"],
        &[
            "x-remove: 1",
            "x-remove-route: 1",
            "x-remove-vhost: 1",
            "x-remove-table: 1",
            "x-route: client",
            "x-behave: keep-hop",
        ],
    ];
    let mut all = Vec::new();
    for headers in sets {
        for (port, path) in [
            (MAIN, "/on"),
            (MAIN, "/direct"),
            (MAIN, "/away"),
            (MAIN, "/bare"),
            (MAIN, "/none"),
            (OPTIONS, "/on"),
            (OPTIONS, "/none"),
        ] {
            all.push(get(port, "scoped.test", path, headers));
        }
    }
    all
}
