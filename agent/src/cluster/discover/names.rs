//! Names to addresses: the hosts file first, then the name servers of `resolv.conf`.
//!
//! Before: one name of a `strict_dns` cluster. After: its addresses and how long they hold. Both files are read anew
//! when they changed, so that an agent started before the network was up finds its name servers later.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, system_conf};
use tokio::net::{TcpStream, UdpSocket};

use crate::cluster::DnsLookupFamily;
use crate::cluster::connect::open;
use crate::place::Behalf;
use crate::worker::Shared;

/// Resolves names as the system is configured to.
pub(in crate::cluster) struct Names {
    hosts: PathBuf,
    servers: Servers,
    provider: Stamped,
    /// The resolver, with the text it was made from.
    made: Mutex<Option<(Vec<u8>, SharedResolver)>>,
}

type SharedResolver = Arc<Resolver<Stamped>>;

/// Which name servers are asked.
enum Servers {
    /// Those of this file, in the form of `resolv.conf`.
    File(PathBuf),
    /// These.
    #[cfg(test)]
    Given(Box<ResolverConfig>),
}

/// What a name resolved to.
#[derive(Debug)]
pub(in crate::cluster) struct Resolved {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// For how long; `None` when it did not come from a server.
    pub ttl: Option<Duration>,
}

/// Why a name could not be resolved.
#[derive(Debug, thiserror::Error)]
pub(in crate::cluster) enum ResolveError {
    /// It is no name.
    #[error("not a valid host name")]
    Name,
    /// No server, or none that can be used.
    #[error("reading {path}: {reason}")]
    Servers { path: String, reason: String },
    /// What the servers said.
    #[error("{0}")]
    Lookup(NetError),
    /// The hosts file has the name, but no address of the wanted family.
    #[error("no address of the wanted family")]
    NoAddress,
}

impl Names {
    /// By `/etc/hosts` and `/etc/resolv.conf`.
    pub(in crate::cluster) fn of_the_system(shared: &Arc<Shared>) -> Self {
        Self::new("/etc/hosts".into(), Servers::File("/etc/resolv.conf".into()), shared)
    }

    /// With another hosts file and these name servers.
    #[cfg(test)]
    pub(in crate::cluster) fn with_servers(hosts: PathBuf, servers: ResolverConfig, shared: &Arc<Shared>) -> Self {
        Self::new(hosts, Servers::Given(Box::new(servers)), shared)
    }

    fn new(hosts: PathBuf, servers: Servers, shared: &Arc<Shared>) -> Self {
        let provider = Stamped { tokio: TokioRuntimeProvider::default(), shared: shared.clone() };
        Self { hosts, servers, provider, made: Mutex::default() }
    }

    /// The addresses of `host`, of the families that are asked for.
    pub(in crate::cluster) async fn resolve(
        &self,
        host: &str,
        family: DnsLookupFamily,
    ) -> Result<Resolved, ResolveError> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse() {
            return Ok(Resolved { addresses: vec![address], ttl: None });
        }
        let name: Name = host.parse().map_err(|_| ResolveError::Name)?;
        if let Some((v4, v6)) = self.local(&name) {
            let addresses = of_family(family, &name, v4, v6);
            return if addresses.is_empty() {
                Err(ResolveError::NoAddress)
            } else {
                Ok(Resolved { addresses, ttl: None })
            };
        }
        self.ask(name, family).await
    }

    /// What is known without asking a server: the hosts file, and what `localhost` means when it is not in there.
    fn local(&self, name: &Name) -> Option<(Vec<IpAddr>, Vec<IpAddr>)> {
        let mut hosts = Hosts::default();
        // A missing or unreadable hosts file is an empty one, as for the C library.
        if let Ok(file) = std::fs::File::open(&self.hosts) {
            let _ = hosts.read_hosts_conf(file);
        }
        let of = |record_type| {
            let found = hosts.lookup_static_host(&Query::query(name.clone(), record_type));
            found.iter().flat_map(addresses).collect::<Vec<_>>()
        };
        let (v4, v6) = (of(RecordType::A), of(RecordType::AAAA));
        match v4.is_empty() && v6.is_empty() {
            false => Some((v4, v6)),
            true if name.is_localhost() => Some((vec![Ipv4Addr::LOCALHOST.into()], vec![Ipv6Addr::LOCALHOST.into()])),
            true => None,
        }
    }

    async fn ask(&self, name: Name, family: DnsLookupFamily) -> Result<Resolved, ResolveError> {
        let resolver = self.resolver()?;
        let v4 = || resolver.ipv4_lookup(name.clone());
        let v6 = || resolver.ipv6_lookup(name.clone());
        let answers = match family {
            DnsLookupFamily::V4Only => vec![v4().await],
            DnsLookupFamily::V6Only => vec![v6().await],
            DnsLookupFamily::All => {
                let (v4, v6) = tokio::join!(v4(), v6());
                vec![v4, v6]
            }
            DnsLookupFamily::Auto => match v6().await {
                Ok(found) if addresses(&found).next().is_some() => vec![Ok(found)],
                _ => vec![v4().await],
            },
        };
        merge(answers)
    }

    /// The resolver for the name servers as they are configured now.
    fn resolver(&self) -> Result<SharedResolver, ResolveError> {
        let (path, text) = match &self.servers {
            Servers::File(path) => {
                let name = path.display().to_string();
                match std::fs::read(path) {
                    Ok(text) => (name, text),
                    Err(error) => return Err(ResolveError::Servers { path: name, reason: error.to_string() }),
                }
            }
            #[cfg(test)]
            Servers::Given(_) => (String::new(), Vec::new()),
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, resolver)) = made.as_ref().filter(|(made_from, _)| *made_from == text) {
            return Ok(resolver.clone());
        }
        let failed = |error: NetError| ResolveError::Servers { path: path.clone(), reason: error.to_string() };
        let (config, mut options) = match &self.servers {
            Servers::File(_) => system_conf::parse_resolv_conf(&text).map_err(failed)?,
            #[cfg(test)]
            Servers::Given(config) => ((**config).clone(), ResolverOpts::default()),
        };
        // `local` has read the hosts file; and a refresh is meant to ask.
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        let resolver = build(config, options, self.provider.clone()).map_err(failed)?;
        *made = Some((text, resolver.clone()));
        Ok(resolver)
    }
}

fn build(config: ResolverConfig, options: ResolverOpts, provider: Stamped) -> Result<SharedResolver, NetError> {
    Resolver::builder_with_config(config, provider).with_options(options).build().map(Arc::new)
}

/// The addresses of the wanted families. `Auto` prefers IPv6, as Envoy does, but for `localhost`, where a server that
/// listens on 127.0.0.1 alone is the rule.
fn of_family(family: DnsLookupFamily, name: &Name, v4: Vec<IpAddr>, v6: Vec<IpAddr>) -> Vec<IpAddr> {
    match family {
        DnsLookupFamily::V4Only => v4,
        DnsLookupFamily::V6Only => v6,
        DnsLookupFamily::All => [v4, v6].concat(),
        DnsLookupFamily::Auto if v6.is_empty() || (name.is_localhost() && !v4.is_empty()) => v4,
        DnsLookupFamily::Auto => v6,
    }
}

fn addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr())
}

/// All addresses of `answers`, for as long as the shortest-lived of them; the first error when there is none.
fn merge(answers: Vec<Result<Lookup, NetError>>) -> Result<Resolved, ResolveError> {
    let mut merged = Resolved { addresses: Vec::new(), ttl: None };
    let mut error = None;
    for answer in answers {
        match answer {
            Ok(lookup) => {
                merged.addresses.extend(addresses(&lookup));
                let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
                merged.ttl = Some(merged.ttl.map_or(ttl, |shortest| shortest.min(ttl)));
            }
            Err(failed) => {
                error.get_or_insert(failed);
            }
        }
    }
    match error {
        _ if !merged.addresses.is_empty() => Ok(merged),
        Some(error) => Err(ResolveError::Lookup(error)),
        None => Err(ResolveError::NoAddress),
    }
}

/// Tokio's sockets, but for TCP queries, which the kernel's side would otherwise hand to the agent.
#[derive(Clone)]
struct Stamped {
    tokio: TokioRuntimeProvider,
    shared: Arc<Shared>,
}

impl RuntimeProvider for Stamped {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        wait_for: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = Result<Self::Tcp, io::Error>>>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let behalf = Behalf::agent();
            // Not `kernel_attached`: the first answers are awaited before the kernel's side is attached, on the thread
            // that attaches it; until then nothing is intercepted.
            let connecting = open(shared.kernel(), &behalf, server);
            // hickory's own default.
            let wait_for = wait_for.unwrap_or(Duration::from_secs(5));
            let stream = tokio::time::timeout(wait_for, connecting).await.map_err(io::Error::from)??;
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = Result<Self::Udp, io::Error>>>> {
        self.tokio.bind_udp(local, server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture::shared;

    #[tokio::test]
    async fn name_servers_are_found_when_resolv_conf_appears_or_changes() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("resolv.conf");
        let names = Names::new("/nonexistent".into(), Servers::File(path.clone()), &shared(vec![]));
        let error = names.resolve("a.test", DnsLookupFamily::Auto).await.expect_err("no file");
        assert!(error.to_string().contains("resolv.conf: No such file"), "{error}");
        assert!(names.resolve("localhost", DnsLookupFamily::Auto).await.is_ok(), "needs no server");

        std::fs::write(&path, "nameserver 127.77.0.6\n").expect("write");
        let first = names.resolver().expect("resolver");
        assert!(Arc::ptr_eq(&first, &names.resolver().expect("resolver")));
        std::fs::write(&path, "nameserver 127.77.0.7\n").expect("write");
        assert!(!Arc::ptr_eq(&first, &names.resolver().expect("resolver")));
    }
}
