//! `cargo xtask setup`: brings what is missing, and says so while it does. When nothing is missing it takes less than
//! a second and says nothing but that.
//!
//! Every other verb calls [`bring`] first with what it is about to do.

mod apt;
mod bpf;
mod pingora;
mod python;
mod tools;

use anyhow::Result;
use clap::ValueEnum;

pub use bpf::toolchain as kernel_toolchain;
pub use pingora::program as pingora;
pub use python::envoy;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What for; everything needs what `build` needs
    #[arg(long = "for", value_name = "PURPOSE", value_enum, default_value = "build")]
    purpose: Purpose,

    /// The same as `--for bench`
    #[arg(long, conflicts_with = "purpose")]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Compiler and linker for the kernel programs
    Build,
    /// ... and cargo-deny
    Check,
    /// ... and curl
    Demo,
    /// ... and cargo-nextest
    PureTests,
    /// ... and cargo-nextest, the programs whose connections the tests intercept, Python packages
    Test,
    /// ... and the proxies and load generators that the benchmark puts beside waylay
    Bench,
}

pub fn run(args: &Args) -> Result<()> {
    bring(if args.bench { Purpose::Bench } else { args.purpose })?;
    eprintln!("All is there.");
    if args.purpose == Purpose::Build && !args.bench {
        eprintln!("Next: cargo xtask demo, or cargo xtask test (each brings what else it needs).");
    }
    Ok(())
}

/// Brings what is missing for this purpose.
pub fn bring(purpose: Purpose) -> Result<()> {
    bpf::bring()?;
    match purpose {
        Purpose::Build => Ok(()),
        Purpose::Check => tools::bring(&tools::CARGO_DENY),
        Purpose::Demo => apt::bring(apt::DEMO),
        Purpose::PureTests => tools::bring(&tools::CARGO_NEXTEST),
        Purpose::Test => {
            apt::bring(apt::TEST)?;
            python::bring()?;
            tools::bring(&tools::CARGO_NEXTEST)
        }
        Purpose::Bench => {
            apt::bring(apt::BENCH)?;
            python::bring()?;
            pingora::bring()
        }
    }
}
