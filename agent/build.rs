//! Builds the kernel programs from source and leaves the object in `OUT_DIR`, where `kernel::load` embeds it.
//!
//! The programs are compiled for `bpfel-unknown-none` with `-Z build-std=core`, so they need a compiler with the source
//! of its own `core`, and `bpf-linker`. No environment variable is needed; `WAYLAY_BPF_TOOLCHAIN` overrules the choice.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_build::{Package, Toolchain};

const CHOICE: &str = "WAYLAY_BPF_TOOLCHAIN";
/// The toolchain that `cargo xtask setup` links, with a compiler that suits the bpf-linker which it brings.
const LINKED: &str = "waylay-bpf";
/// Lets a stable compiler build `core`. aya-build and cargo read it from the environment only.
const BOOTSTRAP: &str = "RUSTC_BOOTSTRAP";
/// Marks the second half of this script.
const STAGE_TWO: &str = "WAYLAY_BUILD_STAGE_TWO";

/// Failures are cargo errors, one line each, and not the script's panic or backtrace.
fn main() {
    if let Err(error) = run() {
        println!("cargo::error={error:#}");
        std::process::exit(i32::from(env::var_os(STAGE_TWO).is_some()));
    }
}

fn run() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../common");
    println!("cargo:rerun-if-changed=../Cargo.lock");
    println!("cargo:rerun-if-env-changed={CHOICE}");

    let Some(toolchain) = toolchain().filter(|_| runs("bpf-linker", &["--version"])) else {
        bail!("the eBPF toolchain is missing: run `cargo xtask setup`");
    };
    if env::var_os(STAGE_TWO).is_some() {
        return build(&toolchain);
    }
    // A process cannot change its own environment safely, so the second half of this script is this script once more.
    let output = Command::new(env::current_exe()?)
        .env(STAGE_TWO, "1")
        .env(BOOTSTRAP, "1")
        .env(CHOICE, &toolchain)
        .output()
        .context("starting the second half of the build script")?;
    // aya-build passes every line of cargo's progress on as a warning: they matter when the build has failed.
    let lines = String::from_utf8_lossy(&output.stdout);
    for line in lines.lines().filter(|line| !output.status.success() || !line.starts_with("cargo:warning=")) {
        println!("{line}");
    }
    ensure!(output.status.success(), "building the kernel programs with the toolchain {toolchain} failed");
    Ok(())
}

fn build(toolchain: &str) -> Result<()> {
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?).join("../ebpf");
    let root_dir = root.to_str().context("the path of the repository is not UTF-8")?;
    aya_build::build_ebpf(
        [Package { name: "waylay-ebpf", root_dir, ..Package::default() }],
        Toolchain::Custom(toolchain),
    )
}

/// The toolchain that was asked for, else the one that setup linked, else the standard nightly; the latter two only with
/// the source of `core`.
fn toolchain() -> Option<String> {
    if let Ok(chosen) = env::var(CHOICE) {
        return runs_in(&chosen).then_some(chosen);
    }
    [LINKED, "nightly"].into_iter().find(|name| has_core_source(name)).map(str::to_owned)
}

fn has_core_source(toolchain: &str) -> bool {
    let output = rustc(toolchain).args(["--print", "sysroot"]).output();
    output.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

fn runs_in(toolchain: &str) -> bool {
    rustc(toolchain).arg("-V").output().is_ok_and(|output| output.status.success())
}

fn rustc(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    // Cargo's own choice of compiler must not leak into the question.
    command.args(["run", toolchain, "rustc"]).env_remove("RUSTUP_TOOLCHAIN");
    command
}

fn runs(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}
