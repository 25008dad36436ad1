//! What the agent refuses, on raw bytes: statuses, flags, details, and that nothing reaches the origin.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use waylay::http::HttpConnectionManager;
use waylay::http::route::{Action, DirectResponse, Redirect};

use crate::support::*;

struct Case {
    bytes: &'static str,
    status: u16,
    flags: &'static str,
    details: &'static str,
}

const fn case(bytes: &'static str, status: u16, flags: &'static str, details: &'static str) -> Case {
    Case { bytes, status, flags, details }
}

fn check(cases: &[Case], change: impl Fn(&mut HttpConnectionManager)) {
    for case in cases {
        local(async {
            let (address, heads) = canned("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let cluster = Arc::new(cluster("c", &[address]));
            let mut manager = manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]);
            change(&mut manager);
            let proxy = Proxy::new(manager, &[]).await;
            let answer = proxy.raw(case.bytes).await;
            let bytes = case.bytes;
            assert!(
                answer.starts_with("HTTP/1.") && answer[8..].starts_with(&format!(" {} ", case.status)),
                "{bytes:?}: {answer}"
            );
            assert_eq!(answer.matches("HTTP/1.").count(), 1, "{bytes:?}: {answer}");
            assert!(answer.contains("connection: close"), "{bytes:?}: {answer}");
            let record = proxy.records.one().await;
            let seen = (record.status, record.flags.to_string(), record.details);
            assert_eq!(seen, (case.status, case.flags.to_owned(), case.details), "{bytes:?}");
            assert_eq!(heads.borrow().len(), 0, "{bytes:?} reached the origin: {:?}", heads.borrow());
            assert_eq!(proxy.manager.stats.downstream_rq_active.value(), 0, "{bytes:?}");
            let end = proxy.end().await;
            assert_eq!(end.flags.to_string(), if case.flags == "DPE" { "DPE" } else { "-" }, "{bytes:?}");
        });
    }
}

#[test]
fn a_request_that_could_be_read_in_two_ways_never_reaches_an_origin() {
    const BOTH: &str = "http1.content_length_and_chunked_not_allowed";
    const LENGTH: &str = "http1.invalid_content_length";
    const CODING: &str = "http1.invalid_transfer_encoding";
    const SYNTAX: &str = "http1.codec_error";
    check(
        &[
            case(
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /s HTTP/1.1\r\nHost: h\r\n\r\n",
                400,
                "DPE",
                BOTH,
            ),
            case(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /s HTTP/1.1\r\nHost: h\r\n\r\n",
                400,
                "DPE",
                BOTH,
            ),
            case(
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
                400,
                "DPE",
                LENGTH,
            ),
            case(
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
                400,
                "DPE",
                LENGTH,
            ),
            case("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +4\r\n\r\nabcd", 400, "DPE", LENGTH),
            case("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\nabcd", 501, "DPE", CODING),
            case("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\nabcd", 501, "DPE", CODING),
            case(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                501,
                "DPE",
                CODING,
            ),
            case("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, "DPE", SYNTAX),
            case("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n \r\n\r\n0\r\n\r\n", 400, "DPE", SYNTAX),
            case("GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400, "DPE", SYNTAX),
            case("GET / HTTP/1.1\r\nHost: h\r\nX: a\rb: c\r\n\r\n", 400, "DPE", SYNTAX),
            case("GET / HTTP/1.1\r\nHost: h\r\nX\0: a\r\n\r\n", 400, "DPE", SYNTAX),
            case("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400, "DPE", "http1.duplicate_host"),
            case("NONSENSE\r\n\r\n", 400, "DPE", SYNTAX),
            case("GET / HTTP/9.9\r\nHost: h\r\n\r\n", 400, "DPE", SYNTAX),
        ],
        |_| {},
    );
}

#[test]
fn a_request_that_makes_no_sense_is_told_why() {
    check(
        &[
            case("GET / HTTP/1.1\r\nA: b\r\nConnection: close\r\n\r\n", 400, "-", "missing_host_header"),
            case("GET / HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", 400, "-", "missing_host_header"),
            case("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "-", "invalid_authority"),
            case("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "-", "invalid_authority"),
            case("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "-", "invalid_authority"),
            case("GET / HTTP/1.0\r\nHost: h\r\n\r\n", 426, "-", "low_version"),
            case("GET a HTTP/1.1\r\nHost: h\r\n\r\n", 404, "-", "absolute_path_rejected"),
            case("OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 404, "-", "absolute_path_rejected"),
            case("GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400, "-", "path_normalization_failed"),
            case("GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 403, "-", "http1.mismatched_scheme"),
            case("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", 403, "-", "upgrade_failed"),
            case(
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n",
                403,
                "-",
                "upgrade_failed",
            ),
            case(
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\na",
                400,
                "-",
                "upgrade_with_body_rejected",
            ),
            case("GET / HTTP/1.1\r\nHost: h\r\nConnection: host\r\n\r\n", 400, "-", "connection_header_rejected"),
        ],
        |_| {},
    );
}

#[test]
fn too_much_of_a_head_is_refused() {
    check(
        &[case("GET / HTTP/1.1\r\nHost: h\r\na: b\r\na: b\r\na: b\r\n\r\n", 431, "DPE", "http1.too_many_headers")],
        |manager| manager.max_headers_count = 3,
    );
    let long = "GET / HTTP/1.1\r\nHost: h\r\na: ".to_owned() + &"b".repeat(2000);
    check(&[case(Box::leak(long.into_boxed_str()), 431, "DPE", "http1.headers_too_large")], |manager| {
        manager.max_request_headers_kb = 1
    });
    check(&[case("GET /a%00b HTTP/1.1\r\nHost: h\r\n\r\n", 400, "-", "path_normalization_failed")], |manager| {
        manager.normalize_path = true
    });
}

#[test]
fn the_route_table_answers_by_itself() {
    local(async {
        let direct = DirectResponse { status: StatusCode::IM_A_TEAPOT, body: Bytes::from_static(b"tea") };
        let redirect = Redirect {
            scheme_redirect: None,
            host_redirect: Some("other".to_owned()),
            port_redirect: None,
            path: None,
            response_code: StatusCode::FOUND,
            strip_query: false,
        };
        let routes = vec![row("/tea", Action::DirectResponse(direct)), row("/go", Action::Redirect(redirect))];
        let proxy = Proxy::new(manager(routes), &[]).await;
        for (path, status, body, flags, details) in [
            ("/tea", 418, "tea", "-", "direct_response"),
            ("/go?a", 302, "", "-", "direct_response"),
            ("/none", 404, "", "NR", "route_not_found"),
        ] {
            let count = proxy.records.all().len();
            let answer = proxy.raw(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            assert!(answer.contains("server: waylay") && answer.contains("date: "), "{answer}");
            let record = proxy.records.wait(count + 1).await.pop().unwrap();
            assert_eq!((record.status, record.flags.to_string().as_str(), record.details), (status, flags, details));
            assert_eq!((record.attempts, record.bytes_sent), (0, body.len() as u64));
        }
        let answer = proxy.raw("GET /go?a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains("location: http://other/go?a\r\n"), "{answer}");
        let stats = &proxy.manager.stats;
        assert_eq!((stats.rq_direct_response.value(), stats.rq_redirect.value(), stats.no_route.value()), (1, 2, 1));
        // A HEAD request gets the same head, and no body.
        let answer = proxy.raw("HEAD /tea HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains("content-length: 3\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    });
}

#[test]
fn a_grpc_client_gets_trailers_only() {
    local(async {
        let proxy = Proxy::new(manager(Vec::new()), &[]).await;
        let answer = proxy
            .raw("POST /s/m HTTP/1.1\r\nHost: h\r\nContent-Type: application/grpc\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("grpc-status: 12\r\n"), "{answer}");
        let record = proxy.records.one().await;
        assert_eq!((record.status, record.flags.to_string().as_str()), (200, "NR"));
    });
}

#[test]
fn http_1_0_is_served_where_it_is_accepted() {
    local(async {
        let (address, heads) =
            canned("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
        let cluster = Arc::new(cluster("c", &[address]));
        let mut manager = manager(vec![row("/", Action::Route(Box::new(to(&cluster))))]);
        manager.accept_http_10 = true;
        let proxy = Proxy::new(manager, &[]).await;
        let answer = proxy.raw("GET / HTTP/1.0\r\nHost: h\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
        assert!(!answer.contains("chunked"), "{answer}");
        assert_eq!(proxy.records.one().await.protocol, "HTTP/1.0");
        assert!(heads.borrow()[0].starts_with("0 GET / HTTP/1.1\r\n"), "{:?}", heads.borrow());
    });
}
