//! `cargo xtask test`: the pure tests as oneself, those on the real kernel as root, and one closing line.
//!
//! What a test needs is brought by `setup`; how many run at once and how long one may take is `.config/nextest.toml`.

use std::{env, fs, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{setup, shell};

/// Capability numbers of linux/capability.h that loading, attaching and network namespaces take.
const CAPABILITIES: &[(&str, u32)] = &[("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_BPF", 39)];

const PURE_PACKAGES: &[&str] = &["waylay-common", "waylay", "xtask"];
const KERNEL_PACKAGE: &str = "waylay-tests";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run only the tests whose name contains this
    filter: Option<String>,
    /// Which tests: pure ones run as oneself, those on the real kernel as root
    #[arg(long, value_enum, default_value = "all")]
    ring: Ring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ring {
    Pure,
    Kernel,
    All,
}

/// What a run of tests came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let filter = args.filter.as_deref();
    setup::bring(match args.ring {
        Ring::Pure => setup::Purpose::PureTests,
        Ring::Kernel | Ring::All => setup::Purpose::Test,
    })?;
    let mut total = Tally::default();
    if args.ring != Ring::Kernel {
        total.add(ring("pure", || pure(filter)));
    }
    if args.ring != Ring::Pure {
        total.add(ring("kernel", || kernel(filter)));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        std::process::exit(1);
    }
    if total.passed == 0 {
        bail!("no test was run: no name contains {:?}", filter.unwrap_or_default());
    }
    Ok(())
}

/// The agent's own tests that attach programs to the kernel.
const PRIVILEGED: &str = "binary(kernel) | binary(l4_intercepted)";

/// A ring that cannot run counts as one failure: it must never look like a success.
fn ring(name: &str, tests: impl FnOnce() -> Result<Tally>) -> Tally {
    eprintln!("==> {name} tests");
    let started = Instant::now();
    let tally = tests().unwrap_or_else(|reason| {
        eprintln!("error: the {name} tests could not run: {reason:#}");
        Tally { passed: 0, failed: 1 }
    });
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("    {name}: {} passed, {} failed in {seconds:.0} s", tally.passed, tally.failed);
    tally
}

fn pure(filter: Option<&str>) -> Result<Tally> {
    let mut tally = nextest(PURE_PACKAGES, &format!("not ({PRIVILEGED})"), filter, None)?;
    tally.add(doc_tests(filter)?);
    Ok(tally)
}

/// The examples in the documentation, which nextest does not run.
fn doc_tests(filter: Option<&str>) -> Result<Tally> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--quiet", "--doc", "--package", "waylay-common", "--package", "waylay"]);
    cargo.args(filter);
    let output = shell::output(&mut cargo)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut tally = doc_tally(&stdout);
    if !output.status.success() {
        eprint!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
        tally.failed = tally.failed.max(1);
    }
    Ok(tally)
}

/// Sums up lines such as `test result: ok. 3 passed; 0 failed; ...`.
fn doc_tally(stdout: &str) -> Tally {
    let mut tally = Tally::default();
    for line in stdout.lines().filter(|line| line.starts_with("test result: ")) {
        let count = |word: &str| -> u64 {
            let before = line.split(word).next().unwrap_or_default();
            before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        tally.add(Tally { passed: count(" passed"), failed: count(" failed") });
    }
    tally
}

fn kernel(filter: Option<&str>) -> Result<Tally> {
    // The tests start the binary that lies beside them.
    shell::run(shell::cargo().args(["build", "--package", "waylay"]))?;
    let runner = if shell::is_root() {
        require_capabilities()?;
        None
    } else {
        Some(sudo_runner()?)
    };
    // Apart, because together the packages would be built with other features than alone.
    let mut tally = nextest(&["waylay"], PRIVILEGED, filter, runner.as_deref())?;
    tally.add(nextest(&[KERNEL_PACKAGE], "all()", filter, runner.as_deref())?);
    Ok(tally)
}

/// Root in a container often is not all of root.
fn require_capabilities() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let missing = missing_capabilities(&status)?;
    if !missing.is_empty() {
        bail!("this root lacks {}: run where root has them (a privileged container)", missing.join(", "));
    }
    Ok(())
}

fn missing_capabilities(status: &str) -> Result<Vec<&'static str>> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = u64::from_str_radix(hex.context("no CapEff in /proc/self/status")?.trim(), 16)
        .context("CapEff in /proc/self/status is no hexadecimal number")?;
    let missing = CAPABILITIES.iter().filter(|(_, bit)| mask & (1 << bit) == 0);
    Ok(missing.map(|&(name, _)| name).collect())
}

/// Starts each test binary as root; cargo and what it writes stay the user's.
fn sudo_runner() -> Result<String> {
    if shell::find("sudo").is_none() {
        bail!("they need root, and there is no sudo: run `cargo xtask test` as root");
    }
    // Asks for the password now, while nothing captures the terminal.
    shell::run(shell::command("sudo").arg("--validate"))?;
    let path = env::var("PATH").context("PATH is not set")?;
    if path.contains(' ') {
        bail!("PATH holds a space, which cannot be handed to sudo: run `cargo xtask test` as root");
    }
    Ok(format!("sudo --preserve-env env PATH={path}"))
}

fn nextest(packages: &[&str], set: &str, filter: Option<&str>, runner: Option<&str>) -> Result<Tally> {
    let junit = shell::target_dir().join("nextest/default/junit.xml");
    if junit.exists() {
        fs::remove_file(&junit)?;
    }
    let mut cargo = shell::cargo();
    cargo.args(["nextest", "run", "--no-fail-fast", "--no-tests", "pass"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    // A test has to match both.
    cargo.args(["--filterset", set]).args(filter);
    if let Some(runner) = runner {
        let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        let key = format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace('-', "_"));
        cargo.env(key, runner);
    }
    let status = cargo.status().context("cannot start cargo nextest")?;
    let Ok(report) = fs::read_to_string(&junit) else {
        // Without a report either no test was asked for, or nothing got as far as running.
        return if status.success() { Ok(Tally::default()) } else { bail!("cargo nextest ended with {status}") };
    };
    let mut tally = tally(&report).with_context(|| format!("cannot read {}", junit.display()))?;
    if !status.success() && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

/// Reads the first `testsuites` element of a JUnit report.
fn tally(report: &str) -> Result<Tally> {
    let start = report.find("<testsuites").context("no testsuites element")?;
    let element = report[start..].split('>').next().unwrap_or_default();
    let number = |name: &str| -> Result<u64> {
        let value = element.split_once(&format!(" {name}=\"")).and_then(|(_, rest)| rest.split('"').next());
        value.with_context(|| format!("no attribute {name}"))?.parse().context("no number")
    };
    let failed = number("failures")? + number("errors")?;
    Ok(Tally { passed: number("tests")?.saturating_sub(failed), failed })
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_summed_up_from_its_root_element() {
        let report = r#"<?xml version="1.0"?>
            <testsuites name="r" tests="7" failures="2" errors="1" uuid="x" time="1.0">
              <testsuite name="a" tests="7" failures="0" errors="0">"#;
        assert_eq!(tally(report).unwrap(), Tally { passed: 4, failed: 3 });
        assert!(tally("<testsuites tests=\"7\">").is_err());
        assert!(tally("").is_err());
    }

    #[test]
    fn documentation_examples_are_summed_over_the_packages() {
        let stdout = "\ntest result: ok. 3 passed; 0 failed; 1 ignored\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored\nother 9 passed\n";
        assert_eq!(doc_tally(stdout), Tally { passed: 4, failed: 2 });
    }

    #[test]
    fn a_root_that_lacks_capabilities_is_told_which() {
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(missing_capabilities(all).unwrap().is_empty());
        let docker = "CapEff:\t00000000a80425fb\n";
        assert_eq!(missing_capabilities(docker).unwrap(), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_BPF"]);
        assert!(missing_capabilities("Name:\tx\n").is_err());
    }
}
