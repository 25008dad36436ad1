//! `cargo xtask VERB`: everything one does with this repository beside writing code.
//!
//! Read `setup` first: every other verb begins with it. One file a verb; `shell` runs programs for all of them.

mod bench;
mod build;
mod check;
mod demo;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring what is missing: compiler and linker for the kernel programs, programs for the tests
    Setup(setup::Args),
    /// Build the agent, with the kernel programs inside it
    Build(build::Args),
    /// Check formatting, lints, documentation, dependencies, and that no file names a machine
    Check,
    /// Run all tests, those on the real kernel as root
    Test(test::Args),
    /// Show waylay at work: one request, three orderings of routes, then bytes and requests
    Demo(demo::Args),
    /// Measure waylay and its peers side by side: ratios, tables, plots
    Bench(bench::Args),
    /// Load generators of `bench`
    #[command(hide = true)]
    Load {
        #[command(subcommand)]
        kind: bench::load::Kind,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Check => check::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Load { kind } => bench::load::run(&kind),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // Without the backtrace that anyhow adds: the sentence has to be enough.
            eprintln!("error: {reason:#}");
            ExitCode::FAILURE
        }
    }
}
