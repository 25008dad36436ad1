//! Puts the plugin into a node's network configuration, keeps it there, and takes it out again.
//!
//! Before: `waylay cni install`, run by hand or in a container that has the node's folders mounted. After: the container
//! runtime, which reads the configuration again whenever it changes, and runs the plugin by name.
//!
//! Every change is one rename, so that a runtime reads either the old file or the new one.

mod conflist;
mod file;
pub mod watch;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::PLUGIN;
use super::netconf::OnAgentAbsent;
use conflist::{Entry, Network};

/// What is added to the name of a `*.conf` that a `*.conflist` stands for: no runtime reads files that end so.
const REPLACED: &str = ".before-waylay";

/// Where, and how the plugin is configured.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Where runtimes find plugins.
    pub bin_dir: PathBuf,
    /// Where runtimes find configurations.
    pub conf_dir: PathBuf,
    /// What the entry in the configuration says.
    pub plugin: PluginOptions,
}

/// The plugin's own fields.
#[derive(Clone, Debug)]
pub struct PluginOptions {
    /// The agent's admin socket, as the node sees it.
    pub agent_socket: PathBuf,
    /// Longest wait for the agent.
    pub timeout: Duration,
    /// See there.
    pub on_agent_absent: OnAgentAbsent,
    /// Where calls are noted, as the node sees it.
    pub log_file: Option<PathBuf>,
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A folder or file.
    #[error("{doing} {}", path.display())]
    File {
        /// What.
        doing: &'static str,
        /// Which one.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The node's network is not set up yet.
    #[error("{} holds no network configuration yet: install the cluster's network first, or use --watch to wait for it{}", dir.display(), Skipped(skipped))]
    NoNetwork {
        /// Where.
        dir: PathBuf,
        /// Files that looked like one, and why they are none.
        skipped: Vec<String>,
    },
}

struct Skipped<'a>(&'a [String]);

impl fmt::Display for Skipped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|why| write!(f, "\nskipped {why}"))
    }
}

impl InstallError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing, path: path.to_owned(), source }
    }
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The plugin's program is there, or another one than before.
    Program(PathBuf),
    /// The plugin was added to this configuration, or its entry changed.
    Added(PathBuf),
    /// This configuration now stands for the other one, which is kept under another name.
    Converted {
        /// The new one.
        list: PathBuf,
        /// The old one, under its new name.
        kept: PathBuf,
    },
    /// The plugin's program, or its entry in a configuration, is gone.
    Removed(PathBuf),
    /// The configuration is again what it was before it was converted.
    Restored(PathBuf),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(path) => write!(f, "installed {}", path.display()),
            Self::Added(path) => write!(f, "added {PLUGIN} to {}", path.display()),
            Self::Converted { list, kept } => {
                write!(f, "wrote {} with {PLUGIN}; what it stands for is now {}", list.display(), kept.display())
            }
            Self::Removed(path) => write!(f, "removed {PLUGIN} from {}", path.display()),
            Self::Restored(path) => write!(f, "restored {}", path.display()),
        }
    }
}

impl Installation {
    /// Installs what is missing, and says what it changed: nothing when all is there.
    ///
    /// # Errors
    /// There is no network configuration yet, or a file cannot be read or written.
    pub fn install(&self) -> Result<Vec<Change>, InstallError> {
        let mut changes = Vec::new();
        // The program first: a runtime must not read of a plugin that it cannot run.
        changes.extend(self.place_program()?);
        changes.extend(self.configure()?);
        Ok(changes)
    }

    fn place_program(&self) -> Result<Option<Change>, InstallError> {
        let own = Path::new("/proc/self/exe");
        let path = self.bin_dir.join(PLUGIN);
        let ours = fs::read(own).map_err(InstallError::file("reading the program", own))?;
        if fs::read(&path).is_ok_and(|there| there == ours) {
            return Ok(None);
        }
        file::replace(&path, &ours, file::Mode::Program).map_err(InstallError::file("writing", &path))?;
        Ok(Some(Change::Program(path)))
    }

    /// Adds the plugin to the configuration that runtimes use: the first one in the order of names.
    fn configure(&self) -> Result<Option<Change>, InstallError> {
        let mut skipped = Vec::new();
        for path in configurations(&self.conf_dir)? {
            let text = match fs::read(&path) {
                Ok(text) => text,
                // Between the list and the look, somebody renamed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(InstallError::file("reading", &path)(error)),
            };
            match Network::parse(&path, &text) {
                Ok(network) => return self.add_to(&path, network),
                // No runtime can use it.
                Err(why) => skipped.push(format!("{}: {why}", path.display())),
            }
        }
        Err(InstallError::NoNetwork { dir: self.conf_dir.clone(), skipped })
    }

    fn add_to(&self, path: &Path, network: Network) -> Result<Option<Change>, InstallError> {
        let entry = Entry::of(&self.plugin);
        match network {
            Network::List(mut list) => {
                if !list.put(entry) {
                    return Ok(None);
                }
                file::replace(path, &list.text(), file::Mode::AsBefore).map_err(InstallError::file("writing", path))?;
                Ok(Some(Change::Added(path.to_owned())))
            }
            Network::Single(single) => {
                let mut list = single.into_list();
                list.put(entry);
                let (target, kept) = (path.with_extension("conflist"), kept(path));
                // In this order there is a network configuration at every moment, and the old one, which sorts first,
                // is in force until the new one is whole.
                file::replace(&target, &list.text(), file::Mode::Like(path))
                    .map_err(InstallError::file("writing", &target))?;
                fs::rename(path, &kept).map_err(InstallError::file("renaming", path))?;
                Ok(Some(Change::Converted { list: target, kept }))
            }
        }
    }

    /// Takes the plugin out of every configuration, and its program away.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn uninstall(bin_dir: Option<&Path>, conf_dir: &Path) -> Result<Vec<Change>, InstallError> {
        let mut changes = Vec::new();
        for path in configurations(conf_dir)? {
            changes.extend(remove_from(&path)?);
        }
        if let Some(path) = bin_dir.map(|dir| dir.join(PLUGIN)) {
            match fs::remove_file(&path) {
                Ok(()) => changes.push(Change::Removed(path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(InstallError::file("removing", &path)(error)),
            }
        }
        Ok(changes)
    }
}

fn remove_from(path: &Path) -> Result<Option<Change>, InstallError> {
    let text = fs::read(path).map_err(InstallError::file("reading", path))?;
    let Ok(Network::List(mut list)) = Network::parse(path, &text) else { return Ok(None) };
    if !list.take() {
        return Ok(None);
    }
    for extension in ["conf", "json"] {
        let original = path.with_extension(extension);
        if kept(&original).exists() {
            fs::rename(kept(&original), &original).map_err(InstallError::file("restoring", &original))?;
            fs::remove_file(path).map_err(InstallError::file("removing", path))?;
            return Ok(Some(Change::Restored(original)));
        }
    }
    file::replace(path, &list.text(), file::Mode::AsBefore).map_err(InstallError::file("writing", path))?;
    Ok(Some(Change::Removed(path.to_owned())))
}

/// The name under which a converted configuration is kept.
fn kept(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(REPLACED);
    name.into()
}

/// What runtimes take for network configurations, in their order: that of the names.
fn configurations(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(InstallError::file("reading the folder", dir)(error)),
    };
    let is_configuration = |path: &PathBuf| {
        path.extension().is_some_and(|extension| ["conflist", "conf", "json"].iter().any(|known| *known == extension))
    };
    let mut found: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(is_configuration).filter(|path| !path.is_dir()).collect();
    found.sort();
    Ok(found)
}
