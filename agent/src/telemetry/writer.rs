//! One access log: lines that wait, and a thread that writes them out.
//!
//! Before: [`super::sink`], on the workers, which format their records themselves: nothing but text changes hands. After:
//! the file, or standard output. The thread is woken when a first line waits and writes 100 ms later, or as soon as
//! 64 KiB have gathered. It is alone in waiting for a slow disk or a pipe that nobody reads.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::snapshot::{AccessLog, AccessLogFormat};

use super::record::Record;
use super::stats::Registry;
use super::{brief, json, text};

/// Records that wait for one log: at most about 8 MiB.
pub const QUEUE_RECORDS: usize = 8192;

/// Written at once when so much has gathered.
const FLUSH_BYTES: usize = 64 * 1024;

/// What an empty buffer may keep of its memory.
const KEPT_BYTES: usize = 4 * FLUSH_BYTES;

/// Written after so long, however little it is.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Between two warnings about the same sink.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// An access log that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening the access log {}", path.display())]
pub struct OpenError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// One open access log; dropping it writes out what waits and closes it, in the background.
#[derive(Debug)]
pub struct Writer {
    log: AccessLog,
    stats: Arc<Registry>,
    waiting: Arc<Waiting>,
    thread: Thread,
}

/// What the workers and the thread share.
#[derive(Debug, Default)]
struct Waiting {
    /// One for all workers: lines stand in the order in which what they tell of ended.
    lines: Mutex<Lines>,
    /// What the thread knows of it.
    knows: AtomicU8,
}

#[derive(Debug, Default)]
struct Lines {
    text: String,
    records: usize,
    /// What is to be done between them, and behind how many bytes.
    orders: Vec<(usize, Order)>,
}

/// Nothing waits: the thread sleeps until it is told otherwise.
const NOTHING: u8 = 0;
/// Something does: the thread sleeps for a while.
const SOMETHING: u8 = 1;
/// So much does that the thread has to write.
const PLENTY: u8 = 2;

#[derive(Debug)]
enum Order {
    Flush(SyncSender<()>),
    Reopen,
    Close,
}

/// A flush under way.
pub struct Flushing(Receiver<()>);

impl Writer {
    /// Opens `log` and starts its thread.
    ///
    /// # Errors
    /// It cannot be opened for appending.
    pub fn open(log: AccessLog, stats: Arc<Registry>) -> Result<Self, OpenError> {
        let error = |source| OpenError { path: log.path.clone(), source };
        let file = open_file(&log.path).map_err(error)?;
        let waiting: Arc<Waiting> = Arc::default();
        let thread = WriterThread {
            path: log.path.clone(),
            file,
            stats: stats.clone(),
            waiting: waiting.clone(),
            spare: String::new(),
            warned: None,
        };
        let thread =
            std::thread::Builder::new().name("access-log".to_owned()).spawn(move || thread.run()).map_err(error)?;
        Ok(Self { thread: thread.thread().clone(), log, stats, waiting })
    }

    /// What it was opened for.
    pub fn log(&self) -> &AccessLog {
        &self.log
    }

    /// Takes a record's line, or drops and counts the record when too many wait.
    pub fn write(&self, record: &Record) {
        let mut lines = self.waiting.lines();
        if lines.records >= QUEUE_RECORDS {
            self.stats.server.access_log_dropped.inc();
            return;
        }
        let before = lines.text.len();
        match self.log.format {
            AccessLogFormat::Brief => brief::write_line(&mut lines.text, record),
            AccessLogFormat::Text => text::write_line(&mut lines.text, record),
            AccessLogFormat::Json => json::write_line(&mut lines.text, record),
        }
        let length = lines.text.len();
        // Not every record has a line of its own.
        if length == before {
            return;
        }
        lines.records += 1;
        drop(lines);
        self.tell(if length < FLUSH_BYTES { SOMETHING } else { PLENTY });
    }

    /// Wakes the thread if it does not know. It forgets what it knows before it looks into the buffer: a line that it
    /// does not find there comes after that, and is told.
    fn tell(&self, news: u8) {
        if self.waiting.knows.load(Relaxed) < news && self.waiting.knows.fetch_max(news, Relaxed) < news {
            self.thread.unpark();
        }
    }

    /// Asks for the file to be opened anew.
    pub fn reopen(&self) {
        self.order(Order::Reopen);
    }

    /// Asks for everything so far to be written.
    pub fn flush(&self) -> Flushing {
        let (done, flushed) = mpsc::sync_channel(1);
        self.order(Order::Flush(done));
        Flushing(flushed)
    }

    /// What was written before concerns it; what is written from now on does not.
    fn order(&self, order: Order) {
        let mut lines = self.waiting.lines();
        let behind = lines.text.len();
        lines.orders.push((behind, order));
        drop(lines);
        self.tell(PLENTY);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.order(Order::Close);
    }
}

impl Waiting {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flushing {
    /// Blocks until it is done or `deadline` has passed; returns whether it is done.
    pub fn wait(self, deadline: Instant) -> bool {
        let timeout = deadline.saturating_duration_since(Instant::now());
        self.0.recv_timeout(timeout).is_ok()
    }
}

/// Standard output and error are written to through the descriptors that are open, because their names in `/dev`
/// cannot be opened when they are sockets (as under systemd).
fn open_file(path: &Path) -> io::Result<File> {
    match path.to_str() {
        Some("/dev/stdout") => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        Some("/dev/stderr") => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        _ => OpenOptions::new().append(true).create(true).mode(0o640).open(path),
    }
}

struct WriterThread {
    path: PathBuf,
    file: File,
    stats: Arc<Registry>,
    waiting: Arc<Waiting>,
    /// Empty; goes where a full buffer is taken away.
    spare: String,
    warned: Option<Instant>,
}

impl WriterThread {
    fn run(mut self) {
        let mut due: Option<Instant> = None;
        loop {
            match (self.waiting.knows.load(Relaxed), due) {
                (NOTHING, _) => {
                    due = None;
                    std::thread::park();
                }
                (SOMETHING, None) => due = Some(Instant::now() + FLUSH_INTERVAL),
                (SOMETHING, Some(at)) if at > Instant::now() => {
                    std::thread::park_timeout(at.saturating_duration_since(Instant::now()));
                }
                _ => {
                    due = None;
                    if self.write_out().is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Writes what waits, and does what is to be done in between; breaks when that is the end.
    fn write_out(&mut self) -> ControlFlow<()> {
        // Before the first look: see `Writer::tell`. A lock lies between the two on either side.
        self.waiting.knows.store(NOTHING, Relaxed);
        let orders = {
            let mut lines = self.waiting.lines();
            lines.records = 0;
            std::mem::swap(&mut lines.text, &mut self.spare);
            std::mem::take(&mut lines.orders)
        };
        let mut text = std::mem::take(&mut self.spare);
        let mut written = 0;
        for (behind, order) in orders {
            self.write(&text[written..behind]);
            written = behind;
            match order {
                // Whoever asked may have stopped waiting.
                Order::Flush(done) => drop(done.try_send(())),
                Order::Reopen => self.reopen(),
                Order::Close => return ControlFlow::Break(()),
            }
        }
        self.write(&text[written..]);
        text.clear();
        text.shrink_to(KEPT_BYTES);
        self.spare = text;
        ControlFlow::Continue(())
    }

    fn write(&mut self, lines: &str) {
        if let Err(error) = self.file.write_all(lines.as_bytes()) {
            self.stats.server.access_log_dropped.add(lines.lines().count() as u64);
            self.warn("writing", &error);
        }
    }

    fn reopen(&mut self) {
        match open_file(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => self.warn("reopening", &error),
        }
    }

    fn warn(&mut self, doing: &str, error: &io::Error) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!(path = %self.path.display(), %error, "{doing} the access log failed");
        }
    }
}
