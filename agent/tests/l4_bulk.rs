//! Many bytes at once: whatever way they are handed on, they arrive as they were sent, in order and all of them, and the
//! record counts them exactly. These look at the process's pipes, so they have one of their own and run one at a time.

mod l4_support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use waylay::telemetry::ResponseFlags;

use l4_support::*;

const MIB: usize = 1024 * 1024;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes in which no part is like another.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(bytes + 8);
    while all.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        all.extend_from_slice(&state.to_le_bytes());
    }
    all.truncate(bytes);
    all
}

/// File descriptors of pipes that this process has.
fn pipe_ends() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").expect("files");
    files
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

fn both(site: Site) -> (AgentUnderTest, TcpStream, TcpStream) {
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site { default: vec![origin.address], ..site });
    let client = agent.connect();
    let server = origin.accept();
    (agent, client, server)
}

/// Not `assert_eq`, which would print them.
fn assert_same(what: &str, received: &[u8], sent: &[u8]) {
    assert_eq!(received.len(), sent.len(), "{what}");
    let differs = received.iter().zip(sent).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: the first byte that is another one");
}

fn send_in_background(stream: &TcpStream, bytes: &[u8]) -> std::thread::JoinHandle<std::io::Result<()>> {
    let (mut stream, bytes) = (stream.try_clone().expect("handle"), bytes.to_vec());
    std::thread::spawn(move || {
        stream.write_all(&bytes)?;
        stream.shutdown(Shutdown::Write)
    })
}

#[test]
fn bulk_goes_both_ways_at_once_without_copies_and_is_counted_exactly() {
    let _alone = alone();
    let before = pipe_ends();
    let (agent, mut client, mut server) = both(Site::to(&[]));
    let (up, down) = (noise(1, 24 * MIB + 1), noise(2, 17 * MIB + 7));
    let sending = [send_in_background(&client, &up), send_in_background(&server, &down)];
    let receiving = std::thread::spawn(move || read_to_end(&mut server));
    assert_same("down", &read_to_end(&mut client), &down);
    assert_same("up", &receiving.join().expect("thread"), &up);
    for sending in sending {
        sending.join().expect("thread").expect("sent");
    }
    let record = agent.records.only();
    assert_eq!((record.bytes_received, record.bytes_sent), (up.len() as u64, down.len() as u64));
    assert!(record.flags.is_empty(), "{}", record.flags);
    let pipes = pipe_ends() - before;
    assert!((1..=2 * 2 * 4).contains(&(pipes / 2)), "{pipes} ends of pipes: some are kept for the next connection");
}

#[test]
fn an_end_in_the_middle_of_bulk_ends_one_direction() {
    let _alone = alone();
    let (agent, mut client, mut server) = both(Site::to(&[]));
    let (up, down) = (noise(3, 9 * MIB + 5), noise(4, 11 * MIB));
    let sending = send_in_background(&client, &up);
    assert_same("up", &read_to_end(&mut server), &up);
    sending.join().expect("thread").expect("sent");
    let sending = send_in_background(&server, &down);
    assert_same("down", &read_to_end(&mut client), &down);
    sending.join().expect("thread").expect("sent");
    let record = agent.records.only();
    assert_eq!((record.bytes_received, record.bytes_sent), (up.len() as u64, down.len() as u64));
}

#[test]
fn what_comes_in_large_and_small_pieces_in_turn_stays_in_order() {
    let _alone = alone();
    let (agent, client, mut server) = both(Site::to(&[]));
    let mut all = 0;
    for round in 0..40_usize {
        // Around what begins and what ends bulk, and single bytes between.
        let sizes = [1, 3 * MIB / 2, 200, 70 * 1024, 32 * 1024 * (round % 5), 1 + round * 1000];
        for (i, bytes) in sizes.into_iter().enumerate() {
            let sent = noise((round * 10 + i) as u64, bytes);
            let (mut sender, to_send) = (client.try_clone().expect("handle"), sent.clone());
            let sending = std::thread::spawn(move || sender.write_all(&to_send));
            assert_same("a piece", &read_exactly(&mut server, bytes), &sent);
            sending.join().expect("thread").expect("sent");
            all += bytes as u64;
        }
    }
    drop((client, server));
    assert_eq!(agent.records.only().bytes_received, all);
}

#[test]
fn a_little_behind_a_burst_arrives_although_nothing_follows_it() {
    let _alone = alone();
    let (agent, mut client, mut server) = both(Site::to(&[]));
    server.set_read_timeout(Some(WAIT)).expect("timeout");
    let burst = noise(6, 24 * MIB);
    let mut all = 0;
    for (pause_us, bytes) in [(0, 1), (300, 100), (3_000, 5_000), (0, 100_000)] {
        let (mut sender, to_send) = (client.try_clone().expect("handle"), burst.clone());
        let sending = std::thread::spawn(move || sender.write_all(&to_send));
        assert_same("a burst", &read_exactly(&mut server, burst.len()), &burst);
        sending.join().expect("thread").expect("sent");
        std::thread::sleep(Duration::from_micros(pause_us));
        client.write_all(&burst[..bytes]).expect("sent");
        assert_same("a little", &read_exactly(&mut server, bytes), &burst[..bytes]);
        all += (burst.len() + bytes) as u64;
    }
    drop((client, server));
    assert_eq!(agent.records.only().bytes_received, all);
}

#[test]
fn a_receiver_that_stands_still_costs_no_time_and_loses_nothing() {
    let _alone = alone();
    let (agent, mut client, server) = both(Site::to(&[]));
    let down = noise(5, 32 * MIB);
    let sending = send_in_background(&server, &down);
    drop(server);
    let mut received = read_exactly(&mut client, 2 * MIB);
    std::thread::sleep(Duration::from_millis(300));
    let busy = cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    let busy = cpu_time() - busy;
    assert!(busy < Duration::from_millis(100), "{busy:?} of a second");
    let mut buffer = vec![0; 7000];
    while received.len() < down.len() {
        let read = client.read(&mut buffer).expect("read");
        assert!(read > 0, "the end after {} bytes", received.len());
        received.extend_from_slice(&buffer[..read]);
    }
    assert_same("down", &received, &down);
    sending.join().expect("thread").expect("sent");
    drop(client);
    assert_eq!(agent.records.only().bytes_sent, down.len() as u64);
}

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(us.unsigned_abs())
}

#[test]
fn a_reset_in_the_middle_of_bulk_is_handed_on_and_leaves_no_pipe_behind() {
    let _alone = alone();
    let before = pipe_ends();
    let origin = TcpOrigin::new();
    let agent = AgentUnderTest::of(Site::to(&[origin.address]));
    let down = noise(6, 48 * MIB);
    for round in 0..8 {
        let mut client = agent.connect();
        let mut server = origin.accept();
        server.set_write_timeout(Some(Duration::from_millis(100))).expect("timeout");
        server.write_all(&down).expect_err("all buffers are full");
        if round % 2 == 0 {
            reset(client);
            assert!(is_reset(&mut server));
        } else {
            reset(server);
            assert!(is_reset(&mut client));
        }
    }
    let records = agent.records.first(8);
    for flags in [ResponseFlags::DOWNSTREAM_TERMINATION, ResponseFlags::UPSTREAM_CONNECTION_TERMINATION] {
        assert_eq!(records.iter().filter(|record| record.flags == flags).count(), 4, "{flags}");
    }
    // Two workers keep four pipes each at most.
    let pipes = pipe_ends() - before;
    assert!(pipes <= 2 * 2 * 4, "{pipes} ends of pipes: those with bytes in them are closed");
}

#[test]
fn without_file_descriptors_for_pipes_bytes_are_copied() {
    let _alone = alone();
    let before = pipe_ends();
    let (agent, mut client, server) = both(Site::to(&[]));
    let down = noise(7, 12 * MIB);
    let sender = server.try_clone().expect("handle");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    // No number above those in use.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("limit");
    let sending = {
        let (mut sender, down) = (sender, down.clone());
        std::thread::spawn(move || sender.write_all(&down))
    };
    let received = read_exactly(&mut client, down.len());
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("limit");
    sending.join().expect("thread").expect("sent");
    assert_same("down", &received, &down);
    assert_eq!(pipe_ends(), before);
    drop((client, server));
    assert_eq!(agent.records.only().bytes_sent, down.len() as u64);
}
