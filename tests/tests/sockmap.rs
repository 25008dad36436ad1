//! Why no socket of an application is put into a sockmap: what the kernel then does to it (`docs/shortcut.md`), and that
//! an intercepted one is as it was.
//!
//! Should one of these fail on a newer kernel, that kernel has changed: the document says what to look at again.

use std::path::Path;

use serde_json::{Value, json};
use waylay_tests::World;
use waylay_tests::config::BYTES;

/// Runs one verb of the program that the document is about, as an application.
#[track_caller]
fn observe(world: &World, verb: &str) -> Value {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("sockmap/sockmap.py");
    let program = program.to_str().expect("a UTF-8 path");
    let said = world.app("python3", &["-B", program, verb]).success();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

const EAGAIN: &str = "Resource temporarily unavailable";
const ECONNRESET: &str = "Connection reset by peer";
const EPIPE: &str = "Broken pipe";

/// What an application sees: outside, in a sockmap whose program redirects on demand, and in one with a verdict program
/// that passes everything besides.
fn contract() -> Value {
    let row = |outside: Value, sockmap: Value, verdict: Value| json!({"outside": outside, "sockmap": sockmap, "verdict": verdict});
    json!({
        "bytes_are_spliced_by_tcp": row(json!(5), json!(5), json!(EAGAIN)),
        "bytes_are_spliced_past_tcp": row(json!(5), json!(EAGAIN), json!(EAGAIN)),
        "unread_bytes_past_tcp": row(json!(5), json!(5), json!(5)),
        "short_read_then_edge": row(json!("first second"), json!("first "), json!("first second")),
        "recv_over_a_signal": row(json!(5), json!(EAGAIN), json!(EAGAIN)),
        "recv_beside_a_writer": row(json!(5), json!(EAGAIN), json!(EAGAIN)),
        "recv_of_a_reset": row(json!(ECONNRESET), json!(EAGAIN), json!(EAGAIN)),
        "waitall_by_tcp": row(json!(20), json!(20), json!(10)),
        "waitall_past_tcp": row(json!(20), json!(10), json!(10)),
        "readable_below_low_watermark": row(json!(false), json!(true), json!(true)),
        "zero_copy_completions": row(json!(1), json!(0), json!(0)),
        "send_after_shutdown": row(json!(EPIPE), json!(5), json!(5)),
        "peer_closes_without_reading": row(json!(ECONNRESET), json!(0), json!(0)),
        "bytes_after_removal": row(json!(10), json!(EAGAIN), json!(EAGAIN)),
    })
}

/// Kernels differ in this one: without a verdict program some say 0, and what sizes its reads by it waits for ever.
const DIFFERS: &str = "unread_bytes_by_tcp";

#[test]
fn a_sockmap_changes_what_an_applications_system_calls_mean() {
    let world = World::new();
    let mut seen = observe(&world, "contract");
    let differs = seen[DIFFERS].take();
    seen.as_object_mut().expect("rows").remove(DIFFERS);
    assert_eq!(seen, contract(), "this kernel has changed: see docs/shortcut.md");
    assert_eq!((&differs["outside"], &differs["verdict"]), (&json!(5), &json!(5)), "{differs}");
}

#[test]
fn an_intercepted_socket_keeps_its_contract() {
    let world = World::new();
    let agent = world.agent(BYTES);
    let seen = observe(&world, "outside");
    let expected = contract();
    let rows = seen.as_object().expect("rows");
    for (row, answers) in rows {
        let outside = expected.get(row).map_or(json!(5), |row| row["outside"].clone());
        assert_eq!(answers["outside"], outside, "{row}");
    }
    let taken = agent.wait_records("connection", rows.len());
    assert!(taken.iter().all(|record| record["comm"] == "python3"), "{taken:#?}");
    agent.stop();
}

#[test]
fn bytes_keep_their_order_when_a_connection_leaves_a_shortcut_and_comes_back_drained() {
    let world = World::new();
    let seen = observe(&world, "order");
    let ways = seen.as_object().expect("ways");
    assert_eq!(ways.len(), 6);
    for (way, ends) in ways {
        assert_eq!(ends, &json!({"same": 100}), "{way}");
    }
}

#[test]
fn nothing_holds_back_who_sends_past_tcp() {
    let world = World::new();
    let seen = observe(&world, "unread");
    let taken = |kind: &str| seen[kind].as_u64().expect("bytes");
    assert!(taken("outside") < 30_000_000, "{seen}");
    assert!(taken("sockmap") >= 100_000_000 && taken("verdict") >= 100_000_000, "{seen}");
}
