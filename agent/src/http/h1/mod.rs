//! HTTP/1.1 on bare sockets: what both sides of the agent share.

pub mod client;
pub mod decode;
pub mod encode;
pub mod server;
