//! The main thread from start to end: what it reacts to, and in which order it shuts down.
//!
//! Before: [`super::Server::run`]. After: the end of the process.

use std::time::Duration;

use super::notify::ServiceManager;
use super::{Command, RECORDS_TIMEOUT, ServerError, Serving, SignalHandling, shutting_down, tidy};
use crate::signal::{Signals, Wish};

/// Between the last redirection and closing the listening sockets: a connect that a hook redirected just before it was
/// told to stop still sends its SYN, which takes microseconds on loopback.
pub(super) const LAST_REDIRECTED: Duration = Duration::from_millis(20);

/// What ends the loop.
enum Ending {
    Drain,
    AtOnce,
}

impl Serving {
    /// Serves until it is told to stop, then ends in order.
    pub(super) async fn run(mut self) -> Result<(), ServerError> {
        let mut signals = match self.signals {
            SignalHandling::Server => {
                Some(Signals::install().map_err(ServerError::start("installing the signal handlers"))?)
            }
            SignalHandling::Caller => None,
        };
        if signals.is_some() {
            let thread = "starting the thread that tells the service manager how the agent is";
            self.service = ServiceManager::from_environment().map_err(ServerError::start(thread))?;
        }
        tokio::spawn(self.service.watchdog(self.shared.clone()));
        tokio::spawn(tidy::keep_tidy(self.shared.clone()));
        self.service.ready(self.shared.snapshot.load().origin.version);
        tracing::info!("{}", if self.attached.is_some() { "ready, and intercepting" } else { "ready" });
        if let Ending::Drain = self.until_stopped(&mut signals).await {
            self.stop_taking().await;
            self.drain(&mut signals).await;
        } else {
            self.stop_redirecting();
        }
        self.drain.close();
        self.drain.closed(RECORDS_TIMEOUT).await;
        if let Some(attached) = self.attached.take() {
            attached.detach();
        }
        if let Some(dns) = self.dns.take() {
            dns.end();
        }
        for worker in self.workers {
            worker.end();
        }
        Ok(())
    }

    async fn until_stopped(&mut self, signals: &mut Option<Signals>) -> Ending {
        loop {
            tokio::select! {
                wish = next(signals) => match wish {
                    Wish::Stop => return Ending::Drain,
                    Wish::Reload => _ = self.reload().await,
                },
                () = self.pods.changed() => self.sync_some_pods().await,
                command = self.commands.recv() => match command {
                    Some(Command::Reload(answer)) => {
                        let reloaded = self.reload().await;
                        // Whoever asked may have left.
                        let _ = answer.send(reloaded);
                    }
                    Some(Command::CniAdd(pod, answer)) => _ = answer.send(self.cni_add(&pod).await),
                    Some(Command::CniDel(pod, answer)) => _ = answer.send(self.cni_del(&pod).await),
                    Some(Command::DrainListeners) => self.stop_taking().await,
                    Some(Command::Stop) | None => return Ending::Drain,
                    Some(Command::Kill) => return Ending::AtOnce,
                },
            }
        }
    }

    fn stop_redirecting(&self) {
        if let Some(attached) = &self.attached {
            attached.stop_redirecting();
        }
    }

    /// No new connections: first none is redirected, then none is accepted.
    async fn stop_taking(&mut self) {
        self.shared.set_draining();
        self.stop_redirecting();
        if self.attached.is_some() {
            tokio::time::sleep(LAST_REDIRECTED).await;
        }
        let keys: Vec<_> = self.bound.keys().copied().collect();
        self.inbound.clear();
        for key in keys {
            self.close(key).await;
        }
        self.close_pods().await;
    }

    /// Lets what is in flight finish, until the deadline or a second wish to stop.
    async fn drain(&mut self, signals: &mut Option<Signals>) {
        let timeout = self.shared.snapshot.load().drain_timeout;
        self.service.stopping(timeout);
        tracing::info!(seconds = timeout.as_secs_f64(), "draining");
        let impatient = async {
            loop {
                tokio::select! {
                    wish = next(signals) => if wish == Wish::Stop { return },
                    command = self.commands.recv() => match command {
                        Some(Command::Kill | Command::Stop) => return,
                        Some(Command::Reload(answer)) => _ = answer.send(Err(shutting_down())),
                        Some(Command::CniAdd(_, answer)) => _ = answer.send(Err(shutting_down())),
                        Some(Command::CniDel(_, answer)) => _ = answer.send(Err(shutting_down())),
                        Some(Command::DrainListeners) => {}
                        None => std::future::pending().await,
                    },
                }
            }
        };
        tokio::select! {
            left = self.drain.drain(timeout) => match left {
                0 => tracing::info!("drained"),
                left => tracing::warn!(connections = left, "closing what is left at the drain deadline"),
            },
            () = impatient => tracing::warn!("stopping at once"),
        }
    }
}

async fn next(signals: &mut Option<Signals>) -> Wish {
    match signals {
        Some(signals) => signals.next().await,
        None => std::future::pending().await,
    }
}
