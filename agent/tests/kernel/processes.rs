//! Whose connections are taken: every criterion with real processes.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use waylay::{
    kernel::{Counter, Interception, Policy, Rule, cgroup, inspect::ChosenProcess},
    snapshot::ProcessRule,
};

use crate::world::{self, Client, World, counter};

/// A server in the machine that says `word` to everybody who comes, until it is dropped.
pub struct Answering {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    pub fn new(listener: TcpListener, word: &'static str) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => _ = stream.write_all(word.as_bytes()),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A server "direct", the agent's listener "agent", and hooks that take what goes to the server.
struct Choice {
    world: World,
    interception: Interception,
    direct: Answering,
    _agent: Answering,
}

impl Choice {
    fn new(rules: impl FnOnce(&World) -> Vec<ProcessRule>) -> Self {
        let world = World::new();
        let rules = rules(&world);
        let direct = Answering::new(TcpListener::bind("127.0.0.1:0").unwrap(), "direct");
        let agent = Answering::new(world.listener_v4(), "agent");
        let interception = world.attach(|options| {
            options.policy = only(direct.address);
            options.processes = rules;
        });
        Self { world, interception, direct, _agent: agent }
    }

    /// What a python process hears that does `before` first.
    fn heard_after(&self, before: &str) -> String {
        self.world.python(&format!("{before}\n{}", self.connect())).output()
    }

    fn connect(&self) -> String {
        let port = self.direct.address.port();
        format!("s = socket.create_connection(('127.0.0.1', {port}))\nprint(s.recv(9).decode())")
    }

    fn heard_in(&self, dir: &Path) -> String {
        let script = format!("import socket\n{}", self.connect());
        World::command_in(dir, &["/usr/bin/python3", "-c", &script]).output()
    }

    fn passed(&self) -> u64 {
        counter(&self.interception, Counter::PassedNotChosen)
    }
}

pub fn only(address: SocketAddr) -> Policy {
    let rule = Rule { cidr: Some(address.ip().into()), ports: vec![address.port()..=address.port()] };
    Policy { include: vec![rule], exclude: vec![] }
}

fn below_mount(path: &Path) -> PathBuf {
    Path::new("/").join(path.strip_prefix(cgroup::mount_point().unwrap()).unwrap())
}

#[test]
fn a_user_is_chosen_and_others_pass() {
    let choice = Choice::new(|_| vec![ProcessRule { uid: Some(65_534), ..ProcessRule::default() }]);
    assert_eq!(choice.heard_after(""), "direct");
    assert_eq!(choice.passed(), 1);
    assert_eq!(choice.heard_after("import os\nos.setuid(65534)"), "agent");
    assert_eq!(choice.passed(), 1);
    // No rows any more: everybody. Then nobody who is there.
    choice.interception.replace_processes(&[]).unwrap();
    assert_eq!(choice.heard_after(""), "agent");
    choice.interception.replace_processes(&[ProcessRule { uid: Some(1), ..ProcessRule::default() }]).unwrap();
    assert_eq!(choice.heard_after(""), "direct");
}

#[test]
fn the_kernels_table_is_read_back_as_it_was_written() {
    let alice = ProcessRule { uid: Some(65_534), comm: Some("curl".to_owned()), ..ProcessRule::default() };
    let choice = Choice::new(|_| vec![alice]);
    let chosen = world::instance(&choice.interception).chosen().unwrap();
    assert!(chosen.restricted);
    assert_eq!(chosen.netns_cookie, Some(choice.interception.kernel().netns_cookie()));
    let curl = ChosenProcess { uid: Some(65_534), pid: None, comm: Some("curl".to_owned()), cgroup_id: None };
    assert_eq!(chosen.rows, [curl]);
    choice.interception.replace_processes(&[]).unwrap();
    let chosen = world::instance(&choice.interception).chosen().unwrap();
    assert_eq!((chosen.restricted, chosen.netns_cookie, chosen.rows.len()), (false, None, 0));
}

#[test]
fn a_program_is_chosen_by_its_name_also_by_one_longer_than_the_kernel_keeps() {
    let name = "waylay-chosen-shell";
    let choice = Choice::new(|_| vec![ProcessRule { comm: Some(name.to_owned()), ..ProcessRule::default() }]);
    let folder = tempfile::tempdir().unwrap();
    let renamed = folder.path().join(name);
    fs::copy("/bin/bash", &renamed).unwrap();
    fs::set_permissions(&renamed, fs::Permissions::from_mode(0o755)).unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{} && read -r -N 5 w <&3; echo $w", choice.direct.address.port());
    assert_eq!(choice.world.command(&[renamed.to_str().unwrap(), "-c", &script]).output(), "agent");
    assert_eq!(choice.world.command(&["/bin/bash", "-c", &script]).output(), "direc");
}

#[test]
fn a_pid_is_that_process_alone_until_it_ends() {
    let world = World::new();
    let direct = Answering::new(TcpListener::bind("127.0.0.1:0").unwrap(), "direct");
    let _agent = Answering::new(world.listener_v4(), "agent");
    let connect = format!("socket.create_connection(('127.0.0.1', {})).recv(9).decode()", direct.address.port());
    let mut client: Client = world.python(&format!(
        "import os, threading\n\
         input()\n\
         print({connect}, flush=True)\n\
         t = threading.Thread(target=lambda: print({connect}, flush=True)); t.start(); t.join()\n\
         if os.fork() == 0:\n\
         \x20   print({connect}, flush=True)\n\
         \x20   os._exit(0)\n\
         os.wait()\ninput()"
    ));
    let interception = world.attach(|options| {
        options.policy = only(direct.address);
        options.processes = vec![ProcessRule { pid: Some(client.pid()), ..ProcessRule::default() }];
    });
    client.say("go");
    assert_eq!([client.line(), client.line(), client.line()], ["agent", "agent", "direct"]);
    client.say("end");
    client.output();
    interception.heartbeat().unwrap();
    // The row is gone, and nobody is not everybody.
    let after = world.python(&format!("print({connect})")).output();
    assert_eq!(after, "direct");
    assert_eq!(counter(&interception, Counter::PassedNotChosen), 2);
}

#[test]
fn a_cgroup_is_chosen_with_all_below_it() {
    let inner = std::cell::OnceCell::new();
    let choice = Choice::new(|world| {
        let path = inner.get_or_init(|| world.dir().join("chosen"));
        fs::create_dir_all(path.join("below")).unwrap();
        vec![ProcessRule { cgroup: Some(below_mount(path)), ..ProcessRule::default() }]
    });
    let path = inner.get().unwrap();
    assert_eq!(choice.heard_after(""), "direct");
    assert_eq!(choice.heard_in(path), "agent");
    assert_eq!(choice.heard_in(&path.join("below")), "agent");
    for dir in [path.join("below"), path.clone()] {
        world::wait_until(|| fs::remove_dir(&dir).is_ok());
    }
}

#[test]
fn a_unit_is_chosen_by_name_and_found_again_after_a_restart() {
    let unit = format!("waylay-test-{}.service", std::process::id());
    let choice = Choice::new(|world| {
        fs::create_dir_all(world.dir().join("app.slice").join(&unit)).unwrap();
        let unit = Some(unit.trim_end_matches(".service").to_owned());
        vec![ProcessRule { unit, uid: Some(0), ..ProcessRule::default() }]
    });
    let path = choice.world.dir().join("app.slice").join(&unit);
    assert_eq!(choice.heard_after(""), "direct");
    assert_eq!(choice.heard_in(&path), "agent");
    world::wait_until(|| fs::remove_dir(&path).is_ok());
    choice.interception.heartbeat().unwrap();
    // Another cgroup of the same name: the kernel gives it another id.
    fs::create_dir(&path).unwrap();
    assert_eq!(choice.heard_in(&path), "direct");
    for _ in 0..4 {
        choice.interception.heartbeat().unwrap();
    }
    assert_eq!(choice.heard_in(&path), "agent");
    world::wait_until(|| fs::remove_dir(&path).is_ok());
    fs::remove_dir(path.parent().unwrap()).unwrap();
}

#[test]
fn rows_that_name_nobody_are_explained_and_change_nothing() {
    let choice = Choice::new(|_| vec![ProcessRule { uid: Some(0), ..ProcessRule::default() }]);
    let rule = ProcessRule::default;
    for (rules, expected) in [
        (vec![ProcessRule { pid: Some(4_194_304), ..rule() }], "there is no process with pid 4194304"),
        (vec![ProcessRule { unit: Some("getty@".into()), ..rule() }], "is a template"),
        (vec![ProcessRule { unit: Some("no-such-unit".into()), ..rule() }], "systemd does not run here"),
        (vec![ProcessRule { cgroup: Some("/no/such".into()), ..rule() }], "no/such"),
        (vec![ProcessRule { unit: Some("a".into()), cgroup: Some("/".into()), ..rule() }], "has one cgroup"),
        (vec![rule(); 17], "17 rows, at most 16 are possible"),
    ] {
        // On a machine with systemd a unit may start later: that is no error there.
        if expected.contains("systemd") && Path::new("/run/systemd/system").is_dir() {
            continue;
        }
        let error = choice.interception.replace_processes(&rules).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(choice.heard_after(""), "agent");
}
