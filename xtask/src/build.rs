//! `cargo xtask build`: the agent, with the kernel programs that `agent/build.rs` compiles and embeds.

use anyhow::Result;

use crate::{setup, shell};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build with optimizations
    #[arg(long)]
    release: bool,
}

pub fn run(args: &Args) -> Result<()> {
    setup::bring(setup::Purpose::Build)?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--package", "waylay"]);
    if args.release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    let profile = if args.release { "release" } else { "debug" };
    println!("{}", shell::target_dir().join(profile).join("waylay").display());
    Ok(())
}
