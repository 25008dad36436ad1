//! Listener filters: look at the first bytes of a connection without consuming them.

/// What the first bytes turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    Tls,
    Http10,
    Http11,
    H2c,
}
