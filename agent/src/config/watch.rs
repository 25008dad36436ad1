//! Notices that the configuration file changed.
//!
//! Before: an editor, a deployment, a mounted ConfigMap. After: the server's reload. What is watched are the folders
//! of the file and of every symbolic link on the way to it, not the file itself: editors replace a file by renaming
//! another one onto it, and a ConfigMap is swapped by renaming the link `..data` next to it. What counts is that the
//! content is another one than before; permissions and times do not.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::yaml::MAX_FILE_BYTES;

/// Quiet after the last event before the file is looked at: an editor's truncate, write and rename are done by then.
const QUIET: Duration = Duration::from_millis(100);

/// The file is looked at after this long even if events keep coming (a log file in the same folder, say).
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The file is looked at this often without any event: network file systems give none, and a folder that was replaced
/// is noticed only so.
const SLOW_LOOK: Duration = Duration::from_secs(10);

/// Symbolic links followed on the way to the file, as many as the kernel follows.
const MAX_LINKS: usize = 40;

const _: () = assert!(QUIET.as_millis() < LONGEST_WAIT.as_millis() && LONGEST_WAIT.as_millis() < SLOW_LOOK.as_millis());

/// Why a file cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No inotify instance is to be had.
    #[error("cannot watch the configuration for changes: raise fs.inotify.max_user_instances, or reload by SIGHUP")]
    Start(#[source] notify::Error),
    /// The folder cannot be watched.
    #[error("cannot watch the folder {folder}")]
    Folder {
        /// Which one.
        folder: PathBuf,
        /// Why not.
        source: notify::Error,
    },
}

/// Watches one configuration file.
pub struct Watcher {
    file: PathBuf,
    events: Arc<Notify>,
    inotify: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
    content: Option<u64>,
}

impl Watcher {
    /// Begins to watch `file`, whose content now counts as known: make the watcher before the file is loaded, and no
    /// change falls between the two.
    ///
    /// # Errors
    /// The system has no watch to give, or the file's folder cannot be watched.
    pub fn new(file: &Path) -> Result<Self, WatchError> {
        let events = Arc::new(Notify::new());
        let wake = events.clone();
        // Whatever happened, and even a failure of the watch: the file is looked at.
        let inotify = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| !event.kind.is_access()) {
                wake.notify_one();
            }
        })
        .map_err(WatchError::Start)?;
        let mut watcher =
            Self { content: fingerprint(file), file: file.to_owned(), events, inotify, folders: BTreeSet::new() };
        for folder in folders(file) {
            watcher.watch(folder)?;
        }
        Ok(watcher)
    }

    /// Waits until the file's content is another one, and has been so for a moment. Cancel-safe. A file that is gone is
    /// no change until it is back.
    pub async fn changed(&mut self) {
        loop {
            match timeout(SLOW_LOOK, self.events.notified()).await {
                Ok(()) => self.settle().await,
                Err(_) => self.forget(),
            }
            self.follow();
            let Some(content) = fingerprint(&self.file) else { continue };
            if self.content.replace(content) != Some(content) {
                return;
            }
        }
    }

    /// Waits for quiet.
    async fn settle(&self) {
        let latest = Instant::now() + LONGEST_WAIT;
        while timeout_at(latest.min(Instant::now() + QUIET), self.events.notified()).await.is_ok() {
            if Instant::now() >= latest {
                return;
            }
        }
        // An event that was in flight when the time was up is looked at with the others.
        sleep(Duration::ZERO).await;
    }

    /// Gives all watches up, for [`Self::follow`] to begin again: that of a folder which was removed and made again
    /// is dead, and nothing says so.
    fn forget(&mut self) {
        for folder in std::mem::take(&mut self.folders) {
            let _ = self.inotify.unwatch(&folder);
        }
    }

    /// Watches where the file's links lead now; a folder that cannot be watched is left to the slow look.
    fn follow(&mut self) {
        let now = folders(&self.file);
        let gone: Vec<_> = self.folders.iter().filter(|folder| !now.contains(*folder)).cloned().collect();
        for folder in gone {
            let _ = self.inotify.unwatch(&folder);
            self.folders.remove(&folder);
        }
        for folder in now {
            if !self.folders.contains(&folder)
                && let Err(error) = self.watch(folder)
            {
                tracing::debug!(%error, "falling back to looking at the configuration now and then");
            }
        }
    }

    fn watch(&mut self, folder: PathBuf) -> Result<(), WatchError> {
        let watched = self.inotify.watch(&folder, RecursiveMode::NonRecursive);
        watched.map_err(|source| WatchError::Folder { folder: folder.clone(), source })?;
        self.folders.insert(folder);
        Ok(())
    }
}

/// The folders in which something can change what `file` leads to: its own, and those of every link on the way, each
/// part of the path taken for a possible link.
fn folders(file: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut pending = vec![file.to_owned()];
    let mut links = 0;
    while let Some(path) = pending.pop() {
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => continue,
        };
        if path == file {
            folders.insert(parent.to_owned());
        }
        // The path itself, or a folder on the way to it, may be the link.
        for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
            let Ok(target) = std::fs::read_link(part) else { continue };
            links += 1;
            if links > MAX_LINKS {
                return folders;
            }
            let beside = part.parent().unwrap_or(Path::new("."));
            let beside = if beside.as_os_str().is_empty() { Path::new(".") } else { beside };
            folders.insert(beside.to_owned());
            let rest = path.strip_prefix(part).unwrap_or(Path::new(""));
            let target = beside.join(target);
            let target = if rest.as_os_str().is_empty() { target } else { target.join(rest) };
            if let Some(parent) = target.parent() {
                folders.insert(parent.to_owned());
            }
            pending.push(target);
            break;
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// What the file holds, in short; `None` when there is none that can be read. Only a regular file is opened: a pipe would
/// make this wait for its writer, and take from the loader what it holds.
fn fingerprint(file: &Path) -> Option<u64> {
    if !file.is_file() {
        return None;
    }
    // What is beyond the limit is refused whatever it is, and need not be read for that.
    let limit = MAX_FILE_BYTES as u64 + 1;
    let mut content = Vec::new();
    std::fs::File::open(file).ok()?.take(limit).read_to_end(&mut content).ok()?;
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Long enough for an event to arrive and to settle on a busy machine, shorter than the slow look.
    const SOON: Duration = Duration::from_secs(5);
    /// Longer than an event needs to settle.
    const QUIET_FOR: Duration = Duration::from_millis(500);

    async fn is_noticed(watcher: &mut Watcher) -> bool {
        timeout(SOON, watcher.changed()).await.is_ok()
    }

    async fn is_quiet(watcher: &mut Watcher) -> bool {
        timeout(QUIET_FOR, watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn a_file_that_is_written_in_place_is_noticed_once() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("waylay.yaml");
        fs::write(&file, "a: 1").expect("write");
        let mut watcher = Watcher::new(&file).expect("watch");
        fs::write(&file, "a: 2").expect("write");
        fs::write(&file, "a: 3").expect("write");
        assert!(is_noticed(&mut watcher).await);
        fs::write(&file, "a: 3").expect("write");
        fs::write(folder.path().join("another"), "x").expect("write");
        assert!(is_quiet(&mut watcher).await, "the content is the same");
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_by_renaming_is_noticed_each_time() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("waylay.yaml");
        fs::write(&file, "a: 1").expect("write");
        let mut watcher = Watcher::new(&file).expect("watch");
        for content in ["a: 2", "a: 3"] {
            let swap = folder.path().join("waylay.yaml.swp");
            fs::write(&swap, content).expect("write");
            fs::rename(&swap, &file).expect("rename");
            assert!(is_noticed(&mut watcher).await, "{content}");
        }
        fs::remove_file(&file).expect("remove");
        assert!(is_quiet(&mut watcher).await, "a file that is gone is no change");
        fs::write(&file, "a: 4").expect("write");
        assert!(is_noticed(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_pipe_in_place_of_the_file_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("waylay.yaml");
        fs::write(&file, "a: 1").expect("write");
        let mut watcher = Watcher::new(&file).expect("watch");
        fs::remove_file(&file).expect("remove");
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        assert!(is_quiet(&mut watcher).await);
        fs::remove_file(&file).expect("remove");
        fs::write(&file, "a: 2").expect("write");
        assert!(is_noticed(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_config_map_that_is_swapped_is_noticed_each_time() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let publish = |version: &str| {
            fs::create_dir(at(version)).expect("folder");
            fs::write(at(version).join("waylay.yaml"), version).expect("write");
            symlink(version, at("..data_tmp")).expect("link");
            fs::rename(at("..data_tmp"), at("..data")).expect("rename");
        };
        publish("..1");
        symlink("..data/waylay.yaml", at("waylay.yaml")).expect("link");
        let mut watcher = Watcher::new(&at("waylay.yaml")).expect("watch");
        for (version, before) in [("..2", "..1"), ("..3", "..2")] {
            publish(version);
            fs::remove_dir_all(at(before)).expect("remove");
            assert!(is_noticed(&mut watcher).await, "{version}");
        }
    }

    #[tokio::test]
    async fn a_link_to_a_file_elsewhere_is_followed() {
        let (here, there) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let (link, file) = (here.path().join("waylay.yaml"), there.path().join("real.yaml"));
        fs::write(&file, "a: 1").expect("write");
        symlink(&file, &link).expect("link");
        let mut watcher = Watcher::new(&link).expect("watch");
        fs::write(&file, "a: 2").expect("write");
        assert!(is_noticed(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_folder_that_is_made_later_is_noticed_by_the_slow_look() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("later/waylay.yaml");
        let mut watcher = Watcher::new(&file).expect("watch");
        fs::create_dir(folder.path().join("later")).expect("folder");
        fs::write(&file, "a: 1").expect("write");
        tokio::time::pause();
        watcher.changed().await;
    }
}
