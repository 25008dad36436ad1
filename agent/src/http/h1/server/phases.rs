//! The agent's phase as a connection follows it: one subscription, which is not touched for a request.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use crate::drain::{Drain, Phase};

/// The agent's phase, followed.
pub struct Phases {
    drain: Drain,
    seen: Phase,
    next: Pin<Box<dyn Future<Output = ()>>>,
    registered: Registered,
}

impl Phases {
    /// From now on.
    pub fn new(drain: Drain) -> Self {
        let next = next_phase(drain.clone(), Phase::Serving);
        Self { drain, seen: Phase::Serving, next, registered: Registered::default() }
    }

    /// The phase now; the task is woken when it changes.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Phase {
        let phase = self.drain.phase();
        if phase != self.seen {
            self.seen = phase;
            self.next = next_phase(self.drain.clone(), phase);
            self.registered.0 = None;
        }
        if !self.registered.is_with(cx) && phase != Phase::Closing {
            self.registered.set(cx);
            if self.next.as_mut().poll(cx).is_ready() {
                // It changed just now: the next poll sees it.
                cx.waker().wake_by_ref();
            }
        }
        phase
    }
}

fn next_phase(drain: Drain, phase: Phase) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        match phase {
            Phase::Serving => drain.draining().await,
            Phase::Draining | Phase::Closing => drain.closing().await,
        }
    })
}

/// With whose waker something was registered.
#[derive(Default)]
struct Registered(Option<Waker>);

impl Registered {
    fn is_with(&self, cx: &Context<'_>) -> bool {
        self.0.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
    }

    fn set(&mut self, cx: &Context<'_>) {
        self.0 = Some(cx.waker().clone());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;
    use crate::drain::channel;

    #[tokio::test(start_paused = true)]
    async fn each_phase_is_seen() {
        let (control, drain) = channel();
        let open = drain.open();
        let mut phases = Phases::new(drain);
        tokio::spawn(async move { control.drain(Duration::from_secs(5)).await });
        let mut seen = Vec::new();
        poll_fn(|cx| {
            let phase = std::mem::discriminant(&phases.poll(cx));
            if seen.last() != Some(&phase) {
                seen.push(phase);
            }
            if seen.len() == 3 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        drop(open);
    }
}
