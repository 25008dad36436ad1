//! `cargo xtask build`: the agent, with the kernel programs that `agent/build.rs` compiles and embeds.

use std::env;

use anyhow::Result;

use crate::{setup, shell};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build with optimizations
    #[arg(long)]
    release: bool,

    /// Link the C library in: the program runs in an image that holds nothing else
    #[arg(long = "static")]
    linked_statically: bool,
}

pub fn run(args: &Args) -> Result<()> {
    setup::bring(setup::Purpose::Build)?;
    let mut cargo = shell::cargo();
    cargo.args(["build", "--package", "waylay"]);
    if args.release {
        cargo.arg("--release");
    }
    let mut folder = shell::target_dir();
    if args.linked_statically {
        // glibc's: it is there with every toolchain, musl's Rust library is not. Naming the target keeps the flag away
        // from build scripts and procedural macros, which cannot be linked so.
        let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        cargo.args(["--target", &triple, "--config"]);
        cargo.arg(format!(r#"target.{triple}.rustflags=["-Ctarget-feature=+crt-static"]"#));
        folder.push(triple);
    }
    shell::run(&mut cargo)?;
    folder.push(if args.release { "release" } else { "debug" });
    println!("{}", folder.join("waylay").display());
    Ok(())
}
