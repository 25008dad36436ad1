//! The `waylay` program: see [`waylay::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    waylay::cli::main()
}
