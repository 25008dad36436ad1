//! Programs that cargo itself builds: into `target/tools`, so that the user's own are neither needed nor replaced.

use anyhow::{Context as _, Result};

use crate::shell;

/// A cargo subcommand and how to build it. Debug profile: it is built once and run for seconds.
#[derive(Debug)]
pub struct Tool {
    name: &'static str,
    version: &'static str,
    features: &'static [&'static str],
    build_time: &'static str,
}

pub const CARGO_DENY: Tool =
    Tool { name: "cargo-deny", version: "0.20.2", features: &[], build_time: "a minute or two" };

pub const CARGO_NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    version: "0.9.151",
    features: &["default-no-update"],
    build_time: "two or three minutes",
};

/// Any version that is already installed will do.
pub fn bring(tool: &Tool) -> Result<()> {
    let dir = shell::tools_dir();
    let ours = dir.join("bin").join(tool.name);
    if shell::is_executable(&ours) || shell::find(tool.name).is_some() {
        return Ok(());
    }
    shell::step(&format!("building {} ({})", tool.name, tool.build_time), || {
        let mut cargo = shell::cargo();
        cargo.args(["install", "--quiet", "--locked", "--debug", "--no-default-features"]);
        cargo.args(["--features", &tool.features.join(",")]);
        cargo.args([tool.name, "--version", tool.version, "--root"]).arg(&dir);
        cargo.arg("--target-dir").arg(dir.join("build"));
        shell::run(&mut cargo)
            .with_context(|| format!("{0} could not be built: install it by hand with `cargo install {0}`", tool.name))
    })
}
