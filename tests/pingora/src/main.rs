//! A reverse proxy on Pingora with the benchmark's three routes, in the shape that Pingora's own guide shows.
//!
//! `bench-pingora PORT`: HTTP/1.1 and cleartext HTTP/2 on that port, one worker thread.

use std::{env, process::ExitCode};

use async_trait::async_trait;
use pingora_core::{
    Result,
    apps::HttpServerOptions,
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use pingora_proxy::{ProxyHttp, Session};

/// `/checkout` goes to the first, requests with `x-canary: true` to the second, everything else to the third.
const ORIGINS: [&str; 3] = ["127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"];

/// More connections to the origins than the benchmark ever has requests in flight.
const POOL: usize = 1024;

struct Routes;

#[async_trait]
impl ProxyHttp for Routes {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, session: &mut Session, _: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        let request = session.req_header();
        let canary = request.headers.get("x-canary").is_some_and(|value| value == "true");
        let origin = match request.uri.path().starts_with("/checkout") {
            true => ORIGINS[0],
            false if canary => ORIGINS[1],
            false => ORIGINS[2],
        };
        Ok(Box::new(HttpPeer::new(origin, false, String::new())))
    }
}

fn main() -> ExitCode {
    let Some(port) = env::args().nth(1).and_then(|port| port.parse::<u16>().ok()) else {
        eprintln!("usage: bench-pingora PORT");
        return ExitCode::FAILURE;
    };
    let conf = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: POOL,
        // The benchmark has no use for what is in flight when it stops it.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = pingora_proxy::http_proxy_service(&server.configuration, Routes);
    if let Some(logic) = proxy.app_logic_mut() {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        logic.server_options = Some(options);
    }
    proxy.add_tcp(&format!("0.0.0.0:{port}"));
    server.add_service(proxy);
    server.run_forever()
}
