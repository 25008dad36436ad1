//! The admin socket: a unix socket that nobody but root and the agent's own user may open.
//!
//! Before: the configured path. After: [`super::serve`]. The directory is made with mode 0700, the socket has 0600,
//! and the kernel is asked for each peer's user besides. What a dead agent left is replaced; a living one is an error.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Its directory cannot be made or opened.
    #[error("preparing the directory {}{}", path.display(), with_sudo(source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another agent serves it.
    #[error("an agent {} already serves {}: stop it, or give this one another `admin.socket`", Pid(*pid), path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The other agent; `None` when it does not accept.
        pid: Option<i32>,
    },
    /// Something else lies there.
    #[error("{} exists and is no socket: remove it, or change `admin.socket`", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("binding {}{}", path.display(), with_sudo(source))]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The remedy that a user needs who started the agent as himself.
fn with_sudo(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied { " (run with sudo, or change `admin.socket`)" } else { "" }
}

struct Pid(Option<i32>);

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "(pid {pid})"),
            None => f.write_str("that does not answer"),
        }
    }
}

/// The bound socket; its file is removed when this is dropped, unless somebody has replaced it.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl AdminSocket {
    /// Binds `path`.
    ///
    /// # Errors
    /// Another agent serves it, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let error = |source| SocketError::Bind { path: path.to_owned(), source };
        // Two agents that start at once must not both take the socket of a third, dead one for theirs to replace.
        let _lock = lock_directory(path)?;
        clear(path)?;
        let listener = UnixListener::bind(path).map_err(error)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        let metadata = fs::symlink_metadata(path).map_err(error)?;
        Ok(Self { path: path.to_owned(), listener, file: (metadata.dev(), metadata.ino()) })
    }

    /// For a runtime to accept from, while this keeps the file.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the admin socket could not be removed");
        }
    }
}

/// Holds an exclusive lock on the directory of `path`, which it makes when it is missing.
fn lock_directory(path: &Path) -> Result<Flock<File>, SocketError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let error = |source| SocketError::Directory { path: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(error)?;
    let file = File::open(directory).map_err(error)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| error(errno.into()))
}

/// Removes what a dead agent left at `path`.
fn clear(path: &Path) -> Result<(), SocketError> {
    let error = |source| SocketError::Bind { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(other) => return Err(error(other)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::Occupied { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(error)?;
    // An agent that hangs has a full accept queue: asking it must not hang as well.
    probe.set_nonblocking(true).map_err(error)?;
    match probe.connect(&SockAddr::unix(path).map_err(error)?) {
        Ok(()) => {
            let pid = getsockopt(&probe, PeerCredentials).ok().map(|peer| peer.pid());
            Err(SocketError::InUse { path: path.to_owned(), pid })
        }
        Err(busy) if busy.raw_os_error() == Some(Errno::EAGAIN as i32) => {
            Err(SocketError::InUse { path: path.to_owned(), pid: None })
        }
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(error),
        Err(other) => Err(error(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_only_and_goes_with_it() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("waylay/admin.sock");
        let socket = AdminSocket::bind(&path).expect("socket");
        let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("directory"))), (0o600, 0o700));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_living_agent_is_named_and_a_dead_ones_socket_replaced() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("admin.sock");
        let living = AdminSocket::bind(&path).expect("socket");
        let error = AdminSocket::bind(&path).expect_err("in use").to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        // A dead agent leaves the file and nobody listening.
        std::mem::forget(fs::rename(&path, dir.path().join("moved")));
        drop(UnixListener::bind(&path).expect("dead agent's socket"));
        let next = AdminSocket::bind(&path).expect("replaced");
        drop(living);
        assert!(path.exists(), "the old agent must not remove its successor's socket");
        drop(next);
        fs::write(&path, "").expect("file");
        assert!(matches!(AdminSocket::bind(&path), Err(SocketError::Occupied { .. })));
    }
}
