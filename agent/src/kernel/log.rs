//! What the kernel programs have to say of rare failures, into the agent's own log (target `waylay::ebpf`).
//!
//! Before it: the programs' own log ring, which aya-log reads. After it: `tracing`. The programs themselves see to it
//! that a failure that lasts is told of once a second and not for each connection.

use aya_log::{EbpfLogger, Level};

use super::KernelError;

/// What the agent's log calls the kernel's side.
const TARGET: &str = "waylay::ebpf";
/// The programs' log, as aya-log names it.
pub(super) const RING: &str = "AYA_LOGS";
const READER: &str = "reading the log of the kernel programs";

/// The reader of the programs' log.
pub struct Log(EbpfLogger<Forward>);

impl Log {
    pub(super) fn new(ebpf: &mut aya::Ebpf) -> Result<Self, KernelError> {
        EbpfLogger::init_with_logger(ebpf, Forward).map(Self).map_err(|error| match error {
            aya_log::Error::MapNotFound => KernelError::Incomplete(RING),
            other => KernelError::io(READER, std::io::Error::other(other)),
        })
    }

    /// Logs what is there; call it every now and then. Never waits.
    pub fn pass_on(&mut self) {
        self.0.flush();
    }
}

/// The level from which on the programs of an agent that logs as it does now tell anything. It is compiled into them
/// when they are loaded; raising the agent's level later brings no more than warnings.
pub(super) fn level() -> u8 {
    let level = if tracing::enabled!(target: TARGET, tracing::Level::DEBUG) { Level::Debug } else { Level::Warn };
    level as u8
}

/// From aya-log's records to `tracing`'s events.
struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: TARGET, "kernel: {text}"),
            log::Level::Warn => tracing::warn!(target: TARGET, "kernel: {text}"),
            log::Level::Info => tracing::info!(target: TARGET, "kernel: {text}"),
            log::Level::Debug | log::Level::Trace => tracing::debug!(target: TARGET, "kernel: {text}"),
        }
    }

    fn flush(&self) {}
}
