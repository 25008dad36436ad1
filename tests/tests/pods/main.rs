//! Pods in network namespaces of their own: enrolled, taken from and served there, both directions, and let go.

mod lifecycle;
mod traffic;

use serde_json::Value;
use waylay_tests::pods::{Node, Pod};
use waylay_tests::{Agent, eventually};

const INJECT: &[(&str, &str)] = &[("waylay.io/inject", "true"), ("app", "shop")];

/// Port 8080 is served as HTTP in both directions; all else passes as bytes.
fn config(node: &Node<'_>) -> String {
    config_with(node, "", "{prefix: /}")
}

fn config_with(node: &Node<'_>, intercept: &str, inbound_match: &str) -> String {
    format!(
        "
intercept:
  cgroup: '@CGROUP@'
  inbound: {{}}
  pods: {{runtimes: ['{runtime}'], poll_interval: 1s}}
{intercept}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - name: outbound_8080
    address: 0.0.0.0:8080
    bind_to_port: false
    listener_filters: [http_inspector]
    filter_chains:
      - match: {{application_protocols: [http/1.1, h2c]}}
        http: {{route_config: outbound}}
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
  - name: virtualInbound
    address: 127.0.0.1:15006
    traffic_direction: inbound
    listener_filters: [http_inspector]
    filter_chains:
      - match: {{destination_port: 8080, application_protocols: [http/1.1, h2c]}}
        http: {{route_config: inbound}}
      - match: {{destination_port: 9999}}
        tcp_proxy: {{cluster: local}}
    default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}
route_configs:
  - name: outbound
    virtual_hosts:
      - {{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: passthrough}}}}]}}
  - name: inbound
    virtual_hosts:
      - name: all
        domains: ['*']
        routes:
          - {{match: {inbound_match}, route: {{cluster: passthrough}}}}
          - {{match: {{prefix: /}}, direct_response: {{status: 403, body: 'not for you'}}}}
clusters:
  - {{name: passthrough, type: original_dst}}
  - {{name: local, type: static, endpoints: ['127.0.0.1:9999']}}
",
        runtime = node.runtime()
    )
}

fn enrolled(agent: &Agent) -> Vec<String> {
    let pods: Value = serde_json::from_str(&agent.cli(&["pods", "-o", "json"]).success()).expect("JSON");
    let rows = pods["pods"].as_array().expect("an array").iter();
    let name = |row: &Value| row["name"].as_str().unwrap_or("").trim_start_matches("docker/").to_owned();
    rows.filter(|row| row["state"] == "enrolled").map(name).collect()
}

#[track_caller]
fn wait_enrolled(agent: &Agent, names: &[&str]) {
    eventually(&format!("{names:?} are enrolled, got {:?}", enrolled(agent)), || enrolled(agent) == names);
}

fn get(pod: &Pod<'_>, url: &str) -> String {
    pod.run("curl", &["-sS", "--max-time", "10", url]).success()
}

/// The value in the exposition of a pod's statistic; `None` when it is not there. `more` are labels besides its own.
fn pod_metric(agent: &Agent, name: &str, pod: &str, direction: &str, more: &str) -> Option<u64> {
    let (_, text) = agent.get("/stats/prometheus").expect("metrics");
    let series =
        format!("waylay_pod_downstream_{name}{{namespace=\"docker\",pod=\"{pod}\",direction=\"{direction}\"{more}}} ");
    text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
}
