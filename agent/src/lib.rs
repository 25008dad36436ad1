//! The waylay agent: takes the connections that the kernel hands over, and serves them as an Envoy sidecar would.
//!
//! Read [`pipeline`] first: it is the way of a connection, and all the branching of it.
#![forbid(unsafe_code)]

pub mod addr;
pub mod admin;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod dispatch;
pub mod dns;
pub mod drain;
pub mod explain;
pub mod http;
pub mod kernel;
pub mod lint;
pub mod listener;
pub mod netns;
pub mod pipeline;
pub mod place;
pub mod privilege;
pub mod server;
pub mod signal;
pub mod snapshot;
pub mod tcp;
pub mod telemetry;
pub mod timer;
pub mod worker;
pub mod workload;
