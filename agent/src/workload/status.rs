//! What became of each workload: enrolled or not, and why.
//!
//! Before: [`crate::server`], which enrols workloads and says how that went. After: `/pods` and `waylay pods`.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::Workload;
use crate::telemetry::stats::PodTraffic;
use crate::telemetry::text::timestamp;

/// One workload that a runtime told of.
#[derive(Clone, Debug)]
pub struct EnrolmentStatus {
    /// As last heard.
    pub workload: Arc<Workload>,
    /// What became of it.
    pub state: EnrolmentState,
    /// Why, in words; `None` when there is nothing to say.
    pub reason: Option<String>,
    /// Of its network namespace, when that was opened.
    pub netns_cookie: Option<u64>,
    /// When it came into this state.
    pub since: SystemTime,
    /// Statistics of its connections; also while those that are open are served on after it was enrolled.
    pub traffic: Option<Arc<PodTraffic>>,
}

/// What became of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EnrolmentState {
    /// Its connections are taken.
    Enrolled,
    /// Its network namespace is taken on the word of the CNI plugin; no runtime told of it yet.
    Provisional,
    /// It is not selected, or cannot be taken.
    Skipped,
    /// It should be enrolled and is not.
    Failed,
}

impl EnrolmentState {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Enrolled, Self::Provisional, Self::Skipped, Self::Failed];

    /// Its name in `/pods`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Provisional => "provisional",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// As `/pods` shows it.
#[derive(Serialize)]
struct View<'a> {
    state: EnrolmentState,
    reason: Option<&'a str>,
    since: String,
    netns_cookie: Option<u64>,
    #[serde(flatten)]
    workload: &'a Workload,
}

impl Serialize for EnrolmentStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let view = View {
            state: self.state,
            reason: self.reason.as_deref(),
            since: timestamp(self.since),
            netns_cookie: self.netns_cookie,
            workload: &self.workload,
        };
        view.serialize(serializer)
    }
}
