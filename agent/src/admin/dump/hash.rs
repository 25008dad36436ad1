//! What ties requests and connections to endpoints, as Envoy writes it.

use serde_json::{Value, json};

use super::proto::{Object, duration};
use crate::http::route::hash_policy::{HashOn, HashPolicy, HashRule};
use crate::listener::TcpHashPolicy;

/// `RouteAction.hash_policy`.
pub fn http(policy: &HashPolicy) -> Vec<Value> {
    policy.0.iter().map(rule).collect()
}

fn rule(rule: &HashRule) -> Value {
    let object = match &rule.on {
        HashOn::Header(name) => Object::new().with("header", json!({"header_name": name})),
        HashOn::Cookie(cookie) => {
            let path = (!cookie.path.is_empty()).then_some(cookie.path.as_str());
            let fields = Object::new().with("name", cookie.name.as_str()).maybe("ttl", cookie.ttl.map(duration));
            Object::new().with("cookie", fields.maybe("path", path).done())
        }
        HashOn::SourceIp => Object::new().with("connection_properties", json!({"source_ip": true})),
        HashOn::QueryParameter(name) => Object::new().with("query_parameter", json!({"name": name})),
    };
    object.flag("terminal", rule.terminal).done()
}

/// `TcpProxy.hash_policy`.
pub fn tcp(policy: Option<TcpHashPolicy>) -> Vec<Value> {
    policy
        .map(|policy| match policy {
            TcpHashPolicy::SourceIp => json!({"source_ip": {}}),
        })
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::route::hash_policy::HashCookie;

    #[test]
    fn every_kind_is_written_as_envoy_reads_it() {
        let cookie = HashCookie { name: "id".to_owned(), ttl: Some(Duration::ZERO), path: "/".to_owned() };
        for (on, expected) in [
            (HashOn::Header("x-user".to_owned()), json!({"header": {"header_name": "x-user"}, "terminal": true})),
            (HashOn::Cookie(cookie), json!({"cookie": {"name": "id", "ttl": "0s", "path": "/"}, "terminal": true})),
            (HashOn::SourceIp, json!({"connection_properties": {"source_ip": true}, "terminal": true})),
            (HashOn::QueryParameter("q".to_owned()), json!({"query_parameter": {"name": "q"}, "terminal": true})),
        ] {
            assert_eq!(http(&HashPolicy(vec![HashRule { on, terminal: true }])), [expected]);
        }
        assert_eq!(tcp(Some(TcpHashPolicy::SourceIp)), [json!({"source_ip": {}})]);
        assert!(tcp(None).is_empty());
    }
}
