//! The agent against Envoy itself: the same tables, the same bytes from the client, and then every difference in what
//! comes back, and in what the origin saw.
//!
//! Where the agent differs on purpose, the case says so, and why; it fails when the difference is gone, too. Served
//! on bound listeners: nothing is intercepted. What the agent does is also compared with what `explain` says.

mod cases;
mod differences;
mod explained;
mod origin;
mod raw;
mod tables;
mod translate;
mod wire;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use waylay_tests::world::Side;
use waylay_tests::{World, eventually, tools};

use cases::Case;
use differences::What;
use wire::{Answer, ask};

/// Cases asked at once: most of the time is waited for proxies that let a refused client read for a second.
const AT_ONCE: usize = 32;
/// Every so many cases `explain` is asked too, which is a process each.
const EXPLAIN_EVERY: usize = 12;

#[test]
fn the_agent_answers_as_envoy_does() {
    let world = World::new();
    world.inside(|| {
        for (name, port) in tables::ORIGINS {
            origin::serve(name, listen(port));
        }
        for (name, port) in tables::BYTE_ORIGINS {
            origin::serve_bytes(name, listen(port));
        }
    });
    let config = tables::config();
    let envoy_config = world.file("envoy.json", &translate::bootstrap(&config).to_string());
    let envoy_config = envoy_config.to_str().expect("a UTF-8 path");
    let args = ["-c", envoy_config, "--concurrency", "1", "--disable-hot-restart", "-l", "info"];
    let mut envoy = world.spawn(Side::Outside, tools::venv("envoy"), &args);
    let mut yaml = String::new();
    for (name, part) in config.as_object().expect("an object") {
        yaml.push_str(&format!("{name}: {part}\n"));
    }
    let agent = world.agent(&yaml);
    eventually("Envoy runs", || {
        assert!(envoy.is_running(), "Envoy does not take its configuration: {}", envoy.stderr());
        envoy.stderr().contains("starting main dispatch loop")
    });

    let cases = cases::all();
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((place, case)) =
            Some(next.fetch_add(1, Relaxed)).and_then(|place| Some((place, cases.get(place)?)))
        {
            let (envoy, waylay) = both(case);
            let explain = place.is_multiple_of(EXPLAIN_EVERY);
            let explained = explain.then(|| explained::judge(agent.config(), case, &waylay)).flatten();
            failures.lock().expect("failures").extend(judge(case, &envoy, &waylay).into_iter().chain(explained));
        }
    };
    // Threads are in the network namespace of the one that starts them: entering it takes long.
    world.inside(|| std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work)))));
    let mut failures = failures.into_inner().expect("failures");
    failures.extend(differences::unknown(&cases));
    failures.sort();
    assert!(
        failures.is_empty(),
        "{} of {} cases are not as they should be:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    agent.stop();
}

fn listen(port: u16) -> TcpListener {
    TcpListener::bind(("127.0.0.1", port)).expect("binding an origin")
}

fn both(case: &Case) -> (Answer, Answer) {
    let at = |host: &str| -> SocketAddr { format!("{host}:{}", case.port).parse().expect("an address") };
    let from = case.source.as_deref();
    (ask(at(translate::ENVOY), from, &case.request), ask(at(translate::WAYLAY), from, &case.request))
}

/// What is not as it should be.
fn judge(case: &Case, envoy: &Answer, waylay: &Answer) -> Option<String> {
    let names: BTreeSet<&String> = envoy.keys().chain(waylay.keys()).collect();
    let different: Vec<&str> =
        names.into_iter().filter(|name| envoy.get(*name) != waylay.get(*name)).map(String::as_str).collect();
    let known = differences::of(&case.name);
    let as_known = match known.map(|known| &known.what) {
        None => different.is_empty(),
        // All else follows from it.
        Some(What::Status(theirs, ours)) => envoy["status"] == *theirs && waylay["status"] == *ours,
        Some(What::Parts(parts)) => different == *parts,
    };
    if as_known {
        return None;
    }
    let mut text = case.name.clone();
    if let Some(known) = known {
        text.push_str(&format!("\n  should differ in {:?}: {}", known.what, known.why));
    }
    for name in different {
        let value = |answer: &Answer| answer.get(name).map_or("-".to_owned(), |value| format!("{value:?}"));
        text.push_str(&format!("\n  {name}: Envoy {}, waylay {}", value(envoy), value(waylay)));
    }
    Some(text)
}
