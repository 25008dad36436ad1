//! Runs programs for the verbs: finds them, says what is run, reports a failure with the whole command.
//!
//! Knows nothing about waylay.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How often a program with a time limit is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The repository's root folder.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Programs of our own that cargo built for us, such as cargo-deny.
pub fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// A command that runs in the repository's root.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The cargo that runs us, with our own tools first in the search path.
pub fn cargo() -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let mut path = vec![tools_dir().join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    if let Ok(path) = env::join_paths(path) {
        command.env("PATH", path);
    }
    command
}

/// Finds a program as a shell would, and in the folders that only root has in its search path.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

pub fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs as root: directly if we are, else through sudo.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(command(program));
    }
    if find("sudo").is_none() {
        bail!("{} needs root, and there is no sudo: run this as root", program.as_ref().display());
    }
    let mut sudo = command("sudo");
    sudo.arg("--").arg(program);
    Ok(sudo)
}

/// Runs it with our terminal; a failure is an error that shows the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// What it wrote to stdout, trimmed; a failure is an error that shows what it wrote to stderr.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", shown(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))
}

/// What became of a program that had a time limit.
#[derive(Debug)]
pub struct Ended {
    pub success: bool,
    /// stderr, or the sentence that it took too long.
    pub message: String,
}

/// Runs it without a terminal and kills it when `limit` is over.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<Ended> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let stderr = child.stderr.take().context("stderr was asked for")?;
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        // A broken pipe only shortens the message.
        let _ = { stderr }.read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    loop {
        if let Some(status) = child.try_wait()? {
            let message = reader.join().unwrap_or_default();
            return Ok(Ended { success: status.success(), message });
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            let message = format!("no answer within {} s", limit.as_secs());
            return Ok(Ended { success: false, message });
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Says that something longer begins, does it, and says how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {what}");
    let started = Instant::now();
    let result = work();
    let word = if result.is_ok() { "done" } else { "failed" };
    eprintln!("    {word} in {:.1} s", started.elapsed().as_secs_f64());
    result
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
