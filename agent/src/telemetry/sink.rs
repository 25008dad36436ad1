//! Where finished records go: to every configured access log, and to whoever watches the live trace.
//!
//! Before: [`super::record::Recording`], on the workers. After: one writer thread for each access log
//! ([`super::writer`]). A worker formats its record into the log's buffer; when too much waits in there, because the
//! thread cannot write, the record is dropped and counted (`server.access_log_dropped`).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::snapshot::AccessLog;

use super::record::{Record, RecordSink, ReplaceLogs};
use super::stats::Registry;
use super::trace::Trace;
use super::writer::{OpenError, Writer};

/// How long the end of the agent waits for the access logs: a pipe that nobody reads must not hold it up for ever.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// All sinks. Created once, and changed by [`Sinks::replace`] when a reload changes the access logs.
#[derive(Debug)]
pub struct Sinks {
    writers: ArcSwap<Vec<Arc<Writer>>>,
    /// Whether there are any: all that a record costs when there are none.
    writing: AtomicBool,
    /// Held while the list is replaced.
    changing: Mutex<()>,
    stats: Arc<Registry>,
    trace: Trace,
}

impl Sinks {
    /// Opens all of `logs`.
    ///
    /// # Errors
    /// The first one that could not be opened.
    pub fn open(logs: &[AccessLog], stats: Arc<Registry>) -> Result<Arc<Self>, OpenError> {
        let sinks = Self {
            writers: ArcSwap::default(),
            writing: AtomicBool::new(false),
            changing: Mutex::new(()),
            stats,
            trace: Trace::default(),
        };
        sinks.replace(logs)?;
        Ok(Arc::new(sinks))
    }

    /// Changes to `logs`: those that are open already stay open, what is no longer named is written out and closed.
    ///
    /// # Errors
    /// The first one that could not be opened; nothing is changed then.
    pub fn replace(&self, logs: &[AccessLog]) -> Result<(), OpenError> {
        self.prepare(logs).map(|replace| replace())
    }

    /// As [`Self::replace`], in two steps: what can fail now, the change when the returned function is called.
    fn prepare(&self, logs: &[AccessLog]) -> Result<ReplaceLogs<'_>, OpenError> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.writers.load_full();
        let writers: Vec<_> = logs
            .iter()
            .map(|log| match open.iter().find(|writer| writer.log() == log) {
                Some(writer) => Ok(writer.clone()),
                None => Writer::open(log.clone(), self.stats.clone()).map(Arc::new),
            })
            .collect::<Result<_, _>>()?;
        Ok(Box::new(move || {
            let _changing = changing;
            self.writing.store(!writers.is_empty(), Relaxed);
            self.writers.store(Arc::new(writers));
        }))
    }

    /// Opens the files anew, by their names: after log rotation has renamed them (SIGUSR1).
    pub fn reopen(&self) {
        for writer in self.writers.load().iter() {
            writer.reopen();
        }
    }

    /// Blocks until everything so far is written, or for `timeout`. Returns whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let pending: Vec<_> = self.writers.load().iter().map(|writer| writer.flush()).collect();
        pending.into_iter().all(|flushed| flushed.wait(deadline))
    }

    /// Where watchers subscribe.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }
}

impl RecordSink for Sinks {
    fn write(&self, record: Record) {
        self.trace.record(&record);
        if self.writing.load(Relaxed) {
            self.writers.load().iter().for_each(|writer| writer.write(&record));
        }
    }

    fn prepare_logs(&self, logs: &[AccessLog]) -> Result<ReplaceLogs<'_>, OpenError> {
        self.prepare(logs)
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.flush(FLUSH_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::samples;
    use super::*;
    use crate::snapshot::AccessLogFormat;

    fn log(path: &Path, format: AccessLogFormat) -> AccessLog {
        AccessLog { path: path.to_owned(), format }
    }

    fn open(logs: &[AccessLog]) -> Arc<Sinks> {
        Sinks::open(logs, Arc::default()).expect("sinks")
    }

    fn request() -> Record {
        Record::Request(Box::new(samples::request()))
    }

    #[test]
    fn a_record_reaches_every_sink_in_its_format() {
        let dir = tempfile::tempdir().expect("directory");
        let (text, json) = (dir.path().join("access.log"), dir.path().join("access.json"));
        let sinks = open(&[log(&text, AccessLogFormat::Text), log(&json, AccessLogFormat::Json)]);
        sinks.write(request());
        sinks.write(Record::Connection(Box::new(samples::connection())));
        assert!(sinks.flush(FLUSH_TIMEOUT));
        let text = std::fs::read_to_string(text).expect("text");
        assert_eq!(text.lines().map(|line| line.contains("- - -")).collect::<Vec<_>>(), [false, true]);
        let json = std::fs::read_to_string(json).expect("json");
        let kinds: Vec<_> = json
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["kind"].clone())
            .collect();
        assert_eq!(kinds, ["request", "connection"]);
    }

    #[test]
    fn nothing_is_lost_when_the_sinks_are_dropped() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("access.log");
        let sinks = open(&[log(&path, AccessLogFormat::Text)]);
        (0..1000).for_each(|_| sinks.write(request()));
        drop(sinks);
        assert_eq!(std::fs::read_to_string(path).expect("log").lines().count(), 1000);
    }

    #[test]
    fn a_reload_keeps_what_stays_and_writes_out_what_goes() {
        let dir = tempfile::tempdir().expect("directory");
        let (one, two) = (dir.path().join("one.log"), dir.path().join("two.log"));
        let sinks = open(&[log(&one, AccessLogFormat::Text)]);
        sinks.write(request());
        let before = sinks.writers.load()[0].clone();
        sinks.replace(&[log(&one, AccessLogFormat::Text), log(&two, AccessLogFormat::Text)]).expect("replaced");
        assert!(Arc::ptr_eq(&before, &sinks.writers.load()[0]));
        sinks.write(request());
        let missing = log(&dir.path().join("no/such/dir.log"), AccessLogFormat::Text);
        assert!(sinks.replace(&[missing]).is_err());
        sinks.write(request());
        assert!(sinks.flush(FLUSH_TIMEOUT));
        let lines = |path| std::fs::read_to_string(path).expect("log").lines().count();
        assert_eq!((lines(one), lines(two)), (3, 2));
    }

    #[test]
    fn a_rotated_file_is_opened_anew() {
        let dir = tempfile::tempdir().expect("directory");
        let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let sinks = open(&[log(&path, AccessLogFormat::Text)]);
        sinks.write(request());
        assert!(sinks.flush(FLUSH_TIMEOUT));
        std::fs::rename(&path, &rotated).expect("rename");
        sinks.reopen();
        sinks.write(request());
        assert!(sinks.flush(FLUSH_TIMEOUT));
        for path in [path, rotated] {
            assert_eq!(std::fs::read_to_string(path).expect("log").lines().count(), 1);
        }
    }

    #[test]
    fn what_was_written_before_the_file_is_opened_anew_stands_in_the_old_one_and_the_rest_in_the_new_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("access.log");
        let sinks = open(&[log(&path, AccessLogFormat::Text)]);
        let rotated = |round: usize| dir.path().join(format!("access.log.{round}"));
        for round in 0..200 {
            sinks.write(request());
            sinks.write(request());
            assert!(sinks.flush(FLUSH_TIMEOUT));
            std::fs::rename(&path, rotated(round)).expect("rename");
            sinks.write(request());
            sinks.reopen();
            sinks.write(request());
            assert!(sinks.flush(FLUSH_TIMEOUT));
        }
        // Two of its own and one before the reopening; from the second round on, one from behind the last reopening.
        for round in 0..200 {
            let lines = std::fs::read_to_string(rotated(round)).expect("log").lines().count();
            assert_eq!(lines, if round == 0 { 3 } else { 4 }, "round {round}");
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let dir = tempfile::tempdir().expect("directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        // Open for reading and writing, so that nobody's opening blocks; never read from.
        let _unread = std::fs::File::options().read(true).write(true).open(&pipe).expect("fifo");
        let stats = Arc::new(Registry::default());
        let sinks = Sinks::open(&[log(&pipe, AccessLogFormat::Json)], stats.clone()).expect("sinks");
        let started = Instant::now();
        for _ in 0..super::super::writer::QUEUE_RECORDS * 2 {
            sinks.write(request());
        }
        assert!(started.elapsed() < Duration::from_secs(5), "a worker must not wait for a sink");
        assert!(stats.server.access_log_dropped.value() > 0);
        assert!(!sinks.flush(Duration::from_millis(50)));
        std::mem::forget(sinks);
    }
}
