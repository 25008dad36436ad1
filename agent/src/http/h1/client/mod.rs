//! HTTP/1.1 towards endpoints.
//!
//! Before: `http::upstream`, with a connection and a request. After: a response's head and its [`Body`]. All of it
//! runs in the task of the request: no task of its own drives a connection, and one that is idle is a socket and nothing
//! else. Knows nothing of pools, tries and clusters.

mod body;
mod call;
mod connection;
mod response;
mod sending;

pub use body::{Body, BodyError};
pub use call::{Call, CallError};
pub use connection::Connection;
pub use sending::Sending;
