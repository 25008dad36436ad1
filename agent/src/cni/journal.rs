//! A line for every call, on standard error (which runtimes show beside an error at most) and in the configured file.
//! Standard output belongs to the protocol.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

use super::invocation::{Attachment, Command};
use super::netconf::NetConf;
use super::since;

/// One call, until it ends.
pub struct Journal {
    file: Option<PathBuf>,
    subject: String,
    start: Instant,
}

impl Journal {
    /// Begins the call.
    pub fn begin(config: &NetConf, command: Command, attachment: &Attachment) -> Self {
        let pod = &attachment.pod;
        let id = &attachment.container_id;
        let who = if pod.name.is_empty() { id.clone() } else { format!("{}/{} ({id})", pod.namespace, pod.name) };
        Self { file: config.log_file.clone(), subject: format!("{} {who}", command.name()), start: Instant::now() }
    }

    /// Writes how it ended. A journal that cannot be written stops no pod.
    pub fn end(self, outcome: &str) {
        let line = format!("{} {}: {outcome} ({})\n", jiff::Timestamp::now(), self.subject, since(self.start));
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(line.as_bytes());
        if let Some(path) = self.file {
            // One write of less than a page: calls that end at once do not mix their lines.
            let written = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
            if let Err(error) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
                let _ = writeln!(stderr, "writing {}: {error}", path.display());
            }
        }
    }
}
