//! Programs that a test starts.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

/// Longest a program may run that a test waits for.
const LONGEST: Duration = Duration::from_secs(60);

/// A program that came to its end.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// Runs `command` to its end; it is ended by force after a minute.
    #[track_caller]
    pub fn of(mut command: Command) -> Self {
        let started = Instant::now();
        command.stdin(Stdio::null());
        let mut child = Child::spawn(command);
        let status = child.wait(LONGEST);
        Self { status, stdout: child.stdout(), stderr: child.stderr(), took: started.elapsed() }
    }

    /// What it printed.
    ///
    /// # Panics
    /// It failed.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stdout
    }

    /// What it complained.
    ///
    /// # Panics
    /// It did not fail.
    #[track_caller]
    pub fn failure(self) -> String {
        assert!(!self.status.success(), "it should have failed\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stderr
    }
}

/// A running program; ended by force when dropped.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Child {
    /// Starts `command`, keeping what it prints.
    #[track_caller]
    pub fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = vec![
            collect(child.stdout.take().expect("piped"), &stdout),
            collect(child.stderr.take().expect("piped"), &stderr),
        ];
        Self { child, stdout, stderr, readers }
    }

    /// Its pid: the shell that starts it replaces itself.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("sending a signal to a child of the test");
    }

    /// What it printed so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().expect("stdout")).into_owned()
    }

    /// What it complained so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("stderr")).into_owned()
    }

    /// Ends it by force.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It took longer than `longest`.
    #[track_caller]
    pub fn wait(&mut self, longest: Duration) -> ExitStatus {
        let deadline = Instant::now() + longest;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child") {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "still running after {longest:?}\nstdout: {}\nstderr: {}",
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        // A grandchild may hold the pipes open for longer: whatever it prints is not waited for for ever.
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        status
    }

    /// Waits until it printed `text`, on either stream.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        eventually(&format!("the program printed {text:?}"), || {
            self.stdout().contains(text) || self.stderr().contains(text)
        });
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

fn collect(mut from: impl Read + Send + 'static, to: &Arc<Mutex<Vec<u8>>>) -> std::thread::JoinHandle<()> {
    let to = to.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            to.lock().expect("output").extend_from_slice(&buffer[..n]);
        }
    })
}
