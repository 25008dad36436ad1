//! "Did you mean": the name that was meant, and what became of fields that Envoy has and this configuration has not.

/// Two names this much alike (1 is equal) may be a slip. `clusterr` and `cluster` are 0.97 alike, `path` and `prefix`
/// 0.58.
const ALIKE: f64 = 0.75;

/// `: did you mean `x`?` for the candidate that is most like `name`, or nothing when none is.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    match closest(name, candidates) {
        Some(candidate) => format!(": did you mean `{candidate}`?"),
        None => String::new(),
    }
}

/// The candidate that is most like `name`, if one is.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// What takes the place of a field of Envoy's that is spelled otherwise here.
pub fn instead_of(field: &str) -> Option<&'static str> {
    let text = match field {
        "<<" => "merge keys are not supported: write the fields out, or use an alias for a whole value",
        "@type" | "typed_config" | "typed_extension_protocol_options" => {
            "there is no typed_config here: its fields stand directly where it would stand"
        }
        "filters" => "write `tcp_proxy: {...}` or `http: {...}` directly in the filter chain",
        "filter_chain_match" => "it is called `match` here",
        "load_assignment" | "hosts" | "lb_endpoints" => "list the endpoints directly: `endpoints: [IP:PORT, ...]`",
        "socket_address" => "write the address as IP:PORT",
        "http_connection_manager" => "it is called `http` here",
        "route_config_name" | "rds" => "name it directly: `route_config: NAME`",
        "http_filters" => "HTTP filters are not supported; routing needs none",
        "thresholds" => "write its fields directly below `circuit_breakers`",
        "path_match_policy" => "it is called `path_template` here",
        "path_rewrite_policy" => "it is called `path_template_rewrite` here",
        "string_match" => "write its kind directly beside the name: `{name: x-user, exact: jason}`",
        "exact_match" => "it is called `exact` here",
        "prefix_match" => "it is called `prefix` here",
        "suffix_match" => "it is called `suffix` here",
        "contains_match" => "it is called `contains` here",
        "safe_regex_match" => "it is called `safe_regex` here",
        "inline_string" => "write the body directly: `body: text`",
        "outlier_detection"
        | "request_mirror_policies"
        | "cors"
        | "rate_limits"
        | "priority"
        | "transport_socket"
        | "tls_context"
        | "eds_cluster_config" => "this is not supported",
        _ => return None,
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_different_word_is_not() {
        let fields = ["cluster", "weighted_clusters", "prefix_rewrite", "timeout"];
        assert_eq!(closest("clutser", fields), Some("cluster"));
        assert_eq!(closest("timeuot", fields), Some("timeout"));
        assert_eq!(closest("prefixRewrite", fields), Some("prefix_rewrite"));
        assert_eq!(closest("mirror", fields), None);
        assert_eq!(did_you_mean("x", []), "");
    }
}
