//! Workloads that are let go: one that is gone, or all at once when nothing is to be taken any more.
//!
//! Before: [`super`], which decides. After: [`super::enrolled`], which takes nothing more in a namespace and closes there.

use super::super::Serving;
use super::super::life::LAST_REDIRECTED;
use super::{DRAINING, ENROLS_NO_PODS, Member, State, WorkloadId};

impl Serving {
    /// The workload is gone: so is everything of it.
    pub(in crate::server) async fn release(&mut self, id: &WorkloadId) {
        let Some(Member { workload, state, .. }) = self.pods.members.remove(id) else { return };
        match state {
            State::Enrolled(mut enrolled) => {
                tracing::info!(pod = %workload, "gone");
                self.withdraw(&mut enrolled);
                enrolled.place.leave();
                self.close_there(*enrolled).await;
            }
            State::Retired { place, .. } | State::Failed { place: Some(place), .. } => place.leave(),
            State::Skipped(_) | State::Failed { place: None, .. } => {}
        }
    }

    /// Nobody tells of workloads any more: nothing is taken of any, and what is open is served on.
    pub(super) async fn leave_alone_all(&mut self) {
        if !self.pods.members.is_empty() {
            self.retire_all(ENROLS_NO_PODS).await;
            self.pods.members.clear();
        }
    }

    /// Nothing new is taken anywhere.
    pub(in crate::server) async fn close_pods(&mut self) {
        self.retire_all(DRAINING).await;
        self.publish_pods();
    }

    async fn retire_all(&mut self, reason: &str) {
        let mut leaving = Vec::new();
        for (id, mut member) in std::mem::take(&mut self.pods.members) {
            match member.state {
                State::Enrolled(mut enrolled) => {
                    self.withdraw(&mut enrolled);
                    leaving.push((id, member.workload, enrolled, member.since));
                }
                state => {
                    member.state = state;
                    self.pods.members.insert(id, member);
                }
            }
        }
        if !leaving.is_empty() {
            tokio::time::sleep(LAST_REDIRECTED).await;
        }
        for (id, workload, enrolled, since) in leaving {
            let place = self.close_there(*enrolled).await;
            let state = State::Retired { place, reason: reason.to_owned() };
            self.pods.members.insert(id, Member { workload, state, since });
        }
    }
}
