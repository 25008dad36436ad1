//! One direction of a connection: what its sender sends goes to its receiver.
//!
//! Before: [`super::pump`], which has two of them and waits for both. After: nothing. A direction copies through the
//! worker's scratch buffer, and splices through one of the worker's pipes while much comes at once: a copy is the
//! cheapest for little, and takes two system calls at any time. It keeps bytes of its own only while its receiver does
//! not take them.

use std::io;

use rustix::net::{SendFlags, send};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;
use waylay_common::user::set_receive_low_water;

use super::exhausted;
use super::low_water::{self, LowWater};
use super::pipes::Pipe;
use crate::worker::Worker;

/// Buffers moved before other connections of the worker get their turn.
const MOVES_PER_TURN: usize = 4;

/// Nor more bytes than these are read in one turn: some hundred microseconds.
const BYTES_PER_TURN: u32 = 1024 * 1024;

/// What one read has to bring to count as large.
const LARGE_BYTES: usize = 32 * 1024;

/// So many large reads in a row begin bulk.
const LARGE_READS: u8 = 2;

/// Bulk ends with a splice that moves less.
const SMALL_BYTES: usize = 16 * 1024;

/// See the module.
#[derive(Default)]
pub struct Direction {
    /// Bytes since the last report, which follows each turn.
    pub read: u32,
    /// Bytes since the last report.
    pub written: u32,
    held: Held,
    large_reads: u8,
    /// From the first splice on: most connections never get so far.
    low_water: Option<Box<LowWater>>,
    done: bool,
    /// The kernel cannot splice one of its sockets.
    only_copies: bool,
}

/// Read, but not taken by the receiver yet.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Copied {
        bytes: Box<[u8]>,
        sent: usize,
    },
    Piped {
        pipe: Pipe,
        bytes: usize,
    },
}

/// Which side a failure came from.
#[derive(Clone, Copy)]
pub enum Broken {
    Sender,
    Receiver,
}

/// How far a direction came in its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has to wait for a socket.
    Waits,
    /// It could go on, but others want to as well.
    Paused,
    /// Its sender has ended, and its receiver has everything; it does not know of the end yet.
    Ended,
}

/// What is known of the sender before it is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announced {
    /// Nothing.
    #[default]
    Nothing,
    /// Its end has arrived, perhaps behind bytes.
    End,
}

/// What one step brought.
enum Step {
    Moved,
    Drained,
    Ended,
}

/// What a read left in the sender's socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Perhaps,
    Nothing,
    End,
    Reset,
}

impl Direction {
    /// Whether the sender has ended, and everything was handed on.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether it waits for the sender.
    pub fn reads(&self) -> bool {
        !self.done && !self.holds()
    }

    /// Whether it waits for the receiver.
    pub fn holds(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    /// Until when it waits for the sender with the mark up; then [`Self::ask_for_rest`] is called.
    pub fn waits_until(&self) -> Option<Instant> {
        self.low_water.as_ref()?.due().filter(|_| self.reads())
    }

    /// If it waited until then, whatever is there makes the sender's socket ready.
    pub fn ask_for_rest(&mut self, sender: &TcpStream, now: Instant) {
        if self.reads() && self.low_water.as_mut().is_some_and(|mark| mark.falls(now)) {
            // The kernel looks at once whether the socket is ready by the new mark.
            set_low_water(sender, 1);
        }
    }

    /// Moves what can be moved without waiting, within bounds.
    ///
    /// # Errors
    /// Whose socket failed.
    pub fn turn(
        &mut self,
        sender: &TcpStream,
        receiver: &TcpStream,
        worker: &Worker,
        announced: Announced,
    ) -> Result<Turn, Broken> {
        let waited_for_receiver = self.holds();
        for nth in 0..MOVES_PER_TURN {
            if self.read >= BYTES_PER_TURN {
                break;
            }
            if !self.flush(receiver, worker)? || self.done {
                return Ok(Turn::Waits);
            }
            if nth == 0
                && waited_for_receiver
                && let Some(mark) = &mut self.low_water
            {
                mark.caught_up(Instant::now());
            }
            let step = if self.large_reads >= LARGE_READS && !self.only_copies {
                self.splice(sender, worker)
            } else {
                worker.with_scratch(|scratch| self.copy(sender, receiver, scratch, announced))
            };
            match step? {
                Step::Moved => {}
                Step::Drained => return Ok(Turn::Waits),
                Step::Ended => {
                    self.done = true;
                    return Ok(Turn::Ended);
                }
            }
        }
        Ok(Turn::Paused)
    }

    /// Reads, and writes as much of it as the receiver takes; keeps the rest.
    fn copy(
        &mut self,
        sender: &TcpStream,
        receiver: &TcpStream,
        scratch: &mut [u8],
        announced: Announced,
    ) -> Result<Step, Broken> {
        let (bytes, left) = read(sender, scratch, announced).map_err(|_| Broken::Sender)?;
        self.read += bytes as u32;
        self.large_reads = match bytes {
            0 => self.large_reads,
            LARGE_BYTES.. => self.large_reads.saturating_add(1),
            _ => 0,
        };
        let sent = write(receiver, &scratch[..bytes], left)?;
        self.written += sent as u32;
        if sent < bytes {
            self.held = Held::Copied { bytes: scratch[sent..bytes].into(), sent: 0 };
        }
        match left {
            Left::Reset => Err(Broken::Sender),
            // The end is read once more when the rest is gone.
            Left::End if sent < bytes => Ok(Step::Moved),
            Left::End => Ok(Step::Ended),
            Left::Perhaps => Ok(Step::Moved),
            Left::Nothing => Ok(Step::Drained),
        }
    }

    /// Takes what the sender has into a pipe.
    fn splice(&mut self, sender: &TcpStream, worker: &Worker) -> Result<Step, Broken> {
        let Some(pipe) = worker.pipes.take() else {
            self.large_reads = 0;
            return Ok(Step::Moved);
        };
        match pipe.fill_from(sender) {
            Ok(0) => {
                worker.pipes.give_back(pipe);
                Ok(Step::Ended)
            }
            Ok(bytes) => {
                self.read += bytes as u32;
                let mark = self.low_water.get_or_insert_default();
                if mark.spliced(bytes, Instant::now()) {
                    set_low_water(sender, low_water::BYTES);
                }
                if bytes < SMALL_BYTES && mark.due().is_none() {
                    self.large_reads = 0;
                }
                self.held = Held::Piped { pipe, bytes };
                Ok(Step::Moved)
            }
            Err(error) => {
                worker.pipes.give_back(pipe);
                match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(Step::Drained),
                    // The kernel's, not the connection's: this socket cannot be spliced, or there is no memory for it.
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::OutOfMemory => {
                        self.only_copies = true;
                        Ok(Step::Moved)
                    }
                    _ => Err(Broken::Sender),
                }
            }
        }
    }

    /// Sends what is held; whether nothing is held any more.
    fn flush(&mut self, receiver: &TcpStream, worker: &Worker) -> Result<bool, Broken> {
        match &mut self.held {
            Held::Nothing => return Ok(true),
            Held::Copied { bytes, sent } => {
                let more = write(receiver, &bytes[*sent..], Left::Perhaps)?;
                self.written += more as u32;
                *sent += more;
                if *sent < bytes.len() {
                    return Ok(false);
                }
            }
            Held::Piped { pipe, bytes } => {
                while *bytes > 0 {
                    match pipe.drain_to(receiver, *bytes) {
                        Ok(moved) if moved > 0 => {
                            self.written += moved as u32;
                            *bytes = bytes.saturating_sub(moved);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                        Ok(_) | Err(_) => return Err(Broken::Receiver),
                    }
                }
            }
        }
        if let Held::Piped { pipe, .. } = std::mem::take(&mut self.held) {
            worker.pipes.give_back(pipe);
        }
        Ok(true)
    }
}

/// Nobody is told of a failure: the mark saves work, or stands where it stood.
fn set_low_water(sender: &TcpStream, bytes: usize) {
    if let Err(error) = set_receive_low_water(sender, bytes) {
        tracing::debug!(%error, "the mark of a socket that is read from stays where it is");
    }
}

/// Reads what is there, and what is left then. An end that was announced is looked for behind the bytes: it can leave
/// with them.
fn read(sender: &TcpStream, scratch: &mut [u8], announced: Announced) -> io::Result<(usize, Left)> {
    let mut bytes = 0;
    while bytes < scratch.len() {
        match sender.try_read(&mut scratch[bytes..]) {
            Ok(0) => return Ok((bytes, Left::End)),
            Ok(more) => bytes += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((bytes, Left::Nothing)),
            // The socket tells of a reset only once, and what came before it has to be handed on first.
            Err(_) if bytes > 0 => return Ok((bytes, Left::Reset)),
            Err(error) => return Err(error),
        }
        if announced == Announced::Nothing && bytes < scratch.len() {
            exhausted(sender, Interest::READABLE);
            return Ok((bytes, Left::Nothing));
        }
    }
    Ok((bytes, Left::Perhaps))
}

/// Writes what the receiver takes at once. Bytes behind which the end comes are held back for it, so that both leave in
/// one segment: whoever gets `End` says so to the receiver at once.
fn write(receiver: &TcpStream, bytes: &[u8], left: Left) -> Result<usize, Broken> {
    let flags = if left == Left::End { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    let mut sent = 0;
    while sent < bytes.len() {
        match receiver.try_io(Interest::WRITABLE, || Ok(send(receiver, &bytes[sent..], flags)?)) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => return Err(Broken::Receiver),
        }
    }
    Ok(sent)
}
