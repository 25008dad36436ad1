//! The tables that both proxies serve, in the agent's words.

use serde_json::{Value, json};

use crate::translate::WAYLAY;

/// Rows, virtual hosts, headers.
pub const MAIN: u16 = 8000;
/// The connection manager's options, all on.
pub const OPTIONS: u16 = 8001;
/// Filter chains by destination and source.
pub const CHAINS: u16 = 8002;
/// Filter chains by what the first bytes say.
pub const SNIFFED: u16 = 8003;

/// The whole configuration.
pub fn config() -> Value {
    let at = |port: u16| format!("{WAYLAY}:{port}");
    let main = json!({"route_config": "main", "server_name": "same"});
    let options = json!({
        "route_config": "options", "server_name": "same", "accept_http_10": true, "normalize_path": true,
        "merge_slashes": true, "use_remote_address": true, "upgrades": ["other"], "max_headers_count": 20,
        "max_request_headers_kb": 8, "server_header_transformation": "pass_through", "stream_idle_timeout": "0.5s",
    });
    json!({
        "listeners": [
            {"name": "main", "address": at(MAIN), "filter_chains": [{"http": main}]},
            {"name": "options", "address": at(OPTIONS), "filter_chains": [{"http": options}]},
            {"name": "chains", "address": at(CHAINS), "filter_chains": chains()},
            {
                "name": "sniffed", "address": at(SNIFFED), "listener_filters": ["tls_inspector", "http_inspector"],
                "filter_chains": sniffed(), "default_filter_chain": bytes("other"),
            },
        ],
        "route_configs": [main_table(), options_table()],
        "clusters": clusters(),
    })
}

/// Clusters `http-NAME` and `bytes-NAME` have an origin of that name; see `main`.
pub const ORIGINS: [(&str, u16); 3] = [("a", 9001), ("b", 9002), ("c", 9003)];
/// Origins of bytes.
pub const BYTE_ORIGINS: [(&str, u16); 6] =
    [("tls", 9101), ("sni", 9102), ("wild", 9103), ("alpn", 9104), ("plain", 9105), ("other", 9106)];

fn clusters() -> Value {
    let mut all = vec![
        json!({"name": "empty", "type": "static"}),
        json!({"name": "refused", "type": "static", "endpoints": ["127.0.0.1:9999"]}),
    ];
    for (name, port) in ORIGINS.into_iter().chain(BYTE_ORIGINS) {
        all.push(json!({"name": name, "type": "static", "endpoints": [format!("127.0.0.1:{port}")]}));
    }
    all.into()
}

fn bytes(cluster: &str) -> Value {
    json!({"tcp_proxy": {"cluster": cluster}})
}

/// A chain that forwards bytes to the origin named so, whenever `criteria` hold.
fn chain(cluster: &str, criteria: Value) -> Value {
    json!({"name": cluster, "match": criteria, "tcp_proxy": {"cluster": cluster}})
}

fn chains() -> Value {
    json!([
        chain("tls", json!({"destination_port": CHAINS, "source_type": "external"})),
        chain("sni", json!({"destination_port": CHAINS, "prefix_ranges": ["127.0.0.0/8"], "source_ports": [7001]})),
        chain(
            "wild",
            json!({"destination_port": CHAINS, "prefix_ranges": ["127.0.0.0/30"], "source_type": "same_ip_or_loopback", "source_prefix_ranges": ["127.0.0.0/24"]})
        ),
        chain(
            "alpn",
            json!({"destination_port": CHAINS, "prefix_ranges": ["127.0.0.0/30"], "source_type": "same_ip_or_loopback", "source_prefix_ranges": ["127.9.0.0/16"]})
        ),
        chain(
            "plain",
            json!({"destination_port": CHAINS, "prefix_ranges": ["127.0.0.0/30"], "source_type": "same_ip_or_loopback", "source_prefix_ranges": ["127.9.0.0/16"], "source_ports": [7002]})
        ),
        chain("other", json!({})),
    ])
}

fn sniffed() -> Value {
    json!([
        chain("sni", json!({"transport_protocol": "tls", "server_names": ["api.example.com"]})),
        chain("wild", json!({"transport_protocol": "tls", "server_names": ["*.example.com"]})),
        chain("alpn", json!({"transport_protocol": "tls", "application_protocols": ["h2", "acme"]})),
        chain("tls", json!({"server_names": ["only.alpn.test"], "transport_protocol": "tls", "application_protocols": ["h2"]})),
        {"name": "http11", "match": {"application_protocols": ["http/1.1"]}, "http": {"route_config": "main", "server_name": "same"}},
        chain("plain", json!({"application_protocols": ["http/1.0", "h2c"]})),
    ])
}

fn say(matches: Value, text: &str) -> Value {
    json!({"match": matches, "direct_response": {"status": 200, "body": text}})
}

fn to(matches: Value, mut action: Value) -> Value {
    let fields = action.as_object_mut().expect("an action");
    if !["cluster", "weighted_clusters", "cluster_header"].iter().any(|name| fields.contains_key(*name)) {
        fields.insert("cluster".to_owned(), "a".into());
    }
    json!({"match": matches, "route": action})
}

fn away(path: &str, redirect: Value) -> Value {
    json!({"match": {"prefix": path}, "redirect": redirect})
}

fn host(name: &str, domains: &[&str], routes: Vec<Value>) -> Value {
    json!({"name": name, "domains": domains, "routes": routes})
}

/// Rows on one header, each asked for by its own path.
fn header_rows() -> Vec<Value> {
    let kinds = [
        ("exact", json!({"exact": "One"})),
        ("exact-any-case", json!({"exact": "One", "ignore_case": true})),
        ("exact-inverted", json!({"exact": "One", "invert": true})),
        ("prefix", json!({"prefix": "ab"})),
        ("suffix", json!({"suffix": "yz"})),
        ("suffix-any-case", json!({"suffix": "yz", "ignore_case": true})),
        ("contains", json!({"contains": "mid"})),
        ("regex", json!({"safe_regex": "[a-c]+\\d"})),
        ("regex-inverted", json!({"safe_regex": "[a-c]+\\d", "invert": true})),
        ("range", json!({"range": {"start": -5, "end": 10}})),
        ("range-inverted", json!({"range": {"start": -5, "end": 10}, "invert": true})),
        ("present", json!({"present": true})),
        ("absent", json!({"present": false})),
        ("present-inverted", json!({"present": true, "invert": true})),
        ("absent-inverted", json!({"present": false, "invert": true})),
        ("bare", json!({})),
        ("bare-inverted", json!({"invert": true})),
        ("empty-is-missing", json!({"exact": "", "treat_missing_header_as_empty": true})),
        ("empty-inverted", json!({"exact": "x", "invert": true, "treat_missing_header_as_empty": true})),
    ];
    let row = |(path, mut condition): (&str, Value)| {
        condition["name"] = "x-h".into();
        say(json!({"path": format!("/{path}"), "headers": [condition]}), path)
    };
    let mut rows: Vec<Value> = kinds.into_iter().map(row).collect();
    let pseudo = [("authority", "header.test"), ("path", "/authority"), ("method", "GET"), ("scheme", "http")];
    rows.extend(pseudo.map(|(name, value)| {
        let value = if name == "path" { "/path?q" } else { value };
        say(json!({"path": format!("/{name}"), "headers": [{"name": format!(":{name}"), "exact": value}]}), name)
    }));
    rows.push(say(json!({"path": "/host", "headers": [{"name": "host", "exact": "header.test"}]}), "host"));
    rows.push(say(json!({"path": "/cookie", "headers": [{"name": "cookie", "exact": "a=1; b=2"}]}), "joined by ;"));
    rows.push(say(json!({"path": "/cookie", "headers": [{"name": "cookie", "exact": "a=1,b=2"}]}), "joined by ,"));
    rows
}

fn query_rows() -> Vec<Value> {
    let kinds = [
        ("exact", json!({"exact": "One"})),
        ("any-case", json!({"exact": "One", "ignore_case": true})),
        ("prefix", json!({"prefix": "ab"})),
        ("suffix", json!({"suffix": "yz"})),
        ("contains", json!({"contains": "mid"})),
        ("regex", json!({"safe_regex": "[a-c]+"})),
        ("present", json!({"present": true})),
        ("absent", json!({"present": false})),
        ("bare", json!({})),
    ];
    let row = |(path, mut condition): (&str, Value)| {
        condition["name"] = "q".into();
        say(json!({"path": format!("/{path}"), "query_parameters": [condition]}), path)
    };
    kinds.into_iter().map(row).collect()
}

fn path_rows() -> Vec<Value> {
    vec![
        say(json!({"path": "/exact"}), "exact"),
        say(json!({"path": "/Case", "case_sensitive": false}), "exact in any case"),
        say(json!({"prefix": "/pre/Fix", "case_sensitive": false}), "prefix in any case"),
        say(json!({"prefix": "/pre"}), "prefix"),
        say(json!({"safe_regex": "/re/[0-9]+(/x)?"}), "regex"),
        say(json!({"safe_regex": "(?i)/reg/a|b", "case_sensitive": false}), "alternatives"),
        say(json!({"path_separated_prefix": "/sep/a"}), "separated"),
        say(json!({"path_separated_prefix": "/Sep/b", "case_sensitive": false}), "separated in any case"),
        say(json!({"path_template": "/t/*/x/{name}"}), "template"),
        say(json!({"path_template": "/u/{a=b*}/**"}), "template with a tail"),
        say(json!({"path_template": "/w/{v=**}.m3u8"}), "template with a suffix"),
        say(json!({"path_template": "/v/{a=**}/end"}), "template with an end"),
        say(json!({"prefix": "/grpc", "grpc": true}), "grpc"),
        say(json!({"prefix": "/method", "methods": ["GET", "POST"]}), "method"),
        say(json!({"prefix": "/50%25"}), "percent"),
        say(json!({"prefix": "/never", "runtime_fraction": {"numerator": 0}}), "never"),
    ]
}

fn redirect_rows() -> Vec<Value> {
    vec![
        away("/https", json!({"https_redirect": true})),
        away("/scheme", json!({"scheme_redirect": "ftp"})),
        away("/host", json!({"host_redirect": "other.test"})),
        away("/port", json!({"port_redirect": 9443})),
        away("/hostport", json!({"host_redirect": "other.test", "port_redirect": 80})),
        away("/httpsport", json!({"https_redirect": true, "port_redirect": 443})),
        away("/path", json!({"path_redirect": "/new"})),
        away("/query", json!({"path_redirect": "/new?own=1"})),
        away("/strippath", json!({"path_redirect": "/new", "strip_query": true})),
        away("/stripown", json!({"path_redirect": "/new?own=1", "strip_query": true})),
        away("/fix", json!({"prefix_rewrite": "/new"})),
        away("/slash", json!({"prefix_rewrite": "/"})),
        away("/strip", json!({"strip_query": true})),
        away("/regex", json!({"regex_rewrite": {"pattern": "^/regex/(\\w+)/(\\w+)", "substitution": "/\\2/\\1"}})),
        away("/302", json!({"response_code": 302})),
        away("/303", json!({"response_code": 303, "host_redirect": "h"})),
        away("/307", json!({"response_code": 307, "host_redirect": "h"})),
        away("/308", json!({"response_code": 308, "host_redirect": "h"})),
        away("/", json!({"https_redirect": true, "host_redirect": "last.test", "path_redirect": "/x"})),
    ]
}

fn rewrite_rows() -> Vec<Value> {
    let regex = |pattern: &str, substitution: &str| json!({"regex_rewrite": {"pattern": pattern, "substitution": substitution}});
    vec![
        to(json!({"prefix": "/foo/"}), json!({"prefix_rewrite": "/"})),
        to(json!({"prefix": "/foo"}), json!({"prefix_rewrite": "/"})),
        to(json!({"prefix": "/bar"}), json!({"prefix_rewrite": "/baz"})),
        to(json!({"prefix": "/Any", "case_sensitive": false}), json!({"prefix_rewrite": "/every"})),
        to(json!({"path": "/same"}), json!({"prefix_rewrite": "/same"})),
        to(json!({"path": "/exact"}), json!({"prefix_rewrite": "/other"})),
        to(json!({"path_separated_prefix": "/sep"}), json!({"prefix_rewrite": "/s"})),
        to(json!({"safe_regex": "/x+/.*"}), json!({"prefix_rewrite": "/y"})),
        to(json!({"prefix": "/swap"}), regex("^/swap/(\\w+)/(\\w+)", "/\\2/\\1")),
        to(json!({"prefix": "/all"}), regex("a", "\\0\\0")),
        to(json!({"prefix": "/query"}), json!({"prefix_rewrite": "/new?own=1"})),
        to(json!({"path_template": "/tmpl/{a}/{b=**}"}), json!({"path_template_rewrite": "/{b}/{a}"})),
        to(json!({"prefix": "/literal"}), json!({"host_rewrite_literal": "new.test", "append_x_forwarded_host": true})),
        to(
            json!({"prefix": "/samehost"}),
            json!({"host_rewrite_literal": "rewrite.test", "append_x_forwarded_host": true}),
        ),
        to(json!({"prefix": "/header"}), json!({"host_rewrite_header": "x-host", "append_x_forwarded_host": true})),
        to(json!({"prefix": "/plainhost"}), json!({"host_rewrite_literal": "new.test"})),
    ]
}

fn cluster_rows() -> Vec<Value> {
    let weights = |a: u32, b: u32, c: u32| json!({"weighted_clusters": [{"name": "a", "weight": a}, {"name": "b", "weight": b}, {"name": "c", "weight": c}]});
    vec![
        to(json!({"prefix": "/first"}), weights(1, 0, 0)),
        to(json!({"prefix": "/middle"}), weights(0, 7, 0)),
        to(json!({"prefix": "/last"}), weights(0, 0, 4_294_967_295)),
        to(json!({"prefix": "/named"}), json!({"cluster_header": "x-cluster"})),
        to(json!({"prefix": "/404"}), json!({"cluster_header": "x-cluster", "cluster_not_found_response_code": 404})),
        to(json!({"prefix": "/500"}), json!({"cluster_header": "x-cluster", "cluster_not_found_response_code": 500})),
        to(json!({"prefix": "/empty"}), json!({"cluster": "empty"})),
        to(json!({"prefix": "/refused"}), json!({"cluster": "refused"})),
        to(
            json!({"prefix": "/retried"}),
            json!({"cluster": "refused", "retry_policy": {"retry_on": "connect-failure"}}),
        ),
        to(json!({"prefix": "/slow"}), json!({"cluster": "a", "timeout": "0.2s"})),
        to(
            json!({"prefix": "/tries"}),
            json!({"cluster": "a", "timeout": "0.4s", "retry_policy": {"retry_on": "5xx", "per_try_timeout": "0.1s"}}),
        ),
        to(json!({"prefix": "/idle"}), json!({"cluster": "a", "idle_timeout": "0.2s"})),
        to(json!({"prefix": "/"}), json!({"cluster": "a"})),
    ]
}

fn direct_rows() -> Vec<Value> {
    let row = |path: &str, status: u16, body: &str| json!({"match": {"prefix": path}, "direct_response": {"status": status, "body": body}});
    vec![
        row("/200", 200, "hello"),
        row("/204", 204, ""),
        row("/503", 503, "down"),
        row("/empty", 200, ""),
        row("/301", 301, ""),
        row("/201", 201, "made"),
        json!({
            "match": {"prefix": "/typed"}, "direct_response": {"status": 200, "body": "{}"},
            "response_headers_to_add": [{"key": "content-type", "value": "application/json", "append_action": "overwrite_if_exists_or_add"}],
        }),
    ]
}

/// Changes of one scope: what each scope says is seen in what wins.
fn scope(name: &str) -> Value {
    let add = |key: &str, action: &str| json!({"key": key, "value": name, "append_action": action});
    let all = [
        add("x-append", "append_if_exists_or_add"),
        add("x-overwrite", "overwrite_if_exists_or_add"),
        add("x-absent", "add_if_absent"),
        add("x-exists", "overwrite_if_exists"),
        add(&format!("x-{name}"), "append_if_exists_or_add"),
    ];
    json!({
        "request_headers_to_add": all, "response_headers_to_add": all,
        "request_headers_to_remove": ["x-remove", format!("x-remove-{name}"), "x-both"],
        "response_headers_to_remove": ["x-mixed-case"],
    })
}

fn with(mut object: Value, more: Value) -> Value {
    let fields = object.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    object
}

fn main_table() -> Value {
    let plain = |name: &str| vec![say(json!({"prefix": "/"}), name)];
    let scoped = vec![
        with(to(json!({"prefix": "/on"}), json!({})), scope("route")),
        with(say(json!({"prefix": "/direct"}), "direct"), scope("route")),
        with(away("/away", json!({"path_redirect": "/new"})), scope("route")),
        to(json!({"prefix": "/bare"}), json!({})),
    ];
    json!({
        "name": "main",
        "response_headers_to_add": [{"key": "x-table", "value": "main"}],
        "virtual_hosts": [
            host("path", &["path.test"], path_rows()),
            host("header", &["header.test"], header_rows()),
            host("query", &["query.test"], query_rows()),
            host("redirect", &["redirect.test", "redirect.test:80", "redirect.test:8000", "redirect.test:443", "[::1]:80"], redirect_rows()),
            host("rewrite", &["rewrite.test"], rewrite_rows()),
            host("cluster", &["cluster.test"], cluster_rows()),
            host("direct", &["direct.test"], direct_rows()),
            with(host("scoped", &["scoped.test"], scoped), scope("vhost")),
            with(host("tls", &["tls.test"], plain("tls")), json!({"require_tls": "all"})),
            host("no rows", &["none.test"], vec![]),
            host("suffix", &["*.foo.test"], plain("*.foo.test")),
            host("longer suffix", &["*.bar.foo.test"], plain("*.bar.foo.test")),
            host("dash", &["*-x.foo.test"], plain("*-x.foo.test")),
            host("exact", &["www.foo.test", "Upper.Test"], plain("www.foo.test")),
            host("prefix", &["pre.*"], plain("pre.*")),
            host("longer prefix", &["pre.fix.*"], plain("pre.fix.*")),
            host("port", &["port.test:8080"], plain("port.test:8080")),
        ],
    })
}

fn options_table() -> Value {
    let scoped = vec![with(to(json!({"prefix": "/on"}), json!({})), scope("route"))];
    with(
        json!({
            "name": "options", "ignore_port_in_host_matching": true, "most_specific_header_mutations_wins": true,
            "virtual_hosts": [
                with(host("scoped", &["scoped.test"], scoped), scope("vhost")),
                with(host("external", &["external.test"], vec![say(json!({"prefix": "/"}), "external")]), json!({"require_tls": "external_only"})),
                host("redirect", &["redirect.test"], redirect_rows()),
                host("any", &["*"], vec![
                    say(json!({"prefix": "/say"}), "any"),
                    say(json!({"path": "/a/b"}), "a/b"),
                    to(json!({"prefix": "/"}), json!({})),
                ]),
            ],
        }),
        scope("table"),
    )
}
