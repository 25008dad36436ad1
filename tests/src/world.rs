//! A place for one test: network namespace, cgroups, folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Child, Finished};
use crate::{Agent, Origin};

/// What Python programs of the tests have at hand: all that a socket still gives.
pub const PRELUDE: &str = "
def rest(s):
    data = b''
    while got := s.recv(65536): data += got
    return data
";

static NEXT: AtomicU32 = AtomicU32::new(0);
static PREPARE: Once = Once::new();

/// Names of the two cgroups of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The intercepted programs.
    App,
    /// The agent, the origins, everything that is not intercepted.
    Outside,
}

/// A place of its own; see the crate's documentation.
#[derive(Debug)]
pub struct World {
    name: String,
    cgroup_mount: PathBuf,
    folder: tempfile::TempDir,
    origins: Mutex<Vec<Arc<Origin>>>,
}

impl World {
    /// Makes one.
    ///
    /// # Panics
    /// Not root, or no cgroup2, or no network namespaces: a privileged test that cannot run fails.
    pub fn new() -> Self {
        Self::build().expect("a world for the test (these tests need root: run `cargo xtask test`)")
    }

    fn build() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "these tests need root");
        PREPARE.call_once(|| {
            sweep();
            raise_file_limit();
        });
        let name = format!("wl-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let folder = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        let world = Self { name, cgroup_mount: cgroup2_mount()?, folder, origins: Mutex::default() };
        run("ip", &["netns", "add", &world.name])?;
        world.host("ip", &["link", "set", "lo", "up"])?;
        for side in [Side::App, Side::Outside] {
            let path = world.cgroup(side);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(world)
    }

    /// Its name: unique on the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of the test's files; removed with the world.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of a cgroup of this world.
    pub fn cgroup(&self, side: Side) -> PathBuf {
        self.cgroup_mount.join(self.cgroup_name(side).trim_start_matches('/'))
    }

    /// The path of a cgroup below the cgroup2 mount, as the configuration names it.
    pub fn cgroup_name(&self, side: Side) -> String {
        match side {
            Side::App => format!("/{}/app", self.name),
            Side::Outside => format!("/{}/outside", self.name),
        }
    }

    /// The network namespace, as `nsenter --net` takes it.
    pub fn netns(&self) -> PathBuf {
        Path::new("/var/run/netns").join(&self.name)
    }

    /// Writes a file into the world's folder.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder().join(name);
        fs::write(&path, text).expect("writing a file of the test");
        path
    }

    /// The arguments that start a program in this world.
    pub fn command(&self, side: Side, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_in(&self.cgroup(side), program)
    }

    /// The same in any cgroup.
    pub fn command_in(&self, cgroup: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // `ip netns exec` would remount /sys and hide the cgroups: join the cgroup first, then the namespace.
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("echo $$ >\"$1/cgroup.procs\" && ns=$2 && shift 2 && exec nsenter --net=\"$ns\" -- \"$@\"")
            .arg("sh")
            .arg(cgroup)
            .arg(self.netns())
            .arg(program.as_ref());
        command
    }

    /// Runs a program inside to its end.
    pub fn run(&self, side: Side, program: &str, args: &[&str]) -> Finished {
        let mut command = self.command(side, program);
        command.args(args);
        Finished::of(command)
    }

    /// Runs an intercepted program to its end.
    pub fn app(&self, program: &str, args: &[&str]) -> Finished {
        self.run(Side::App, program, args)
    }

    /// Runs an intercepted Python program to its end; it must succeed. It finds [`PRELUDE`] defined.
    #[track_caller]
    pub fn python(&self, program: &str) -> String {
        self.app("python3", &["-c", &format!("{PRELUDE}{program}")]).success()
    }

    /// Starts an intercepted Python program that runs until it is dropped; it finds [`PRELUDE`] defined.
    pub fn spawn_python(&self, program: &str, args: &[&str]) -> Child {
        let program = format!("{PRELUDE}{program}");
        self.spawn(Side::App, "python3", &[&["-u", "-c", program.as_str()], args].concat())
    }

    /// Starts a program inside that runs until it is dropped.
    pub fn spawn(&self, side: Side, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Child {
        let mut command = self.command(side, program);
        command.args(args);
        Child::spawn(command)
    }

    /// Runs a set-up command inside the network namespace.
    pub fn host(&self, program: &str, args: &[&str]) -> Result<()> {
        let mut all = vec!["--net=/var/run/netns/".to_owned() + &self.name, "--".to_owned(), program.to_owned()];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        run("nsenter", &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Calls `inside` on a thread that has entered the network namespace; sockets made there stay there.
    pub fn inside<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(self.netns()).expect("the world's network namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the network namespace");
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts an origin that answers HTTP requests with its name.
    pub fn origin(&self, name: &str, address: &str) -> Arc<Origin> {
        let listener = self.inside(|| std::net::TcpListener::bind(address).expect("binding an origin"));
        let origin = Arc::new(Origin::serve(name, listener));
        self.origins.lock().expect("origins").push(origin.clone());
        origin
    }

    /// Starts the agent with this configuration and waits until it is ready.
    pub fn agent(&self, config: &str) -> Agent {
        Agent::start(self, config)
    }

    /// Pids in a cgroup of this world.
    pub fn pids(&self, side: Side) -> Vec<i32> {
        pids(&self.cgroup(side))
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// How many programs are attached to the world's cgroups, by the kernel's own word.
    pub fn attached_programs(&self) -> usize {
        [Side::App, Side::Outside].iter().map(|side| attached_programs(&self.cgroup(*side))).sum()
    }

    /// Folders of pins that belong to the world's cgroups: `<bpffs>/waylay/<cgroup id>`.
    pub fn pins(&self) -> Vec<PathBuf> {
        use std::os::unix::fs::MetadataExt;
        [Side::App, Side::Outside]
            .iter()
            .filter_map(|side| fs::metadata(self.cgroup(*side)).ok())
            .map(|metadata| Path::new("/sys/fs/bpf/waylay").join(metadata.ino().to_string()))
            .filter(|path| path.exists())
            .collect()
    }

    /// What a test left in the kernel after its processes ended; taken away, and told.
    fn leftovers(&self) -> Vec<String> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        // The kernel frees a killed agent's links a moment after its process is gone.
        while self.pins().is_empty() && self.attached_programs() > 0 && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let mut found: Vec<_> = self.pins().iter().map(|pin| format!("pin {}", pin.display())).collect();
        let attached = self.attached_programs();
        if attached > 0 {
            found.push(format!("{attached} attached programs"));
        }
        if !found.is_empty() {
            for side in [Side::App, Side::Outside] {
                let _ =
                    Command::new(crate::agent::binary()).args(["detach", "--cgroup", &self.cgroup_name(side)]).output();
            }
        }
        found
    }
}

fn attached_programs(cgroup: &Path) -> usize {
    let output = Command::new("bpftool").args(["cgroup", "show"]).arg(cgroup).output().expect("bpftool is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())).count()
}

impl Drop for World {
    fn drop(&mut self) {
        let top = self.cgroup_mount.join(&self.name);
        for side in [Side::App, Side::Outside] {
            end_all(&self.cgroup(side));
        }
        let leftovers = self.leftovers();
        remove_cgroup(&top);
        remove_namespaces(&self.name);
        if !std::thread::panicking() {
            assert!(leftovers.is_empty(), "the test left behind: {}", leftovers.join(", "));
        }
    }
}

/// Ends whatever runs in `cgroup`.
fn end_all(cgroup: &Path) {
    for pid in pids(cgroup) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// A thousand connections at once need more than the 1,024 files that many shells allow, in the origins and, which
/// inherit the limit, in the clients.
fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Takes away the worlds of test processes that were killed: those could not do it themselves.
fn sweep() {
    let Ok(entries) = cgroup2_mount().and_then(|mount| Ok(fs::read_dir(mount)?)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix("wl-").and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid.to_owned());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            eprintln!("taking away the world {name} of a test that was killed");
            remove_cgroup(&entry.path());
            for folder in folders_of(&name) {
                crate::containerd::clean_up(&name, &folder);
                let _ = fs::remove_dir_all(folder);
            }
            remove_namespaces(&name);
        }
    }
}

/// The folder of the world `name`, whose end is random.
fn folders_of(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the network namespace of the world `name`, and those that a test named after it, with a hyphen.
fn remove_namespaces(name: &str) {
    let Ok(entries) = fs::read_dir("/var/run/netns") else { return };
    for entry in entries.flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if found.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
            let _ = run("ip", &["netns", "del", &found]);
        }
    }
}

/// Ends what is still running in `path` and below, and removes it.
fn remove_cgroup(path: &Path) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    for _ in 0..200 {
        end_all(path);
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    eprintln!("could not remove the cgroup {}", path.display());
}

fn pids(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The cgroup2 mount, found by its file-system type.
///
/// # Errors
/// There is none.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 file system is mounted")
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
