//! waylay in all the ways in which it is measured, and what its admin socket says.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// How connections come to it, and what it does beside passing them on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Clients connect to its ports.
    Explicit,
    /// ... and it writes an access log into a file.
    Logged,
    /// The kernel takes the connections of a control group.
    Transparent,
    /// ... and chooses the endpoint itself, where listeners need no bytes.
    Kernel,
    /// The kernel takes the connections of pods.
    Pods,
    /// Takes what goes to one port of [`ELSEWHERE`] to another server of this namespace; for the cost of connect(2).
    Redirecting,
}

/// An address at which nobody listens.
pub const ELSEWHERE: &str = "127.77.0.1";

/// Where [`Flavour::Redirecting`] sends what it takes.
pub const REDIRECTED_TO: &str = "127.0.0.1:9102";

/// Original destinations: bytes, requests, much bytes, connections alone.
pub const VIRTUAL: [u16; 4] = [8001, 8002, 8009, 8101];

const ANSWER_LIMIT: Duration = Duration::from_secs(20);

impl Flavour {
    /// Those that serve the cases of traffic.
    pub const SERVING: [Self; 4] = [Self::Explicit, Self::Transparent, Self::Kernel, Self::Logged];

    /// The system's name in results.
    pub fn id(self) -> &'static str {
        match self {
            Self::Explicit => "waylay",
            Self::Logged => "waylay-logged",
            Self::Transparent => "waylay-transparent",
            Self::Kernel => "waylay-kernel",
            Self::Pods => "waylay-pods",
            Self::Redirecting => "waylay-redirecting",
        }
    }

    /// The control group of the agent itself.
    pub fn agents_group(self) -> String {
        format!("{}-agent", self.id())
    }

    pub fn intercepts(self) -> bool {
        !matches!(self, Self::Explicit | Self::Logged)
    }

    /// The first of its ports.
    pub fn ports(self) -> u16 {
        match self {
            Self::Explicit => 7400,
            Self::Logged => 7500,
            Self::Transparent => 7600,
            Self::Kernel => 7700,
            Self::Pods => 8400,
            Self::Redirecting => 8500,
        }
    }

    pub fn access_log(self, folder: &Path) -> String {
        match self {
            Self::Logged => format!("[{{path: {}}}]", folder.join("access.log").display()),
            _ => "[]".to_owned(),
        }
    }

    pub fn intercept(self, group: &str, folder: &Path) -> String {
        match self {
            Self::Explicit | Self::Logged => String::new(),
            Self::Redirecting => {
                format!(
                    "intercept: {{cgroup: {group}, redirect_to: [\"{REDIRECTED_TO}\"], outbound: {{include: [{{ports: [8101]}}], exclude: [{{cidr: \"::/0\"}}]}}}}\n"
                )
            }
            Self::Transparent | Self::Kernel => format!("intercept: {{cgroup: {group}}}\n"),
            Self::Pods => format!(
                "intercept: {{cgroup: {group}, outbound: {{include: [{{cidr: {ELSEWHERE}/32}}]}}, pods: {{runtimes: [\"docker://{}\"]}}}}\n",
                folder.join("runtime.sock").display()
            ),
        }
    }

    /// Limits of connections and requests that no case comes near; a listener that the kernel dispatches has none.
    pub fn limits(self) -> &'static str {
        match self {
            Self::Kernel => "{}",
            _ => "{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}",
        }
    }

    pub fn listeners(self) -> String {
        let chains = [
            "{tcp_proxy: {cluster: c}}",
            "{http: {route_config: r}}",
            "{tcp_proxy: {cluster: bulk}}",
            "{tcp_proxy: {cluster: sink}}",
        ];
        if !self.intercepts() {
            let first = self.ports();
            let rows = chains.iter().zip([1, 2, 9, 11]).map(|(chain, port)| {
                let port = first + port;
                format!("  - {{name: l{port}, address: \"0.0.0.0:{port}\", default_filter_chain: {chain}}}\n")
            });
            return rows.collect();
        }
        let bound = self.ports() + 10;
        let mut text = format!(
            "  - {{name: outbound, address: \"127.0.0.1:{bound}\", use_original_dst: true, default_filter_chain: {{tcp_proxy: {{cluster: passthrough}}}}}}\n"
        );
        if self == Self::Redirecting {
            // The agent only intercepts: what it would serve is another's.
            return "  []\n".to_owned();
        }
        for (chain, port) in chains.iter().zip(VIRTUAL) {
            let dispatch = if self == Self::Kernel && chain.contains("tcp_proxy") { "dispatch: kernel, " } else { "" };
            text += &format!(
                "  - {{name: l{port}, address: \"0.0.0.0:{port}\", bind_to_port: false, {dispatch}default_filter_chain: {chain}}}\n"
            );
        }
        text
    }
}

/// Asks the admin socket; the body of the answer.
pub fn ask(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot reach {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    // HTTP/1.0, so that the answer has no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: waylay\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    anyhow::ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// A number of `/stats/prometheus`, without labels; 0 if it is not there.
pub fn statistic(socket: &Path, name: &str) -> f64 {
    let text = ask(socket, "/stats/prometheus").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}
