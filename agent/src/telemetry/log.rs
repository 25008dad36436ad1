//! The agent's own log: on standard error, its level changeable while it runs.
//!
//! Before: `main`, which starts it. After: the admin interface's `/logging`, which changes it. The level is one for the
//! process, as the subscriber of `tracing` is.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

type Level = reload::Handle<EnvFilter, Registry>;

static LEVEL: OnceLock<Level> = OnceLock::new();

/// A log level that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Neither a level nor a filter.
    #[error("'{directives}' is no log level: use off, error, warn, info, debug, trace, or target=level,...")]
    Directives {
        /// As given.
        directives: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// The log was not started by [`start`].
    #[error("the log of this process is not the agent's")]
    NotStarted,
}

/// Starts to log at `directives` (`info`, or `warn,waylay::cluster=debug`). A second call only changes the level.
///
/// # Errors
/// The level is none.
pub fn start(directives: &str) -> Result<(), LogError> {
    let (filter, level) = reload::Layer::new(parse(directives)?);
    let output = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
    if tracing_subscriber::registry().with(output.with_filter(filter)).try_init().is_ok() {
        LEVEL.get_or_init(|| level);
        Ok(())
    } else {
        set_level(directives)
    }
}

/// Changes the level.
///
/// # Errors
/// The level is none, or nothing logs.
pub fn set_level(directives: &str) -> Result<(), LogError> {
    let filter = parse(directives)?;
    LEVEL.get().ok_or(LogError::NotStarted)?.reload(filter).map_err(|_| LogError::NotStarted)
}

/// The level now.
pub fn level() -> Option<String> {
    LEVEL.get()?.with_current(ToString::to_string).ok()
}

fn parse(directives: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| LogError::Directives { directives: directives.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_read_and_nonsense_is_not() {
        for good in ["off", "info", "warn,waylay::cluster=debug"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        assert!(parse("waylay=loud").expect_err("no level").to_string().contains("'waylay=loud' is no log level"));
    }
}
