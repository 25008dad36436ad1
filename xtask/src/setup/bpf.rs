//! The compiler and the linker of the kernel programs.
//!
//! The compiler needs the source of its own `core` (there is no ready-made one for BPF), and `bpf-linker` must not have
//! an older LLVM than the compiler, whose bitcode it reads. Both are pinned to LLVM 22 here: a dated nightly where rustup
//! can fetch it, else Debian's rustc with its library sources; either is linked as the rustup toolchain `waylay-bpf`,
//! which `agent/build.rs` knows by name.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::shell;

/// The toolchain that setup makes, known to `agent/build.rs`.
const LINKED_TOOLCHAIN: &str = "waylay-bpf";
/// Overrules the choice, here and in `agent/build.rs`.
const CHOICE: &str = "WAYLAY_BPF_TOOLCHAIN";
/// The last nightlies with LLVM 22, the newest LLVM that Debian 12 has: with LLVM 23 bpf-linker could not be built there.
const PINNED_NIGHTLY: &str = "nightly-2026-05-20";
const LLVM_MAJOR: u32 = 22;
const BPF_LINKER_VERSION: &str = "0.13.0";
/// rustup fetches 150 MB; on a line that is too slow for that in this time, Debian's packages are not faster.
const RUSTUP_TIME_LIMIT: Duration = Duration::from_secs(300);

const DEBIAN_COMPILER: &[&str] = &["rustc-web", "rust-web-src", "rust-web-clippy"];
const DEBIAN_LLVM: &[&str] = &["llvm-22-dev", "libpolly-22-dev"];

/// A compiler that can build for BPF: it is there, and has the source of its own `core`.
#[derive(Debug)]
struct Compiler {
    toolchain: String,
    llvm_major: u32,
}

pub fn bring() -> Result<()> {
    if shell::find("rustup").is_none() {
        bail!("rustup is missing: install it (Debian: apt-get install rustup), then run this again");
    }
    let compiler = match compiler()? {
        Some(compiler) => compiler,
        None => bring_compiler()?,
    };
    if let Err(reason) = linker_suits(&compiler) {
        bring_linker(&reason)?;
        linker_suits(&compiler)
            .map_err(|reason| anyhow::anyhow!("the new bpf-linker does not suit {}: {reason}", compiler.toolchain))?;
    }
    Ok(())
}

/// The compiler that `agent/build.rs` will use.
fn compiler() -> Result<Option<Compiler>> {
    if let Ok(chosen) = env::var(CHOICE) {
        let compiler = inspect(&chosen).with_context(|| {
            format!("{CHOICE}={chosen} cannot build for BPF: unset it, or `rustup component add rust-src --toolchain {chosen}`")
        })?;
        return Ok(Some(compiler));
    }
    Ok([LINKED_TOOLCHAIN, "nightly"].iter().find_map(|name| inspect(name).ok()))
}

fn inspect(toolchain: &str) -> Result<Compiler> {
    let sysroot = shell::stdout(rustc(toolchain).args(["--print", "sysroot"]))?;
    let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    if !core.is_dir() {
        bail!("the source of core is missing: {}", core.display());
    }
    let version = shell::stdout(rustc(toolchain).arg("-vV"))?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = llvm.and_then(|llvm| llvm.split('.').next()?.parse().ok());
    let llvm_major = major.with_context(|| format!("no LLVM version in: {version}"))?;
    Ok(Compiler { toolchain: toolchain.to_owned(), llvm_major })
}

fn bring_compiler() -> Result<Compiler> {
    if let Err(reason) = bring_nightly() {
        if !apt::available() {
            return Err(reason.context(format!(
                "no compiler for the kernel programs: run `rustup toolchain install {PINNED_NIGHTLY} --component rust-src`"
            )));
        }
        eprintln!("    rustup: {reason:#}\n    going on with Debian's compiler");
        bring_debian()?;
    }
    inspect(LINKED_TOOLCHAIN).context("the toolchain that was just linked does not work")
}

fn bring_nightly() -> Result<()> {
    shell::step(&format!("rustup toolchain install {PINNED_NIGHTLY} (with rust-src)"), || {
        let mut rustup = shell::command("rustup");
        rustup.args(["toolchain", "install", PINNED_NIGHTLY, "--profile", "minimal"]);
        rustup.args(["--component", "rust-src", "--component", "clippy", "--no-self-update"]);
        let ended = shell::run_within(&mut rustup, RUSTUP_TIME_LIMIT)?;
        if !ended.success {
            bail!("{}", ended.message.lines().last().unwrap_or("failed without a word"));
        }
        let sysroot = shell::stdout(rustc(PINNED_NIGHTLY).args(["--print", "sysroot"]))?;
        link(Path::new(&sysroot))
    })
}

/// Debian's compiler in the shape of a rustup toolchain; rustup lends it its own cargo.
fn bring_debian() -> Result<()> {
    apt::install(DEBIAN_COMPILER, &[])?;
    let dir = data_dir()?.join("bpf-toolchain");
    fs::create_dir_all(dir.join("bin")).with_context(|| format!("cannot make {}", dir.display()))?;
    for program in ["rustc", "cargo-clippy", "clippy-driver"] {
        replace_link(&Path::new("/usr/bin").join(program), &dir.join("bin").join(program))?;
    }
    replace_link(Path::new("/usr/lib"), &dir.join("lib"))?;
    link(&dir)
}

fn link(dir: &Path) -> Result<()> {
    let mut rustup = shell::command("rustup");
    shell::stdout(rustup.args(["toolchain", "link", LINKED_TOOLCHAIN]).arg(dir))?;
    Ok(())
}

fn replace_link(original: &Path, link: &Path) -> Result<()> {
    if link.is_symlink() {
        fs::remove_file(link)?;
    }
    symlink(original, link).with_context(|| format!("cannot make {}", link.display()))
}

fn data_dir() -> Result<PathBuf> {
    let data = env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    Ok(data.or_else(home).context("neither XDG_DATA_HOME nor HOME is set")?.join("waylay"))
}

/// Whether this linker runs and reads what this compiler writes, else why not.
fn linker_suits(compiler: &Compiler) -> Result<(), String> {
    let Some(linker) = shell::find("bpf-linker") else {
        return Err("bpf-linker is missing".to_owned());
    };
    shell::stdout(Command::new(&linker).arg("--version"))
        .map_err(|reason| format!("bpf-linker does not run: {reason:#}"))?;
    match linked_llvm_major(&linker) {
        Some(llvm) if llvm < compiler.llvm_major => Err(format!(
            "bpf-linker has LLVM {llvm}, older than LLVM {} of toolchain {}",
            compiler.llvm_major, compiler.toolchain
        )),
        // One that has its LLVM inside does not tell which: it is its owner's choice.
        _ => Ok(()),
    }
}

/// From a line of ldd such as `libLLVM.so.22.1 => ...`.
fn linked_llvm_major(linker: &Path) -> Option<u32> {
    let libraries = shell::stdout(Command::new("ldd").arg(linker)).ok()?;
    let name = libraries.lines().find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn bring_linker(reason: &str) -> Result<()> {
    eprintln!("    {reason}");
    let prefix = match llvm_prefix() {
        Some(prefix) => prefix,
        None if apt::available() => {
            apt::install(DEBIAN_LLVM, &[])?;
            llvm_prefix().context("LLVM is installed but its llvm-config is not there")?
        }
        None => bail!(
            "bpf-linker needs LLVM {LLVM_MAJOR}: install its development package, or bpf-linker itself, \
             and run this again (LLVM_PREFIX names a folder that is not found)"
        ),
    };
    shell::step(&format!("cargo install bpf-linker {BPF_LINKER_VERSION} (a minute)"), || {
        let mut path = vec![prefix.join("bin")];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        let mut cargo = shell::cargo();
        cargo.args(["install", "--quiet", "--force", "bpf-linker", "--version", BPF_LINKER_VERSION]);
        cargo.args(["--no-default-features", "--features", &format!("llvm-{LLVM_MAJOR}")]);
        cargo.env("LLVM_PREFIX", &prefix).env("PATH", env::join_paths(path)?);
        shell::run(&mut cargo)
    })
}

fn llvm_prefix() -> Option<PathBuf> {
    let named = env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let debian = PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}"));
    named.into_iter().chain([debian]).find(|prefix| {
        // The runtime package has the folder too; only the development package has the headers.
        prefix.join("bin/llvm-config").exists() && prefix.join("include/llvm-c").exists()
    })
}

fn rustc(toolchain: &str) -> Command {
    let mut command = shell::command("rustup");
    // The toolchain that runs us must not leak into the question.
    command.args(["run", toolchain, "rustc"]).env_remove("RUSTUP_TOOLCHAIN");
    command
}

/// The toolchain that builds the kernel programs.
pub fn toolchain() -> Result<String> {
    let compiler = compiler()?.context("no compiler for the kernel programs: run `cargo xtask setup`")?;
    Ok(compiler.toolchain)
}
