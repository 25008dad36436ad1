//! What the agent says of its work: statistics, access records, response flags, its own log.
//!
//! The data path writes, the admin interface and the access log read. Nothing here decides anything.

pub mod brief;
pub mod escape;
pub mod export;
pub mod flags;
pub mod json;
pub mod kept;
pub mod log;
pub mod metric;
pub mod prometheus;
pub mod record;
#[cfg(test)]
pub(crate) mod samples;
pub mod sink;
pub mod stats;
pub mod text;
pub mod trace;
pub mod writer;

pub use flags::ResponseFlags;
