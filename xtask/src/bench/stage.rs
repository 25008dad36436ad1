//! What a run is played on: network namespaces with loopback alone, control groups, a folder for sockets and
//! configurations. All of it is taken away at the end, also after an error, Ctrl-C or (by the next run) SIGKILL.
//!
//! Everything that a run starts lies in its control groups: what is ended are exactly these processes.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

use super::machine::Cpus;
use crate::shell;

/// Names of everything that a run makes begin with this and its pid.
const PREFIX: &str = "waylay-bench-";
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// nginx, Envoy and waylay end within a fraction of this.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Short-lived connections by the ten thousand leave ports in TIME_WAIT: more ports, and they are used again, and those of
/// one system must not make connections dear for the next. Where the kernel tracks connections, its entries go as soon.
/// Reno, which every namespace may use: with BBR, which some machines have for their default, bytes over loopback wait for
/// timers, and half of the time is TCP's own.
const SETTINGS: &str = "
set -e
ip link set lo up
cd /proc/sys/net
echo '1024 65000' >ipv4/ip_local_port_range
# A proxy's port must not be a client's when the proxy starts.
echo '7000-9200' >ipv4/ip_local_reserved_ports
echo 1 >ipv4/tcp_tw_reuse
echo 2000 >ipv4/tcp_max_tw_buckets
echo reno >ipv4/tcp_congestion_control
";
const NAT: &str = "
set -e
iptables -t nat -A OUTPUT -p tcp -d 127.77.0.1 -j REDIRECT
cd /proc/sys/net/netfilter
for state in time_wait close fin_wait last_ack close_wait; do echo 1 >nf_conntrack_tcp_timeout_$state; done
";

#[derive(Debug)]
pub struct Stage {
    id: String,
    cgroup2: PathBuf,
    cpus: Cpus,
}

/// A network namespace of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// Loopback and nothing else.
    Plain,
    /// ... and iptables, which sends what goes to 127.77.0.1 to this namespace's own servers.
    Iptables,
}

/// Where a program runs.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    pub net: Net,
    /// A control group below the run's own.
    pub group: &'a str,
    pub cpu: usize,
}

impl Stage {
    pub fn build(cpus: Cpus) -> Result<Self> {
        ensure!(shell::is_root(), "namespaces and interception need root: run it with sudo");
        sweep();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let stage = Self { id: format!("{PREFIX}{}", process::id()), cgroup2: cgroup2_mount()?, cpus };
        stage.clear_when_interrupted()?;
        fs::create_dir_all(stage.folder()).with_context(|| format!("cannot make {}", stage.folder().display()))?;
        stage.group("outside")?;
        stage.namespace(Net::Plain)?;
        Ok(stage)
    }

    pub fn cpus(&self) -> Cpus {
        self.cpus
    }

    /// For sockets, whose paths are short, and for configurations.
    pub fn folder(&self) -> PathBuf {
        Path::new("/run").join(&self.id)
    }

    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let file = self.folder().join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// Makes a network namespace.
    pub fn namespace(&self, net: Net) -> Result<()> {
        self.named_namespace(&self.netns(net))?;
        if net == Net::Iptables {
            // Some kernels count connections only since they have a rule that needs it, and have the files since then.
            shell::stdout(inside(&self.netns(net)).args(["sh", "-c", NAT]))?;
        }
        Ok(())
    }

    /// Makes one whose name begins with the run's own, which is what removes it.
    pub fn named_namespace(&self, name: &str) -> Result<()> {
        debug_assert!(name.starts_with(&self.id));
        shell::stdout(shell::command("ip").args(["netns", "add", name]))?;
        shell::stdout(inside(name).args(["sh", "-c", SETTINGS]))?;
        Ok(())
    }

    pub fn netns(&self, net: Net) -> String {
        match net {
            Net::Plain => self.id.clone(),
            Net::Iptables => format!("{}-nat", self.id),
        }
    }

    /// Makes a control group; its path below the cgroup2 mount, as `intercept.cgroup` wants it.
    pub fn group(&self, name: &str) -> Result<String> {
        let below = format!("/{}/{name}", self.id);
        let path = self.cgroup2.join(below.trim_start_matches('/'));
        fs::create_dir_all(&path).with_context(|| format!("cannot make the control group {}", path.display()))?;
        Ok(below)
    }

    /// The folder of a control group that [`Self::group`] has made.
    pub fn group_folder(&self, name: &str) -> PathBuf {
        self.cgroup2.join(&self.id).join(name)
    }

    /// The file of a network namespace.
    pub fn netns_file(&self, net: Net) -> PathBuf {
        Path::new("/run/netns").join(self.netns(net))
    }

    /// A command that will run there.
    pub fn command(&self, place: &Place<'_>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_in(&self.netns(place.net), place, program)
    }

    /// The same in another of the run's namespaces.
    pub fn command_in(&self, netns: &str, place: &Place<'_>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // The shell becomes the program, so that its pid is the program's; if we die, it is ended.
        let mut command = Command::new("sh");
        command.args(["-c", START, "sh"]);
        command.arg(self.cgroup2.join(&self.id).join(place.group));
        command.arg(Path::new("/run/netns").join(netns)).arg(place.cpu.to_string()).arg(program.as_ref());
        command.current_dir(self.folder());
        command
    }

    /// Calls `work` on a thread inside a namespace: sockets that it makes are there.
    pub fn inside<T: Send>(&self, net: Net, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = File::open(Path::new("/run/netns").join(self.netns(net)))?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn clear_when_interrupted(&self) -> Result<()> {
        let mut signals = Signals::new(TERM_SIGNALS).context("cannot wait for signals")?;
        let (id, cgroup2) = (self.id.clone(), self.cgroup2.clone());
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                eprintln!("\ninterrupted: cleaning up");
                clear(&id, &cgroup2);
                process::exit(128 + signal);
            }
        });
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        clear(&self.id, &self.cgroup2);
    }
}

/// Arguments: control group, namespace, CPU, program and its own arguments.
const START: &str = r#"echo $$ >"$1/cgroup.procs" && ns=$2 cpu=$3 && shift 3 &&
exec nsenter --net="$ns" -- taskset -c "$cpu" setpriv --pdeathsig TERM -- "$@""#;

fn inside(netns: &str) -> Command {
    let mut command = shell::command("nsenter");
    command.arg(format!("--net=/run/netns/{netns}")).arg("--");
    command
}

/// A program that runs until it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
    end_with: Signal,
}

impl Running {
    /// Its output goes to `NAME.log` in the run's folder.
    pub fn start(stage: &Stage, name: &str, mut command: Command) -> Result<Self> {
        let log = stage.folder().join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, log, end_with: Signal::SIGTERM })
    }

    /// What ends it at once, where SIGTERM makes it wait.
    pub fn end_with(&mut self, signal: Signal) {
        self.end_with = signal;
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// An error with what it said, if it has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("it ended with {status}: {}", self.said()),
            None => Ok(()),
        }
    }

    /// The end of what it wrote.
    pub fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(self.end_with);
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL_INTERVAL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end; what it wrote to stdout.
pub fn finish(mut command: Command, limit: Duration) -> Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let outputs = [child.stdout.take().map(reader), child.stderr.take().map(reader)];
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::sleep(POLL_INTERVAL),
            None => {
                child.kill()?;
                child.wait()?;
                bail!("no end within {} s: {}", limit.as_secs(), readable(&command));
            }
        }
    };
    let [stdout, stderr] = outputs.map(|thread| thread.and_then(|thread| thread.join().ok()).unwrap_or_default());
    ensure!(status.success(), "{}: {status}: {} {}", readable(&command), stderr.trim(), stdout.trim());
    Ok(stdout)
}

/// A command that [`Stage::command`] made, without the shell that starts it and without the folders of this machine.
pub fn readable(command: &Command) -> String {
    let folder = command.get_current_dir().map(|folder| folder.display().to_string()).unwrap_or_default();
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    // -c, the shell's program, its name, control group, namespace, CPU.
    shortened(words.skip(6), &folder)
}

/// The program by its name, files of the run's folder by theirs.
fn shortened(words: impl Iterator<Item = String>, folder: &str) -> String {
    let words = words.enumerate().map(|(index, word)| match word.strip_prefix(folder) {
        Some("") => ".".to_owned(),
        Some(rest) if !folder.is_empty() => rest.trim_start_matches('/').to_owned(),
        _ if index == 0 => word.rsplit('/').next().unwrap_or_default().to_owned(),
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn reader(mut pipe: impl std::io::Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks only shortens the message.
        let _ = pipe.by_ref().read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields.get(2) == Some(&"cgroup2")).then(|| fields.get(1).map(PathBuf::from))?
    });
    mount.context("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Takes away what runs left behind that were killed.
fn sweep() {
    let Ok(cgroup2) = cgroup2_mount() else { return };
    for entry in fs::read_dir(&cgroup2).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let gone = name.strip_prefix(PREFIX).is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if gone {
            eprintln!("taking away what {name} left behind, which was killed");
            clear(&name, &cgroup2);
        }
    }
}

fn clear(id: &str, cgroup2: &Path) {
    let top = cgroup2.join(id);
    let deadline = Instant::now() + STOP_LIMIT;
    while top.exists() && !remove_group(&top) && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
    if top.exists() {
        eprintln!("could not remove the control group {}", top.display());
    }
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if ours && let Err(reason) = shell::stdout(shell::command("ip").args(["netns", "del", &name])) {
            eprintln!("could not remove the network namespace {name}: {reason:#}");
        }
    }
    let folder = Path::new("/run").join(id);
    if folder.exists() && fs::remove_dir_all(&folder).is_err() {
        eprintln!("could not remove {}", folder.display());
    }
}

/// Ends all in a control group and below, and removes it; whether it is gone. The kernel needs a moment after the last
/// process has ended.
fn remove_group(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_group(&entry.path());
    }
    let pids = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    fs::remove_dir(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_the_machine() {
        let words = ["/usr/bin/wrk", "-s", "/run/f/requests.lua", "/run/f", "http://127.0.0.1/"];
        let shown = shortened(words.into_iter().map(str::to_owned), "/run/f");
        assert_eq!(shown, "wrk -s requests.lua . http://127.0.0.1/");
    }
}
