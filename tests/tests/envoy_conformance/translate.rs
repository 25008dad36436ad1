//! The agent's configuration, written as Envoy's: the same tables, so that both can be asked the same.
//!
//! Only what the tables of this test use. What it does not know passes as it is, and Envoy refuses it.

use serde_json::{Map, Value, json};

/// Envoy's own address: the agent has the next one, so that both serve the same ports.
pub const ENVOY: &str = "127.0.0.2";
/// The agent's address.
pub const WAYLAY: &str = "127.0.0.3";

const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";

/// Envoy's bootstrap for `config`.
pub fn bootstrap(config: &Value) -> Value {
    let tables = config["route_configs"].as_array().expect("route_configs");
    json!({"static_resources": {
        "listeners": each(&config["listeners"], |wanted| listener(wanted, tables)),
        "clusters": each(&config["clusters"], cluster),
    }})
}

fn each(list: &Value, translate: impl Fn(&Value) -> Value) -> Vec<Value> {
    list.as_array().map(|items| items.iter().map(translate).collect()).unwrap_or_default()
}

/// `object` with each field passed through `translate`, which gives name and value.
fn fields(object: &Value, translate: impl Fn(&str, &Value) -> (&'static str, Value)) -> Value {
    let mut all = Map::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        let (new, value) = translate(name, value);
        all.insert(if new.is_empty() { name.clone() } else { new.to_owned() }, value);
    }
    Value::Object(all)
}

fn address(text: &str) -> Value {
    let (host, port) = text.rsplit_once(':').expect("IP:PORT");
    let host = if host == WAYLAY { ENVOY } else { host };
    json!({"socket_address": {"address": host, "port_value": port.parse::<u16>().expect("a port")}})
}

fn cluster(cluster: &Value) -> Value {
    let endpoints = each(
        &cluster["endpoints"],
        |endpoint| json!({"endpoint": {"address": address(endpoint.as_str().expect("an address"))}}),
    );
    json!({
        "name": cluster["name"], "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": cluster["name"], "endpoints": [{"lb_endpoints": endpoints}]},
    })
}

fn listener(listener: &Value, tables: &[Value]) -> Value {
    let mut new = json!({
        "name": listener["name"],
        "address": address(listener["address"].as_str().expect("an address")),
        "listener_filters": each(&listener["listener_filters"], |filter| {
            let (name, title) = match filter.as_str() {
                Some("tls_inspector") => ("tls_inspector", "TlsInspector"),
                _ => ("http_inspector", "HttpInspector"),
            };
            json!({
                "name": format!("envoy.filters.listener.{name}"),
                "typed_config": {"@type": format!("{TYPES}.listener.{name}.v3.{title}")},
            })
        }),
        "filter_chains": each(&listener["filter_chains"], |wanted| chain(wanted, tables)),
    });
    if let Some(default) = listener.get("default_filter_chain") {
        new["default_filter_chain"] = chain(default, tables);
    }
    new
}

fn chain(chain: &Value, tables: &[Value]) -> Value {
    let filter = match (chain.get("http"), chain.get("tcp_proxy")) {
        (Some(http), _) => json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": http_connection_manager(http, tables),
        }),
        (None, proxy) => {
            let mut config = proxy.expect("http or tcp_proxy").clone();
            config["@type"] = format!("{TYPES}.network.tcp_proxy.v3.TcpProxy").into();
            config["stat_prefix"] = "tcp".into();
            json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": config})
        }
    };
    let criteria = chain.get("match").map(|criteria| {
        fields(criteria, |name, value| match name {
            "prefix_ranges" | "source_prefix_ranges" | "direct_source_prefix_ranges" => ("", each(value, range).into()),
            "source_type" => ("", value.as_str().expect("a word").to_uppercase().into()),
            _ => ("", value.clone()),
        })
    });
    json!({"filter_chain_match": criteria.unwrap_or(json!({})), "filters": [filter]})
}

fn range(cidr: &Value) -> Value {
    let (address, length) = cidr.as_str().and_then(|text| text.split_once('/')).expect("a CIDR");
    json!({"address_prefix": address, "prefix_len": length.parse::<u8>().expect("a length")})
}

fn http_connection_manager(http: &Value, tables: &[Value]) -> Value {
    let named = |name: &Value| tables.iter().find(|table| table["name"] == *name).expect("a route table");
    let mut new = fields(http, |name, value| match name {
        "route_config" => ("", route_config(named(value))),
        "accept_http_10" => ("http_protocol_options", json!({"accept_http_10": value})),
        "max_headers_count" => ("common_http_protocol_options", json!({"max_headers_count": value})),
        "upgrades" => ("upgrade_configs", each(value, |kind| json!({"upgrade_type": kind})).into()),
        _ => ("", value.clone()),
    });
    // The agent's default.
    if new.get("upgrade_configs").is_none() {
        new["upgrade_configs"] = json!([{"upgrade_type": "websocket"}]);
    }
    new["@type"] = format!("{TYPES}.network.http_connection_manager.v3.HttpConnectionManager").into();
    new["stat_prefix"] = "http".into();
    new["http_filters"] = json!([{
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{TYPES}.http.router.v3.Router")},
    }]);
    new
}

fn route_config(table: &Value) -> Value {
    with_headers(table, |name, value| match name {
        "virtual_hosts" => Some(("", each(value, virtual_host).into())),
        _ => None,
    })
}

fn virtual_host(host: &Value) -> Value {
    with_headers(host, |name, value| match name {
        "routes" => Some(("", each(value, route).into())),
        "require_tls" => Some(("", value.as_str().expect("a word").to_uppercase().into())),
        _ => None,
    })
}

/// The header changes that all three scopes have, and `others`.
fn with_headers(object: &Value, others: impl Fn(&str, &Value) -> Option<(&'static str, Value)>) -> Value {
    fields(object, |name, value| match name {
        "request_headers_to_add" | "response_headers_to_add" => ("", each(value, addition).into()),
        _ => others(name, value).unwrap_or(("", value.clone())),
    })
}

fn addition(addition: &Value) -> Value {
    let mut new = json!({"header": {"key": addition["key"], "value": addition["value"]}});
    if let Some(action) = addition["append_action"].as_str() {
        new["append_action"] = action.to_uppercase().into();
    }
    new
}

fn route(row: &Value) -> Value {
    with_headers(row, |name, value| {
        Some(match name {
            "match" => ("", matches(value)),
            "route" => ("", action(value)),
            "redirect" => ("", redirect(value)),
            "direct_response" => ("", direct_response(value)),
            _ => return None,
        })
    })
}

fn direct_response(response: &Value) -> Value {
    fields(response, |name, value| match name {
        "body" => ("", json!({"inline_string": value})),
        _ => ("", value.clone()),
    })
}

fn template(kind: &str, field: &str, title: &str, value: &Value) -> Value {
    json!({
        "name": format!("envoy.path.{kind}.uri_template"),
        "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.path.{kind}.uri_template.v3.{title}"),
            field: value,
        },
    })
}

fn matches(matches: &Value) -> Value {
    let mut new = fields(matches, |name, value| match name {
        "safe_regex" => ("", json!({"regex": value})),
        "path_template" => ("path_match_policy", template("match", "path_template", "UriTemplateMatchConfig", value)),
        "grpc" => ("", json!({})),
        "runtime_fraction" => ("", json!({"default_value": value})),
        "headers" => ("", each(value, header_match).into()),
        "query_parameters" => ("", each(value, query_match).into()),
        _ => ("", value.clone()),
    });
    if let Some(methods) = new.as_object_mut().and_then(|new| new.remove("methods")) {
        let methods: Vec<_> = methods.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let condition = json!({"name": ":method", "string_match": {"safe_regex": {"regex": methods.join("|")}}});
        match new.get_mut("headers").and_then(Value::as_array_mut) {
            Some(headers) => headers.push(condition),
            None => new["headers"] = json!([condition]),
        }
    }
    new
}

/// The kind of a text match, with `ignore_case`, one level deeper.
fn string_match(object: &Value) -> Map<String, Value> {
    let mut inner = Map::new();
    let mut outer = Map::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        match name.as_str() {
            "exact" | "prefix" | "suffix" | "contains" | "ignore_case" => inner.insert(name.clone(), value.clone()),
            "safe_regex" => inner.insert(name.clone(), json!({"regex": value})),
            "range" => outer.insert("range_match".to_owned(), value.clone()),
            "present" => outer.insert("present_match".to_owned(), value.clone()),
            "invert" => outer.insert("invert_match".to_owned(), value.clone()),
            _ => outer.insert(name.clone(), value.clone()),
        };
    }
    if !inner.is_empty() {
        outer.insert("string_match".to_owned(), inner.into());
    }
    outer
}

fn header_match(header: &Value) -> Value {
    string_match(header).into()
}

fn query_match(query: &Value) -> Value {
    string_match(query).into()
}

fn regex_rewrite(rewrite: &Value) -> Value {
    json!({"pattern": {"regex": rewrite["pattern"]}, "substitution": rewrite["substitution"]})
}

fn action(action: &Value) -> Value {
    fields(action, |name, value| match name {
        "weighted_clusters" => ("", json!({"clusters": value})),
        "regex_rewrite" => ("", regex_rewrite(value)),
        "path_template_rewrite" => {
            ("path_rewrite_policy", template("rewrite", "path_template_rewrite", "UriTemplateRewriteConfig", value))
        }
        "cluster_not_found_response_code" => {
            ("", if *value == 404 { "NOT_FOUND" } else { "INTERNAL_SERVER_ERROR" }.into())
        }
        _ => ("", value.clone()),
    })
}

fn redirect(redirect: &Value) -> Value {
    fields(redirect, |name, value| match name {
        "regex_rewrite" => ("", regex_rewrite(value)),
        "response_code" => {
            let word = match value.as_u64() {
                Some(302) => "FOUND",
                Some(303) => "SEE_OTHER",
                Some(307) => "TEMPORARY_REDIRECT",
                Some(308) => "PERMANENT_REDIRECT",
                _ => "MOVED_PERMANENTLY",
            };
            ("", word.into())
        }
        _ => ("", value.clone()),
    })
}
