//! An agent that is killed while connections arrive: the application's own socket takes over.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use waylay::kernel::{InterceptOptions, Interception, Policy};

use crate::{
    pod::{CLIENT_V4, Pod, connect},
    world::{World, wait_until},
};

/// Tells the test binary, run once more, to be the agent: a cgroup and a pod.
const AGENT_OF: &str = "WAYLAY_TEST_AGENT_OF";
const CLIENTS: usize = 4;

/// What became of the clients' connections.
#[derive(Default)]
struct Outcomes {
    agent: AtomicUsize,
    application: AtomicUsize,
    /// The connection was made, but ended before a word came.
    cut: AtomicUsize,
    refused: AtomicUsize,
    other: AtomicUsize,
}

impl Outcomes {
    fn dial_until(&self, over: &AtomicBool) {
        while !over.load(SeqCst) {
            self.dial();
        }
    }

    fn dial(&self) {
        let outcome = match connect(CLIENT_V4, "10.77.0.2:8080") {
            Ok(mut stream) => {
                let mut word = [0; 3];
                match stream.read_exact(&mut word).map(|()| &word) {
                    Ok(b"agt") => &self.agent,
                    Ok(b"app") => &self.application,
                    Ok(_) => &self.other,
                    Err(_) => &self.cut,
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => &self.refused,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => &self.cut,
            Err(_) => &self.other,
        };
        outcome.fetch_add(1, SeqCst);
    }
}

#[test]
fn no_client_is_refused_when_the_agent_is_killed_under_load() {
    if let Ok(of) = env::var(AGENT_OF) {
        be_the_agent(&of);
    }
    let (world, pod) = (World::new(), Pod::new());
    let application = pod.serve("0.0.0.0:8080");
    let mut agent = Agent::start(&world, &pod);
    let (outcomes, over, clients_over) = (Outcomes::default(), AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        scope.spawn(|| serve(&application, b"app", &over));
        // The application serves until the last client is through.
        std::thread::scope(|scope| {
            let _over = SetOnDrop(&clients_over);
            for _ in 0..CLIENTS {
                scope.spawn(|| pod.outside(|| outcomes.dial_until(&clients_over)));
            }
            wait_until(|| outcomes.agent.load(SeqCst) > 300);
            assert_eq!(outcomes.application.load(SeqCst), 0);
            agent.kill();
            let taken = outcomes.agent.load(SeqCst);
            wait_until(|| outcomes.application.load(SeqCst) > 300);
            // At most what each client had under way.
            assert!(outcomes.agent.load(SeqCst) <= taken + CLIENTS);
        });
    });
    assert_eq!((outcomes.refused.load(SeqCst), outcomes.other.load(SeqCst)), (0, 0));
    let cut = outcomes.cut.load(SeqCst);
    assert!(cut <= CLIENTS, "{cut} connections were cut");
}

/// Answers every client with `word`.
fn serve(listener: &TcpListener, word: &[u8], over: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !over.load(SeqCst) {
        match listener.accept() {
            Ok((mut stream, _)) => _ = stream.write_all(word),
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

struct Agent(Child);

impl Agent {
    fn start(world: &World, pod: &Pod) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "loss::no_client_is_refused_when_the_agent_is_killed_under_load", "--nocapture"])
            .env(AGENT_OF, format!("{} {}", world.dir().display(), pod.name()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let agent = Self(child);
        assert!(lines.map_while(Result::ok).any(|line| line.contains("enrolled")), "the agent did not start");
        agent
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn be_the_agent(of: &str) -> ! {
    let (dir, pod) = of.split_once(' ').unwrap();
    let pod = Pod::existing(pod);
    let mut options = InterceptOptions::new(fs::canonicalize(dir).unwrap());
    (options.host, options.heartbeat_loss) = (false, Duration::from_secs(60));
    let mut interception = Interception::attach(&options).unwrap();
    pod.enrol(&mut interception, &Policy::default()).unwrap();
    println!("enrolled");
    serve(&pod.agent_v4, b"agt", &AtomicBool::new(false));
    unreachable!("it is killed")
}
