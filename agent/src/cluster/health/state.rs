//! When an endpoint is well: thresholds over the results of its checks. Pure.
//!
//! The rules are Envoy's (`ActiveHealthCheckSession`): the first result of all counts at once; an endpoint that is
//! well fails after `unhealthy_threshold` failures in a row, and recovers after `healthy_threshold` successes in a row;
//! an answer with a status that is neither expected nor retriable fails it at once.

use std::fmt;

use crate::cluster::endpoint::Health;

/// What one check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is well.
    Pass,
    /// It is not, or it could not be asked: counts towards the threshold.
    Fail,
    /// It says itself that it is not well.
    FailAtOnce,
}

/// What is known of one endpoint by one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    health: Health,
    /// Results in a row that contradict `health`.
    contradictions: u32,
}

/// A change of health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transition {
    /// What it is now.
    pub to: Health,
    /// By which rule.
    pub why: Why,
}

/// The rule that changed an endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// There was no result before.
    FirstCheck,
    /// This many results in a row.
    Threshold(u32),
    /// One answer is enough.
    AtOnce,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstCheck => f.write_str("first check"),
            Self::Threshold(count) => write!(f, "{count} of {count}"),
            Self::AtOnce => f.write_str("at once"),
        }
    }
}

impl State {
    /// Goes on from what was known before; `Unknown` is a fresh start.
    pub fn resume(health: Health) -> Self {
        Self { health, contradictions: 0 }
    }

    /// Takes one result in; says so when it changes the endpoint's health. A threshold of 0 means 1.
    pub fn observe(
        &mut self,
        verdict: Verdict,
        healthy_threshold: u32,
        unhealthy_threshold: u32,
    ) -> Option<Transition> {
        let says = if verdict == Verdict::Pass { Health::Healthy } else { Health::Unhealthy };
        if says == self.health {
            self.contradictions = 0;
            return None;
        }
        self.contradictions = self.contradictions.saturating_add(1);
        let threshold = if says == Health::Healthy { healthy_threshold } else { unhealthy_threshold }.max(1);
        let why = match (self.health, verdict) {
            (Health::Unknown, _) => Why::FirstCheck,
            _ if self.contradictions >= threshold => Why::Threshold(threshold),
            (_, Verdict::FailAtOnce) => Why::AtOnce,
            _ => return None,
        };
        *self = Self::resume(says);
        Some(Transition { to: says, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One letter a result: `+` passes, `-` fails, `!` fails at once. One letter a health: `?`, `H`, `U`.
    fn run(from: Health, results: &str) -> (String, Vec<Why>) {
        let mut state = State::resume(from);
        let mut reasons = Vec::new();
        let letters = results.chars().map(|result| {
            let verdict = match result {
                '+' => Verdict::Pass,
                '-' => Verdict::Fail,
                _ => Verdict::FailAtOnce,
            };
            reasons.extend(state.observe(verdict, 2, 3).map(|transition| transition.why));
            match state.health {
                Health::Unknown => '?',
                Health::Healthy => 'H',
                Health::Unhealthy => 'U',
            }
        });
        (letters.collect(), reasons)
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        use Health::{Healthy, Unhealthy, Unknown};
        for (from, results, health, reasons) in [
            (Unknown, "+", "H", vec![Why::FirstCheck]),
            (Unknown, "-", "U", vec![Why::FirstCheck]),
            (Unknown, "!", "U", vec![Why::FirstCheck]),
            (Unknown, "-++", "UUH", vec![Why::FirstCheck, Why::Threshold(2)]),
            (Healthy, "---", "HHU", vec![Why::Threshold(3)]),
            (Healthy, "--+---", "HHHHHU", vec![Why::Threshold(3)]),
            (Healthy, "!", "U", vec![Why::AtOnce]),
            (Healthy, "--!", "HHU", vec![Why::Threshold(3)]),
            (Unhealthy, "+-++", "UUUH", vec![Why::Threshold(2)]),
            (Unhealthy, "+!+", "UUU", vec![]),
        ] {
            assert_eq!(run(from, results), (health.to_owned(), reasons), "{from:?} {results}");
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_never_stays_well_after_enough_failures_in_a_row(
            results in prop::collection::vec(prop::sample::select(vec!['+', '-', '!']), 0..30),
            mut end in prop::sample::select(vec!["---", "!", "-!"]).prop_map(String::from),
        ) {
            let before: String = results.into_iter().collect();
            end.insert_str(0, &before);
            prop_assert!(run(Health::Unknown, &end).0.ends_with('U'));
            end.push_str("++");
            prop_assert!(run(Health::Unknown, &end).0.ends_with('H'));
        }
    }
}
