//! Errors as the CNI specification has them: a JSON object on standard output, and exit status 1.

use std::fmt::Display;

use serde_json::{Value, json};

/// The specification's numbers (section 5, "Error").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Of the configuration's `cniVersion`.
    IncompatibleVersion = 1,
    /// Of the environment: `CNI_COMMAND`, `CNI_CONTAINERID` and the like.
    Environment = 4,
    /// Standard input.
    Io = 5,
    /// What is read is not what it should be.
    Decode = 6,
    /// JSON that is no usable configuration.
    Config = 7,
    /// A passing state: the runtime tries again.
    TryAgainLater = 11,
    /// STATUS: pods cannot be made now.
    NotAvailable = 50,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    code: Code,
    msg: String,
    details: String,
}

impl CniError {
    /// `msg`: what; `details`: why, and the remedy.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Display) -> Self {
        Self { code, msg: msg.into(), details: details.to_string() }
    }

    /// For a runtime that speaks `version`.
    pub fn json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code as u32, "msg": self.msg, "details": self.details})
    }
}
