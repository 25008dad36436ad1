//! `waylay completion`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, output};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  waylay completion bash > /usr/share/bash-completion/completions/waylay
  waylay completion zsh > ~/.zfunc/_waylay
  waylay completion fish > ~/.config/fish/completions/waylay.fish")]
pub struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    /// Prints it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "waylay", &mut script);
        output::print(&String::from_utf8_lossy(&script))
    }
}
