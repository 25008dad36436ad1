//! The agent under test: the real binary, in the world's namespace, outside the intercepted cgroup.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::{Child, Finished};
use crate::world::{Side, World};
use crate::{SOON, eventually};

/// The built binary: beside the test programs in the target directory.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let binary = folder.join("waylay");
    assert!(binary.exists(), "{} is missing: run `cargo xtask test`, which builds it first", binary.display());
    binary
}

/// A running agent. Dropping it ends it by force.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    config: PathBuf,
}

impl Agent {
    /// Starts it with `config` (YAML without `admin`, `access_log` and `intercept.cgroup`, which the world gives) and
    /// waits until it is ready.
    #[track_caller]
    pub fn start(world: &World, config: &str) -> Self {
        let agent = Self::spawn(world, config);
        agent.wait_ready();
        agent
    }

    /// Starts it and does not wait.
    pub fn spawn(world: &World, config: &str) -> Self {
        Self::spawn_through(world, config, &[])
    }

    /// The same through a program that changes something about itself and then becomes the agent: `env NAME=VALUE`,
    /// `setpriv --bounding-set -sys_admin`.
    pub fn spawn_through(world: &World, config: &str, through: &[&str]) -> Self {
        let (socket, log) = (world.folder().join("admin.sock"), world.folder().join("access.log"));
        let config = world.file("waylay.yaml", &complete(world, config, &socket, &log));
        let binary = binary();
        let mut line = through.to_vec();
        line.extend([binary.to_str().expect("a UTF-8 path"), "run", "--concurrency", "2", "-c"]);
        line.push(config.to_str().expect("a UTF-8 path"));
        let child = world.spawn(Side::Outside, line[0], &line[1..]);
        Self { child, socket, log, config }
    }

    /// Replaces the configuration file, as an editor does.
    pub fn rewrite(&self, world: &World, config: &str) {
        let text = complete(world, config, &self.socket, &self.log);
        let next = self.config.with_extension("next");
        std::fs::write(&next, text).expect("writing the next configuration");
        std::fs::rename(&next, &self.config).expect("replacing the configuration");
    }

    /// Waits until `/ready` answers LIVE.
    #[track_caller]
    pub fn wait_ready(&self) {
        let deadline = Instant::now() + SOON;
        loop {
            if let Ok((200, _)) = self.get("/ready") {
                return;
            }
            assert!(Instant::now() < deadline, "the agent is not ready\nstderr: {}", self.child.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the admin socket: status and body.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        self.request("GET", path)
    }

    /// The same with another method.
    pub fn request(&self, method: &str, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: waylay\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, if answer.contains("transfer-encoding: chunked") { unchunk(&body) } else { body }))
    }

    /// The value of a Prometheus metric; 0 when it is absent. `series` as in the exposition, labels included.
    pub fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/stats/prometheus").expect("metrics");
        text.lines()
            .filter_map(|line| line.rsplit_once(' '))
            .find(|(name, _)| *name == series)
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(0.0)
    }

    /// All access records so far.
    pub fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a record is a JSON object")).collect()
    }

    /// Waits until there are `n` records of `kind` (`connection` or `request`) and returns them.
    #[track_caller]
    pub fn wait_records(&self, kind: &str, n: usize) -> Vec<Value> {
        let of_kind = || -> Vec<Value> { self.records().into_iter().filter(|record| record["kind"] == kind).collect() };
        eventually(&format!("{n} {kind} records, got {:#?}", of_kind()), || of_kind().len() >= n);
        // One more than expected would come at the same time.
        std::thread::sleep(Duration::from_millis(150));
        let records = of_kind();
        assert_eq!(records.len(), n, "{records:#?}");
        records
    }

    /// Replaces the configuration, and waits until it is in force.
    #[track_caller]
    pub fn reload(&self, world: &World, config: &str) {
        let version = || self.metric("waylay_server_config_reload_success");
        let before = version();
        self.rewrite(world, config);
        eventually("the new configuration is in force", || version() > before);
    }

    /// How many files it holds open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.pid())).expect("the agent's files").count()
    }

    /// Its descriptors by which programs are attached, and all others.
    ///
    /// # Panics
    /// One of them would be inherited by other programs.
    #[track_caller]
    pub fn links_and_others(&self) -> (Vec<u32>, Vec<u32>) {
        let close_on_exec = nix::fcntl::OFlag::O_CLOEXEC.bits();
        let folder = format!("/proc/{}/fdinfo", self.child.pid());
        let (mut links, mut others) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).expect("the agent's files").flatten() {
            // Connections come and go meanwhile.
            let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
            let number = entry.file_name().to_string_lossy().parse().expect("a descriptor");
            if text.contains("link_type:") {
                let flags = text.lines().find_map(|line| line.strip_prefix("flags:\t")).expect("flags");
                let flags = i32::from_str_radix(flags, 8).expect("an octal number");
                assert!(flags & close_on_exec != 0, "descriptor {number} is inherited: {text}");
                links.push(number);
            } else {
                others.push(number);
            }
        }
        (links, others)
    }

    /// Its resident memory.
    pub fn resident_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid())).expect("the agent's status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Its admin socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Runs another verb of the command line against this agent.
    pub fn cli(&self, args: &[&str]) -> Finished {
        let mut command = std::process::Command::new(binary());
        command.args(args).arg("--admin-socket").arg(&self.socket);
        Finished::of(command)
    }

    /// SIGTERM, and what it said.
    ///
    /// # Panics
    /// It did not exit with 0.
    #[track_caller]
    pub fn stop(mut self) -> String {
        self.child.signal(Signal::SIGTERM);
        let status = self.child.wait(Duration::from_secs(60));
        assert!(status.success(), "{status}\nstderr: {}", self.child.stderr());
        self.child.stderr()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.signal(Signal::SIGKILL);
        self.child.wait(SOON);
    }
}

/// Adds what the world decides: where the agent answers, where it writes, which cgroup it takes.
fn complete(world: &World, config: &str, socket: &Path, log: &Path) -> String {
    let config = config.replace("@CGROUP@", &world.cgroup_name(Side::App));
    format!(
        "admin: {{socket: {}, prometheus: null, readiness: null}}\naccess_log: [{{path: {}, format: json}}]\n{config}",
        socket.display(),
        log.display()
    )
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}
