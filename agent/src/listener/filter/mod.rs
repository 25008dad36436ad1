//! Listener filters: look at the first bytes of a connection without consuming them.
