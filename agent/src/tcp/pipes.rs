//! Pipes through which `splice(2)` hands bytes from one socket to another without copying them.
//!
//! Before: `direction`, which takes one for as long as bytes are in it. After: nothing. A pipe that comes back is
//! empty; one that does not is closed with what was in it, so bytes of one connection never reach another. When there is
//! no pipe to be had, bytes are copied.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe holds, and what one splice moves at most. Twice as much saves another tenth of the CPU, and holds a worker's
/// other connections up for twice as long. Less means more wake-ups, of the worker and of the receiver.
pub const PIPE_BYTES: usize = 512 * 1024;

/// A pipe that the kernel makes smaller than this moves less than a copy does. It does so when the user has more in pipes
/// than `/proc/sys/fs/pipe-user-pages-soft` allows.
const PIPE_BYTES_MIN: usize = 64 * 1024;

/// Pipes of one worker: 16 MiB, a quarter of what an unprivileged user may have in pipes by default. More than one is in
/// use only while receivers are slower than their senders.
const PIPES_MAX: usize = 32;

/// Empty pipes that are kept; others are closed, as their two file descriptors may be wanted by connections.
const IDLE_MAX: usize = 4;

/// The pause after there was no pipe to be had: trying costs some system calls.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The pipes of one worker.
#[derive(Debug, Default)]
pub struct Pipes {
    idle: RefCell<Vec<Pipe>>,
    open: Rc<Cell<usize>>,
    not_before: Cell<Option<Instant>>,
}

/// A pipe; counted until it is dropped.
#[derive(Debug)]
pub struct Pipe {
    inlet: OwnedFd,
    outlet: OwnedFd,
    open: Rc<Cell<usize>>,
}

impl Pipes {
    /// An empty pipe; `None` when there are enough, or the system has none.
    pub fn take(&self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.borrow_mut().pop() {
            return Some(pipe);
        }
        if self.open.get() >= PIPES_MAX || self.not_before.get().is_some_and(|moment| Instant::now() < moment) {
            return None;
        }
        match Pipe::new(&self.open) {
            Ok(pipe) => {
                self.not_before.set(None);
                Some(pipe)
            }
            Err(error) => {
                tracing::debug!(%error, "bytes are copied, as there is no pipe to splice them through");
                self.not_before.set(Some(Instant::now() + RETRY_INTERVAL));
                None
            }
        }
    }

    /// Takes back a pipe. It must be empty.
    pub fn give_back(&self, pipe: Pipe) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(pipe);
        }
    }

    /// How many there are, in use or not.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.open.get()
    }
}

impl Pipe {
    fn new(open: &Rc<Cell<usize>>) -> io::Result<Self> {
        let (outlet, inlet) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // What the kernel made may do when it does not give more.
        if fcntl_setpipe_size(&inlet, PIPE_BYTES).is_err() && fcntl_getpipe_size(&inlet)? < PIPE_BYTES_MIN {
            return Err(io::Error::other("the user's limit on bytes in pipes is reached"));
        }
        open.set(open.get() + 1);
        Ok(Self { inlet, outlet, open: open.clone() })
    }

    /// Moves what `sender` has into the pipe, which must be empty: a full one would say "would block" as well. 0 is the
    /// sender's end.
    ///
    /// # Errors
    /// The sender's; `WouldBlock` when it has nothing now.
    pub fn fill_from(&self, sender: &TcpStream) -> io::Result<usize> {
        sender.try_io(Interest::READABLE, || {
            Ok(splice(sender, None, &self.inlet, None, PIPE_BYTES, SpliceFlags::NONBLOCK)?)
        })
    }

    /// Moves up to `bytes` of what is in the pipe on to `receiver`; there must be so many.
    ///
    /// # Errors
    /// The receiver's; `WouldBlock` when it takes nothing now.
    pub fn drain_to(&self, receiver: &TcpStream, bytes: usize) -> io::Result<usize> {
        receiver.try_io(Interest::WRITABLE, || {
            Ok(splice(&self.outlet, None, receiver, None, bytes, SpliceFlags::NONBLOCK)?)
        })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_bounded_and_used_again() {
        let pipes = Pipes::default();
        let taken: Vec<_> = std::iter::from_fn(|| pipes.take()).take(PIPES_MAX + 1).collect();
        assert_eq!((taken.len(), pipes.count()), (PIPES_MAX, PIPES_MAX));
        taken.into_iter().for_each(|pipe| pipes.give_back(pipe));
        assert_eq!(pipes.count(), IDLE_MAX, "the others are closed");
        let again = pipes.take().expect("pipe");
        assert_eq!(pipes.count(), IDLE_MAX);
        drop(again);
        assert_eq!(pipes.count(), IDLE_MAX - 1, "one that is not given back is closed");
    }
}
