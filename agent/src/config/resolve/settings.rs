//! What is neither listener, route nor cluster: admin and access log.

use std::path::PathBuf;

use super::Resolver;
use crate::config::diagnostic::Path;
use crate::config::raw::{AccessLog as RawAccessLog, Config};
use crate::snapshot::{AccessLog, Admin};

/// Bytes of a unix socket's path: `sun_path` has 108, the last one is zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Resolves `admin`.
pub fn admin(resolver: &mut Resolver<'_>, config: &Config) -> Option<Admin> {
    let path = Path::ROOT.field("admin");
    let raw = &config.admin;
    let mut ok = Some(());
    if raw.socket.is_empty() || raw.socket.len() > MAX_SOCKET_PATH_BYTES {
        let message =
            format!("a unix socket's path has 1 to {MAX_SOCKET_PATH_BYTES} bytes, this has {}", raw.socket.len());
        resolver.error(&path.field("socket"), message);
        ok = None;
    }
    let (prometheus, readiness) = (raw.prometheus.0, raw.readiness.0);
    if prometheus.is_some() && prometheus == readiness {
        resolver.error(&path.field("readiness"), "`prometheus` and `readiness` need addresses of their own");
        ok = None;
    }
    for (field, address) in [("prometheus", prometheus), ("readiness", readiness)] {
        let taken = config.listeners.iter().find(|listener| listener.bind_to_port && Some(listener.address) == address);
        if let Some(listener) = taken {
            let message = format!("{} is the address of listener `{}` already", listener.address, listener.name);
            resolver.error(&path.field(field), message);
            ok = None;
        }
    }
    ok.map(|()| Admin { socket: PathBuf::from(&raw.socket), prometheus, readiness })
}

/// Resolves `access_log`.
pub fn access_log(resolver: &mut Resolver<'_>, logs: &[RawAccessLog], path: &Path<'_>) -> Option<Vec<AccessLog>> {
    resolver.each(logs, path, |resolver, raw, path| {
        if raw.path.is_empty() {
            resolver.error(&path.field("path"), "an access log needs a path, such as /dev/stdout");
            return None;
        }
        Some(AccessLog { path: PathBuf::from(&raw.path), format: raw.format })
    })
}
