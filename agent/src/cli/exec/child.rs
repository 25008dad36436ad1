//! The command of `waylay exec`: started inside its cgroup, sent the signals that we get, waited for.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use anyhow::Context;
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::cgroup::ExecCgroup;

/// What is passed on. Not SIGTSTP: the terminal stops the command and us alike.
const FORWARDED: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// Takes the signals over, for this thread and all that it starts.
///
/// # Errors
/// The system has no descriptors left.
pub fn block_signals() -> anyhow::Result<SignalFd> {
    let mut mask: SigSet = FORWARDED.into_iter().collect();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().context("blocking signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("taking signals over")
}

/// The running command.
#[derive(Debug)]
pub struct Child(std::process::Child);

impl Child {
    /// Starts `command` in `cgroup`: ourselves, who then joins and becomes it, with `open_files` as its soft limit.
    ///
    /// # Errors
    /// No process can be started.
    pub fn spawn(
        cgroup: &ExecCgroup,
        user: Option<&str>,
        open_files: Option<u64>,
        command: &[OsString],
    ) -> anyhow::Result<Self> {
        let ourselves = std::env::current_exe().context("finding our own program")?;
        let mut helper = Command::new(ourselves);
        helper.arg("__enter").arg(cgroup.path());
        if let Some(user) = user {
            helper.arg("--user").arg(user);
        }
        if let Some(limit) = open_files {
            helper.arg("--open-files").arg(limit.to_string());
        }
        let child = helper.arg("--").args(command).spawn().context("starting the command")?;
        Ok(Self(child))
    }

    /// Passes signals on until it ends. Returns its exit status, as a shell would.
    ///
    /// # Errors
    /// Signals cannot be read.
    pub fn wait(mut self, signals: &SignalFd) -> anyhow::Result<u8> {
        loop {
            if let Some(status) = self.0.try_wait().context("waiting for the command")? {
                return Ok(exit_status(status));
            }
            let Some(received) = signals.read_signal().context("waiting for signals")? else { continue };
            let number = i32::try_from(received.ssi_signo).unwrap_or_default();
            // What the terminal sends (Ctrl-C) it sends to the command as well: it must not get it twice.
            let from_terminal = received.ssi_code == libc::SI_KERNEL;
            if let Ok(signal) = Signal::try_from(number)
                && signal != Signal::SIGCHLD
                && !from_terminal
            {
                self.send(signal);
            }
        }
    }

    fn send(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // It is our child and not waited for yet, so that the number is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn exit_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_a_shells() {
        for (raw, expected) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (15, 143), (9, 137)] {
            assert_eq!(exit_status(ExitStatus::from_raw(raw)), expected, "{raw}");
        }
    }
}
