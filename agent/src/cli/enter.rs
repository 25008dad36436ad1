//! `waylay __enter`: what `exec` starts. It joins the cgroup and then becomes the command, so that the command is
//! intercepted from its first instruction on.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{User, initgroups, setgid, setuid};

/// What a shell answers for a command that is not there, and for one that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Join a cgroup and become a command
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cgroup's directory
    cgroup: PathBuf,

    /// Become this user first
    #[arg(long)]
    user: Option<String>,

    /// Open files that the command may have, unless it asks for more
    #[arg(long)]
    open_files: Option<u64>,

    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Args {
    /// Does not return when it succeeds.
    ///
    /// # Errors
    /// The cgroup cannot be joined, or the user not become.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let procs = self.cgroup.join("cgroup.procs");
        // 0 is the process that writes.
        std::fs::write(&procs, "0").with_context(|| format!("joining the cgroup {}", self.cgroup.display()))?;
        if let Some(soft) = self.open_files {
            limit_open_files(soft).context("setting the limit of open files")?;
        }
        let Some((program, arguments)) = self.command.split_first() else { bail!("there is no command") };
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(name) = &self.user {
            become_user(name, &mut command)?;
        }
        // `exec` blocks the signals that it forwards; the command starts with none blocked.
        SigSet::empty().thread_set_mask().context("unblocking signals")?;
        let error = command.exec();
        eprintln!("waylay: {}: {error}", program.display());
        Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }))
    }
}

/// The agent has raised its own limit. Programs that use select(2) or close all descriptors one by one rely on theirs.
fn limit_open_files(soft: u64) -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)
}

fn become_user(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let Some(user) = User::from_name(name).with_context(|| format!("looking the user {name} up"))? else {
        bail!("there is no user {name}");
    };
    let becoming = || format!("becoming the user {name}");
    let c_name = std::ffi::CString::new(name)?;
    initgroups(&c_name, user.gid).with_context(becoming)?;
    setgid(user.gid).with_context(becoming)?;
    setuid(user.uid).with_context(becoming)?;
    command.env("HOME", &user.dir).env("USER", name).env("LOGNAME", name).env("SHELL", &user.shell);
    Ok(())
}
