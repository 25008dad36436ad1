//! Configuration: from a file to a [`Snapshot`].
//!
//! Before: a file, or text that the command line made. After: [`crate::server`], which publishes the snapshot. The way:
//! `yaml` (a tree of positioned values) → `raw` (records as they are written) → `resolve` (names and rules) →
//! snapshot. Every stage reports all problems it finds and goes on, so that they come out at once.

mod diagnostic;
mod positions;
#[cfg(test)]
mod random;
mod raw;
mod record;
mod reference;
mod resolve;
mod suggest;
mod value;
pub mod watch;
mod write;
mod yaml;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::snapshot::{Origin, Runtime, Snapshot};

pub use diagnostic::{ConfigErrors, Diagnostic, Position};
pub use positions::Positions;
pub use reference::reference;

use diagnostic::{Path, Report};
use value::{Scalar as _, Value as _};

/// Reads a duration as the configuration has them: `5s`, `250ms`.
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    Duration::parse(text)
}

/// Writes what [`duration`] reads.
pub fn write_duration(duration: Duration) -> String {
    duration.write()
}

/// Where a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Text that is at hand.
    Inline {
        /// What messages call it.
        name: String,
        /// YAML.
        text: String,
    },
}

impl Source {
    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline { name, .. } => name.clone(),
        }
    }

    fn read(&self) -> Result<String, String> {
        match self {
            Self::Inline { text, .. } => Ok(text.clone()),
            Self::File(path) => {
                let file = File::open(path).map_err(|error| format!("cannot open the file: {error}"))?;
                let mut bytes = Vec::new();
                // One byte over the limit tells a file that is too large from one that just fits.
                let limit = yaml::MAX_FILE_BYTES as u64 + 1;
                file.take(limit).read_to_end(&mut bytes).map_err(|error| format!("cannot read the file: {error}"))?;
                String::from_utf8(bytes).map_err(|error| format!("the file is not UTF-8: {error}"))
            }
        }
    }
}

/// A configuration that is fit for use.
#[derive(Debug)]
pub struct Loaded {
    /// Every name resolved.
    pub snapshot: Snapshot,
    /// For messages about it.
    pub positions: Positions,
    /// What is probably not meant so.
    pub warnings: Vec<Diagnostic>,
}

/// Loads the configuration `version`. State in `runtime` that still fits is taken over.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(source: &Source, runtime: &Runtime, version: u64) -> Result<Loaded, ConfigErrors> {
    let mut report = Report::new(&source.name());
    let (text, tree, config) = decode(source, &mut report);
    let positions = Positions::new(tree);
    let origin = Origin { source: source.name(), text: Arc::from(text), version, loaded_at: SystemTime::now() };
    let snapshot = resolve::resolve(&config, origin, &positions, runtime, &mut report);
    if snapshot.is_none() && !report.has_errors() {
        report.error(&Path::ROOT, Position::START, "the configuration cannot be used, and nothing says why");
    }
    match (report.finish(), snapshot) {
        (Ok(warnings), Some(snapshot)) => Ok(Loaded { snapshot, positions, warnings }),
        (Ok(_), None) => Err(ConfigErrors::default()),
        (Err(errors), _) => Err(errors),
    }
}

/// The configuration with every default written out and every short form written long, as YAML. Names are not
/// resolved.
///
/// # Errors
/// Values that cannot be decoded.
pub fn normalize(source: &Source) -> Result<String, ConfigErrors> {
    let mut report = Report::new(&source.name());
    let (_, _, config) = decode(source, &mut report);
    report.finish().map(|_| write::to_yaml(&config.encode()))
}

fn decode(source: &Source, report: &mut Report) -> (String, yaml::Node, raw::Config) {
    let text = source.read().unwrap_or_else(|message| {
        report.error(&Path::ROOT, Position::START, message);
        String::new()
    });
    let tree = yaml::parse(&text, report).unwrap_or_else(|| yaml::Node::made(yaml::Kind::Null));
    let config = raw::Config::decode(&tree, &Path::ROOT, report);
    report.decoding_done();
    (text, tree, config)
}
