//! What the agent says of its work: statistics, access records, response flags.
//!
//! The data path writes, the admin interface and the access log read. Nothing here decides anything.

pub mod flags;
pub mod metric;
pub mod record;
pub mod stats;

pub use flags::ResponseFlags;
