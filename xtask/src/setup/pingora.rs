//! The proxy on Pingora that the benchmark measures: built apart from the workspace, which stays free of its crates.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::shell;

fn folder() -> PathBuf {
    shell::target_dir().join("bench-pingora")
}

/// Where it is once it is built.
pub fn program() -> PathBuf {
    folder().join("release/bench-pingora")
}

/// Builds it, if it is not there or its sources changed.
pub fn bring() -> Result<()> {
    let manifest = shell::root().join("tests/pingora/Cargo.toml");
    let mut cargo = shell::cargo();
    cargo.args(["build", "--quiet", "--locked", "--release", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(folder());
    shell::step("building the proxy on Pingora (some minutes, once)", || {
        shell::run(&mut cargo).context("the proxy on Pingora could not be built: the benchmark will skip it by name")
    })
}
