//! The HTTP data path over real loopback sockets: bytes, records and statistics.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod adversity;
mod basics;
mod bodies;
mod endpoints;
mod failures;
#[path = "../fixture/mod.rs"]
mod fixture;
mod http2;
mod lifetimes;
mod pieces;
mod refusals;
mod sticky;
mod support;
