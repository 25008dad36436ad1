//! `waylay man`.

use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;

use super::Cli;

/// Write the man pages, one for each command, into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  waylay man /usr/local/share/man/man1")]
pub struct Args {
    /// Where to; made when it is missing
    directory: PathBuf,
}

impl Args {
    /// Writes them.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn run(&self) -> anyhow::Result<()> {
        let writing = || format!("writing man pages to {}", self.directory.display());
        std::fs::create_dir_all(&self.directory).with_context(writing)?;
        let command = Cli::command().disable_help_subcommand(true);
        clap_mangen::generate_to(command, &self.directory).with_context(writing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command_that_is_shown() {
        let dir = tempfile::tempdir().expect("directory");
        Args { directory: dir.path().to_owned() }.run().expect("man pages");
        for page in ["waylay.1", "waylay-run.1", "waylay-exec.1", "waylay-proxy-config-listener.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
        assert!(!dir.path().join("waylay-__enter.1").exists());
    }
}
