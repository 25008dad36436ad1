//! `cargo xtask check`: what can be said about the sources without running them. All checks run, also after a failure.

mod names;

use std::{process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{setup, shell};

/// Host packages; `ebpf` is no host crate.
const HOST_PACKAGES: &[&str] =
    &["--package", "waylay", "--package", "waylay-common", "--package", "waylay-tests", "--package", "xtask"];

/// Fetching the advisories is a few megabytes, or nothing at all where their host cannot be reached.
const ADVISORIES_TIME_LIMIT: Duration = Duration::from_secs(60);

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("formatting", formatting),
    ("names of hosts and machine paths", names::check),
    ("lints", lints),
    ("lints of the kernel programs", kernel_lints),
    ("documentation", documentation),
    ("dependencies: licences, bans, sources", dependencies),
    ("dependencies: advisories", advisories),
];

pub fn run() -> Result<()> {
    setup::bring(setup::Purpose::Check)?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        if let Err(reason) = shell::step(name, check) {
            eprintln!("error: {name}: {reason:#}");
            failed.push(*name);
        }
    }
    println!("{} of {} checks passed", CHECKS.len() - failed.len(), CHECKS.len());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

fn formatting() -> Result<()> {
    shell::run(shell::cargo().args(["fmt", "--all", "--", "--check"]))
}

fn lints() -> Result<()> {
    let mut clippy = shell::cargo();
    clippy.args(["clippy", "--quiet", "--all-targets"]).args(HOST_PACKAGES);
    shell::run(clippy.args(["--", "--deny", "warnings"]))
}

fn kernel_lints() -> Result<()> {
    let toolchain = setup::kernel_toolchain()?;
    let has_clippy = shell::output(in_toolchain(&toolchain).args(["clippy-driver", "--version"]))
        .is_ok_and(|output| output.status.success());
    if !has_clippy {
        eprintln!("    toolchain {toolchain} has no clippy: the compiler's own lints only");
    }
    let mut cargo = in_toolchain(&toolchain);
    cargo.args(["cargo", if has_clippy { "clippy" } else { "check" }, "--quiet"]);
    cargo.args(["--package", "waylay-ebpf", "--target", "bpfel-unknown-none"]);
    cargo.args(["-Z", "build-std=core", "--target-dir"]);
    cargo.arg(shell::target_dir().join("check-ebpf"));
    // As agent/build.rs builds them, with warnings denied.
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", arch + "\u{1f}-Dwarnings");
    shell::run(&mut cargo)
}

fn in_toolchain(toolchain: &str) -> Command {
    let mut command = shell::command("rustup");
    command.args(["run", toolchain]);
    // What cargo tells its children about the toolchain that runs us must not leak into that one.
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
        command.env_remove(variable);
    }
    command
}

fn documentation() -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["doc", "--quiet", "--no-deps", "--document-private-items"]).args(HOST_PACKAGES);
    shell::run(cargo.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn dependencies() -> Result<()> {
    let mut deny = shell::cargo();
    deny.args(["deny", "--log-level", "error", "check", "--hide-inclusion-graph"]);
    shell::run(deny.args(["licenses", "bans", "sources"]))
}

/// The database of advisories lives on the net: where it cannot be fetched, this says so and is no failure.
fn advisories() -> Result<()> {
    let mut deny = shell::cargo();
    deny.args(["deny", "--log-level", "error", "check", "advisories"]);
    // Never wait for somebody to type a password.
    deny.env("GIT_TERMINAL_PROMPT", "0");
    let ended = shell::run_within(&mut deny, ADVISORIES_TIME_LIMIT)?;
    match verdict(ended.success, &ended.message) {
        Advisories::Clean => Ok(()),
        Advisories::Unreachable => {
            eprintln!("    advisories not checked: database unreachable");
            Ok(())
        }
        Advisories::Found => bail!("{}", ended.message),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Advisories {
    Clean,
    Unreachable,
    Found,
}

fn verdict(success: bool, message: &str) -> Advisories {
    let unreachable = ["failed to fetch advisory database", "no answer within"];
    match success {
        true => Advisories::Clean,
        false if unreachable.iter().any(|words| message.contains(words)) => Advisories::Unreachable,
        false => Advisories::Found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unreachable_database_excuses_unchecked_advisories() {
        let cases = [
            (true, "", Advisories::Clean),
            (false, "[ERROR] failed to fetch advisory database", Advisories::Unreachable),
            (false, "no answer within 60 s", Advisories::Unreachable),
            (false, "error[vulnerability]: use after free", Advisories::Found),
            (false, "", Advisories::Found),
        ];
        for (success, message, expected) in cases {
            assert_eq!(verdict(success, message), expected, "{success} {message}");
        }
    }
}
