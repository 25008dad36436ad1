//! Data goes to standard output, here; messages go to standard error.

use std::io::{self, Write};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Whoever read standard output has had enough (`| head`): no error, only the end.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct OutputClosed;

/// Writes to standard output, at once.
///
/// # Errors
/// [`OutputClosed`], or that of the system.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        result => result.context("writing to standard output"),
    }
}

/// Writes JSON to standard output, indented by four like `istioctl`.
///
/// # Errors
/// As [`print()`].
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&json_text(value)?)
}

/// JSON, indented by four, with a line feed.
///
/// # Errors
/// The value cannot be serialised.
pub fn json_text(value: &impl Serialize) -> anyhow::Result<String> {
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).context("writing JSON")?;
    json.push(b'\n');
    Ok(String::from_utf8(json)?)
}
