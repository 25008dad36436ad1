//! Network namespaces, and the one thread that enters them.
//!
//! Before: [`crate::workload`], which says where a namespace is. After: [`crate::place`], whose sockets are made here.
//!
//! A socket belongs for ever to the namespace in which its thread was when it was made, and may then be used from
//! anywhere. So a thread of its own enters a namespace, makes the sockets that it is asked for, and goes home before
//! it sleeps: a thread that stayed would keep the namespace of a pod alive that is gone. Workers never enter one, as
//! all that they did there would happen there.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, mpsc};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    cookie: u64,
}

impl Netns {
    /// Opens the namespace that is bound to `path` (`/run/netns/NAME`, `/proc/PID/ns/net`), and learns its cookie on
    /// `thread`.
    ///
    /// # Errors
    /// There is no such file, it is no network namespace, or it must not be entered (CAP_SYS_ADMIN).
    pub async fn open(path: &Path, thread: &NetnsThread) -> io::Result<Self> {
        let fd: OwnedFd = File::open(path)?.into();
        let target = fd.try_clone()?;
        let cookie = thread.enter(Target::Once(target), own_cookie).await??;
        Ok(Self { fd, cookie })
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// /proc is not mounted, or no socket to be had.
    pub fn own() -> io::Result<Self> {
        Ok(Self { fd: File::open(OWN)?.into(), cookie: own_cookie()? })
    }

    /// The kernel's number for it, which is never given to another one.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The cookie of the namespace that the calling thread is in.
///
/// # Errors
/// No socket to be had.
pub fn own_cookie() -> io::Result<u64> {
    // An unbound socket of either family would do; this one needs no address.
    waylay_common::user::netns_cookie(&UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?)
}

/// The thread that enters namespaces. Cheap to clone; it ends with its last handle.
#[derive(Clone, Debug)]
pub struct NetnsThread(mpsc::Sender<Job>);

enum Target {
    Known(Arc<Netns>),
    Once(OwnedFd),
}

struct Job {
    target: Target,
    /// Called inside, or with the reason why not.
    work: Box<dyn FnOnce(io::Result<()>) + Send>,
}

impl NetnsThread {
    /// Starts it.
    ///
    /// # Errors
    /// No thread to be had, or /proc is not mounted.
    pub fn start() -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (started, starting) = mpsc::channel();
        std::thread::Builder::new().name("waylay-netns".to_owned()).spawn(move || {
            let home = File::open(OWN);
            let _ = started.send(home.as_ref().map(drop).map_err(|error| error.kind()));
            if let Ok(home) = home {
                serve(&inbox, &home);
            }
        })?;
        match starting.recv() {
            Ok(Ok(())) => Ok(Self(jobs)),
            Ok(Err(kind)) => Err(io::Error::new(kind, format!("opening {OWN}: is /proc mounted?"))),
            Err(_) => Err(io::Error::other("the thread for network namespaces ended at once")),
        }
    }

    /// Does `job` inside `netns`. It must not block: all namespaces share the thread.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the thread is gone.
    pub async fn run<R: Send + 'static>(
        &self,
        netns: &Arc<Netns>,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<R> {
        self.enter(Target::Known(netns.clone()), job).await
    }

    async fn enter<R: Send + 'static>(
        &self,
        target: Target,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<R> {
        let (sender, answer) = oneshot::channel();
        let work = Box::new(move |entered: io::Result<()>| {
            // Whoever asked may have left.
            let _ = sender.send(entered.map(|()| job()));
        });
        let gone = |_| io::Error::other("the thread for network namespaces is gone");
        self.0.send(Job { target, work }).map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }
}

/// Works until nobody can ask any more, and is at home whenever it waits.
fn serve(inbox: &mpsc::Receiver<Job>, home: &File) {
    while let Ok(first) = inbox.recv() {
        let mut next = Some(first);
        while let Some(Job { target, work }) = next {
            let fd = match &target {
                Target::Known(netns) => netns.as_fd(),
                Target::Once(fd) => fd.as_fd(),
            };
            work(setns(fd, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
            drop(target);
            next = inbox.try_recv().ok();
        }
        if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "the thread for network namespaces cannot leave one: it ends");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_namespace_is_an_error_and_the_thread_goes_on() {
        let thread = NetnsThread::start().expect("thread");
        for path in ["/dev/null", "/nonexistent"] {
            assert!(Netns::open(Path::new(path), &thread).await.is_err(), "{path}");
        }
    }
}
