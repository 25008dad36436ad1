//! Finds things in a dump whose shape is Envoy's.

use anyhow::bail;
use serde_json::Value;

/// The text at `pointer`, or nothing.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The elements at `pointer`, or none.
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts at `pointer`, or none.
pub fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(value, pointer).iter().filter_map(Value::as_str).collect()
}

/// The number at `pointer`; protobuf's JSON writes 64-bit ones as strings.
pub fn number(value: &Value, pointer: &str) -> Option<u64> {
    let number = value.pointer(pointer)?;
    number.as_u64().or_else(|| number.as_str()?.parse().ok())
}

/// The section of the dump for `message` (`ListenersConfigDump`).
///
/// # Errors
/// There is none: it is not a dump, or was made without it.
pub fn section<'a>(dump: &'a Value, message: &str) -> anyhow::Result<&'a Value> {
    let found = list(dump, "/configs").iter().find(|section| text(section, "/@type").ends_with(message));
    match found {
        Some(section) => Ok(section),
        None => bail!("the dump has no {message}: is it the answer of /config_dump?"),
    }
}

/// What metadata says of the Istio resource that something came from: `name.namespace`.
pub fn istio_resource(value: &Value) -> String {
    let path = text(value, "/metadata/filter_metadata/istio/config");
    let pieces: Vec<_> = path.split('/').collect();
    match pieces.as_slice() {
        ["", "apis", "networking.istio.io", _, "namespaces", namespace, _, name] => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}

/// The first two shortest of several domains and how many more there are, as `istioctl` shortens them: those with a port
/// and the long forms of Kubernetes names count only when there is nothing else.
pub fn short_domains(domains: &[&str]) -> String {
    if let [one] = domains {
        return (*one).to_owned();
    }
    let portless = |domain: &str| !domain.contains(':') || (domain.matches(':').count() > 2 && domain.ends_with(']'));
    let mut shown: Vec<_> = domains.iter().copied().filter(|domain| portless(domain)).collect();
    if shown.is_empty() {
        shown = domains.to_vec();
    }
    let all = shown.clone();
    shown.retain(|domain| {
        let shorter = [".svc.cluster.local", ".svc"].iter().filter_map(|suffix| domain.strip_suffix(suffix));
        !shorter.into_iter().any(|short| all.contains(&short))
    });
    if shown.len() <= 2 {
        return shown.join(", ");
    }
    shown.sort_by_key(|domain| domain.len());
    format!("{} + {} more...", shown[..2].join(", "), shown.len() - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_shortened_as_istioctl_does() {
        for (domains, expected) in [
            (&["*"][..], "*"),
            (&[], ""),
            (&["shop:80"], "shop:80"),
            (&["shop", "shop:80"], "shop"),
            (&["a:1", "b:2"], "a:1, b:2"),
            (&["httpbin.default.svc.cluster.local", "httpbin.default", "httpbin.default.svc"], "httpbin.default"),
            (&["longest.example", "a.example", "bb.example"], "a.example, bb.example + 1 more..."),
        ] {
            assert_eq!(short_domains(domains), expected, "{domains:?}");
        }
    }

    #[test]
    fn the_virtual_service_is_named_after_its_metadata() {
        let path = "/apis/networking.istio.io/v1alpha3/namespaces/default/virtual-service/bookinfo";
        let route = serde_json::json!({"metadata": {"filter_metadata": {"istio": {"config": path}}}});
        assert_eq!(istio_resource(&route), "bookinfo.default");
        assert_eq!(istio_resource(&serde_json::json!({})), "");
    }
}
