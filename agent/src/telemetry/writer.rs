//! One access log: a bounded queue, and a thread that formats what is in it and writes it out.
//!
//! Before: [`super::sink`]. After: the file, or standard output. The thread writes when it has 64 KiB, or 100 ms after
//! the first line that waits. It is alone in waiting for a slow disk or a pipe that nobody reads.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use crate::snapshot::{AccessLog, AccessLogFormat};

use super::record::Record;
use super::stats::Registry;
use super::{brief, json, text};

/// Records that wait for one sink: at most about 8 MiB.
pub const QUEUE_RECORDS: usize = 8192;

/// Written at once when so much has gathered.
const FLUSH_BYTES: usize = 64 * 1024;

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
    queue: SyncSender<Message>,
    stats: Arc<Registry>,
}

enum Message {
    Record(Arc<Record>),
    Flush(SyncSender<()>),
    Reopen,
}

/// A flush under way.
pub struct Flushing(Option<Receiver<()>>);

impl Writer {
    /// Opens `log` and starts its thread.
    ///
    /// # Errors
    /// It cannot be opened for appending.
    pub fn open(log: AccessLog, stats: Arc<Registry>) -> Result<Self, OpenError> {
        let error = |source| OpenError { path: log.path.clone(), source };
        let file = open_file(&log.path).map_err(error)?;
        let (queue, messages) = mpsc::sync_channel(QUEUE_RECORDS);
        let thread = WriterThread {
            log: log.clone(),
            file,
            stats: stats.clone(),
            buffer: String::with_capacity(FLUSH_BYTES),
            buffered: 0,
            warned: None,
        };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || thread.run(&messages))
            .map_err(error)?;
        Ok(Self { log, queue, stats })
    }

    /// What it was opened for.
    pub fn log(&self) -> &AccessLog {
        &self.log
    }

    /// Hands over a record, or drops and counts it when the queue is full.
    pub fn write(&self, record: Arc<Record>) {
        if self.queue.try_send(Message::Record(record)).is_err() {
            self.stats.server.access_log_dropped.inc();
        }
    }

    /// Asks for the file to be opened anew.
    pub fn reopen(&self) {
        if self.queue.try_send(Message::Reopen).is_err() {
            tracing::warn!(path = %self.log.path.display(), "the access log is too busy to be reopened");
        }
    }

    /// Asks for everything so far to be written; a full queue is waited for until `deadline`.
    pub fn flush(&self, deadline: Instant) -> Flushing {
        let (done, flushed) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => return Flushing(Some(flushed)),
                Err(TrySendError::Full(back)) if Instant::now() < deadline => message = back,
                Err(_) => return Flushing(None),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Flushing {
    /// Blocks until it is done or `deadline` has passed; returns whether it is done.
    pub fn wait(self, deadline: Instant) -> bool {
        let timeout = deadline.saturating_duration_since(Instant::now());
        self.0.is_some_and(|flushed| flushed.recv_timeout(timeout).is_ok())
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
    log: AccessLog,
    file: File,
    stats: Arc<Registry>,
    buffer: String,
    buffered: u64,
    warned: Option<Instant>,
}

impl WriterThread {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut due: Option<Instant> = None;
        loop {
            let message = match due {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => messages.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(Message::Record(record)) => {
                    self.format(&record);
                    due.get_or_insert_with(|| Instant::now() + FLUSH_INTERVAL);
                }
                Ok(Message::Flush(done)) => {
                    self.write_out();
                    // Whoever asked may have stopped waiting.
                    let _ = done.try_send(());
                }
                Ok(Message::Reopen) => {
                    self.write_out();
                    self.reopen();
                }
                Err(RecvTimeoutError::Timeout) => self.write_out(),
                Err(RecvTimeoutError::Disconnected) => return self.write_out(),
            }
            if self.buffer.len() >= FLUSH_BYTES || due.is_some_and(|due| due <= Instant::now()) {
                self.write_out();
            }
            if self.buffer.is_empty() {
                due = None;
            }
        }
    }

    fn format(&mut self, record: &Record) {
        let before = self.buffer.len();
        match self.log.format {
            AccessLogFormat::Brief => brief::write_line(&mut self.buffer, record),
            AccessLogFormat::Text => text::write_line(&mut self.buffer, record),
            AccessLogFormat::Json => json::write_line(&mut self.buffer, record),
        }
        // Not every record has a line of its own.
        if self.buffer.len() > before {
            self.buffered += 1;
        }
    }

    fn write_out(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if let Err(error) = self.file.write_all(self.buffer.as_bytes()) {
            self.stats.server.access_log_dropped.add(self.buffered);
            self.warn("writing", &error);
        }
        self.buffer.clear();
        self.buffered = 0;
    }

    fn reopen(&mut self) {
        match open_file(&self.log.path) {
            Ok(file) => self.file = file,
            Err(error) => self.warn("reopening", &error),
        }
    }

    fn warn(&mut self, doing: &str, error: &io::Error) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!(path = %self.log.path.display(), %error, "{doing} the access log failed");
        }
    }
}
