//! Configurations that several tests share. `@CGROUP@` becomes the world's cgroup of intercepted programs.

/// Everything is taken and passed on as bytes.
pub const BYTES: &str = "
intercept: {cgroup: '@CGROUP@'}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
clusters:
  - {name: passthrough, type: original_dst}
";

/// Port 8080 is inspected: HTTP is routed (`/checkout` to 9001, `x-canary: true` to 9003, the rest to 9004), anything
/// else passes as bytes.
pub const SHOP: &str = "
intercept: {cgroup: '@CGROUP@'}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
  - name: 0.0.0.0_8080
    address: 0.0.0.0:8080
    bind_to_port: false
    listener_filters: [tls_inspector, http_inspector]
    filter_chains:
      - match: {application_protocols: [http/1.1, h2c]}
        http: {route_config: '8080'}
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
route_configs:
  - name: '8080'
    virtual_hosts:
      - name: shop
        domains: ['*']
        routes:
          - {match: {prefix: /, headers: [{name: x-canary, exact: 'true'}]}, route: {cluster: checkout-v2}}
          - {match: {prefix: /checkout, methods: [GET, POST]}, route: {cluster: checkout-v1}}
          - {match: {prefix: /}, route: {cluster: default-svc}}
clusters:
  - {name: passthrough, type: original_dst}
  - {name: checkout-v1, type: static, endpoints: [127.0.0.1:9001]}
  - {name: checkout-v2, type: static, endpoints: [127.0.0.1:9003]}
  - {name: default-svc, type: static, endpoints: [127.0.0.1:9004]}
";
