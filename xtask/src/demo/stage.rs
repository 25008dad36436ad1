//! What the demo is played on: a folder, a cgroup for curl, the agent; all of it is taken away at the end, also after
//! an error or an interrupt.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{self, Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

use super::{CANARY, SHOP};
use crate::shell;

/// Loading and verifying the kernel programs takes well under a second; a busy machine may need more.
const READY_LIMIT: Duration = Duration::from_secs(20);
const RECORD_LIMIT: Duration = Duration::from_secs(5);
/// Nothing is in flight when the demo stops its agent.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    /// Sockets have short paths: not below the folder, which may lie deep.
    run_dir: PathBuf,
    cgroup2: PathBuf,
    cgroup_name: String,
    port: u16,
}

/// What curl said.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    /// The command line, stdout, stderr.
    pub text: String,
}

impl Stage {
    pub fn build() -> Result<Self> {
        let folder = shell::target_dir().join("demo");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let id = process::id();
        let run_dir = PathBuf::from(format!("/run/waylay-demo-{id}"));
        let cgroup_name = format!("/waylay-demo-{id}");
        let stage = Self { folder, run_dir, cgroup2: cgroup2_mount()?, cgroup_name, port: free_port()? };
        stage.clear_when_interrupted()?;
        fs::create_dir(&stage.run_dir).with_context(|| format!("cannot make {}", stage.run_dir.display()))?;
        let cgroup = stage.cgroup();
        if let Err(reason) = fs::create_dir(&cgroup) {
            stage.clear();
            return Err(reason).with_context(|| format!("cannot make the cgroup {}", cgroup.display()));
        }
        Ok(stage)
    }

    /// Takes away what lies outside the folder.
    pub fn clear(&self) {
        clear(&self.run_dir, &self.cgroup());
    }

    /// Ctrl-C reaches curl and the agent as well (same terminal), so what is left is ours to remove.
    fn clear_when_interrupted(&self) -> Result<()> {
        let signals = interrupts();
        signals.thread_block()?;
        let (run_dir, cgroup) = (self.run_dir.clone(), self.cgroup());
        thread::spawn(move || {
            if let Ok(signal) = signals.wait() {
                eprintln!("\n{signal}: cleaning up");
                end_processes_in(&cgroup);
                clear(&run_dir, &cgroup);
                process::exit(128 + signal as i32);
            }
        });
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn cgroup(&self) -> PathBuf {
        self.cgroup2.join(self.cgroup_name.trim_start_matches('/'))
    }

    pub fn cgroup_name(&self) -> &str {
        &self.cgroup_name
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }

    pub fn access_log(&self) -> PathBuf {
        self.folder.join("access.log")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn write_config(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.folder.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    pub fn explain(&self, config: &Path, args: &[&str]) -> Result<String> {
        shell::stdout(Command::new(waylay()).arg("explain").arg("-c").arg(config).args(args))
    }

    /// curl as anyone would start it.
    pub fn curl_outside(&self, paths: &[&str]) -> Result<Answer> {
        curl(&mut Command::new("curl"), paths)
    }

    /// curl in the cgroup whose connections are taken: the shell moves itself there and becomes curl.
    pub fn curl(&self, paths: &[&str]) -> Result<Answer> {
        let mut sh = Command::new("sh");
        sh.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec curl \"$@\""]).arg(self.cgroup());
        curl(&mut sh, paths)
    }

    pub fn start_agent(&self, config: &Path) -> Result<Agent> {
        let log = self.folder.join("agent.log");
        // Each scene shows its own records.
        let _ = fs::remove_file(self.access_log());
        // setpriv: the agent goes when we go, however that happens.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(waylay()).arg("run").arg("-c").arg(config);
        command.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        let child = with_signals(|| command.spawn().context("cannot start the agent"))?;
        let mut agent = Agent { child, log, access_log: self.access_log() };
        agent.wait_ready(&self.socket())?;
        Ok(agent)
    }
}

fn curl(command: &mut Command, paths: &[&str]) -> Result<Answer> {
    let urls: Vec<_> = paths.iter().map(|path| format!("{SHOP}{path}")).collect();
    command.args(["-sS", "--noproxy", "*", "--max-time", "10", "-H", CANARY]).args(&urls);
    let output = shell::output(command)?;
    let text = format!(
        "$ curl -H '{CANARY}' {}\n{}{}",
        urls.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Answer { success: output.status.success(), text })
}

/// A running agent; dropping it ends it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
    access_log: PathBuf,
}

impl Agent {
    fn wait_ready(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        while !is_ready(socket) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}:\n{}", self.said());
            }
            ensure!(Instant::now() < deadline, "the agent is not ready:\n{}", self.said());
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits for that many access records.
    pub fn records(&self, count: usize) -> Result<String> {
        let deadline = Instant::now() + RECORD_LIMIT;
        loop {
            let text = fs::read_to_string(&self.access_log).unwrap_or_default();
            if text.lines().count() >= count {
                return Ok(text);
            }
            ensure!(Instant::now() < deadline, "fewer than {count} access records:\n{text}\n{}", self.said());
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// SIGTERM, as a service manager would.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the agent ended with {status}:\n{}", self.said());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the agent does not stop:\n{}", self.said());
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `/ready` on the admin socket says yes.
fn is_ready(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(READY_LIMIT))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: waylay\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn waylay() -> PathBuf {
    shell::target_dir().join("debug/waylay")
}

fn interrupts() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Programs inherit blocked signals, and the agent must not: they are let through while one is started.
fn with_signals<T>(start: impl FnOnce() -> Result<T>) -> Result<T> {
    interrupts().thread_unblock()?;
    let result = start();
    interrupts().thread_block()?;
    result
}

/// A port that is free now, on both loopback addresses as far as one can tell.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot open a port on loopback")?;
    Ok(listener.local_addr()?.port())
}

fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (folder, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(folder))
    });
    mount.context("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

fn end_processes_in(cgroup: &Path) {
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn clear(run_dir: &Path, cgroup: &Path) {
    // The kernel needs a moment after the last process of a cgroup has ended.
    let deadline = Instant::now() + Duration::from_secs(2);
    while cgroup.exists() && fs::remove_dir(cgroup).is_err() && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
    if cgroup.exists() {
        eprintln!("could not remove the cgroup {}", cgroup.display());
    }
    if run_dir.exists() && fs::remove_dir_all(run_dir).is_err() {
        eprintln!("could not remove {}", run_dir.display());
    }
}
