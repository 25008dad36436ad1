//! Keeps the plugin installed: other programs write the configuration again, and a new network may come before ours.
//!
//! Before: [`Installation::install`]. It never returns; whoever runs it ends the process, and the plugin stays.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{Change, InstallError, Installation};

/// Quiet after an event before the folder is looked at: whoever writes several files is done by then.
const QUIET: Duration = Duration::from_millis(20);

/// The folder is looked at this often without any event: it may be made only later, and network file systems give none.
const SLOW_LOOK: Duration = Duration::from_secs(2);

/// Looks at the folder whenever it changes, and tells `each` what was done about it, or why nothing could be done; the
/// same reason only once.
pub fn keep(installation: &Installation, mut each: impl FnMut(Result<&[Change], &InstallError>)) -> ! {
    let (sender, events) = mpsc::channel();
    let mut watcher = None;
    let mut last_error = String::new();
    loop {
        // Before the look, so that no change falls between the two.
        if watcher.is_none() {
            watcher = watch(installation, sender.clone());
        }
        match installation.install() {
            Ok(changes) => {
                last_error.clear();
                if !changes.is_empty() {
                    each(Ok(&changes));
                }
            }
            Err(error) => {
                let text = format!("{error}: {:?}", std::error::Error::source(&error));
                if text != last_error {
                    each(Err(&error));
                    last_error = text;
                }
            }
        }
        if let Waited::ForNothing = wait(&events) {
            // The watch of a folder that was removed and made again is dead, and nothing says so.
            watcher = None;
        }
    }
}

fn watch(installation: &Installation, wake: Sender<()>) -> Option<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| !event.kind.is_access()) {
            // It fails when nobody looks any more.
            let _ = wake.send(());
        }
    })
    .ok()?;
    watcher.watch(&installation.conf_dir, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

enum Waited {
    ForAnEvent,
    ForNothing,
}

fn wait(events: &Receiver<()>) -> Waited {
    match events.recv_timeout(SLOW_LOOK) {
        Ok(()) => {
            std::thread::sleep(QUIET);
            while events.try_recv().is_ok() {}
            Waited::ForAnEvent
        }
        // It cannot be disconnected: `keep` holds a sender.
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Waited::ForNothing,
    }
}
