//! What a run measured: one [`Sample`] for each case, system and round. All tables, plots and comparisons are made
//! from these, so that a stored run can be looked at again.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{machine::Machine, stats::Spread};

/// What was measured of a case; the unit stands last in each name.
pub mod metric {
    pub const PER_SECOND: &str = "per_second";
    pub const PROXY_US: &str = "proxy_us";
    pub const SYSTEM_US: &str = "system_us";
    pub const GB_PER_SECOND: &str = "gb_per_second";
    pub const PROXY_S_PER_GB: &str = "proxy_s_per_gb";
    pub const SYSTEM_S_PER_GB: &str = "system_s_per_gb";
    pub const P50_US: &str = "p50_us";
    pub const P99_US: &str = "p99_us";
    pub const P999_US: &str = "p999_us";
    pub const CONNECT_US: &str = "connect_us";
    pub const RSS_MB: &str = "rss_mb";
    pub const KB_PER_CONNECTION: &str = "kb_per_connection";
    pub const KB_PER_POD: &str = "kb_per_pod";
    pub const READY_MS: &str = "ready_ms";
    pub const RELOAD_MS: &str = "reload_ms";
    pub const ENROL_MS: &str = "enrol_ms";

    /// Whether more of it is better.
    pub fn more_is_better(metric: &str) -> bool {
        metric == PER_SECOND || metric == GB_PER_SECOND
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub case: String,
    pub system: String,
    pub round: u32,
    pub values: BTreeMap<String, f64>,
    /// What the load generator complained of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<String>,
}

/// What was not measured, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub what: String,
    pub why: String,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    /// The lines that started what was measured, and what measured it: one of each kind.
    pub commands: BTreeMap<String, String>,
    pub skipped: Vec<Skipped>,
    pub samples: Vec<Sample>,
}

impl Results {
    pub fn load(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not the result of a benchmark", file.display()))
    }

    pub fn store(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    pub fn push(&mut self, case: &str, system: &str, round: u32, values: &[(&str, f64)]) -> &mut Sample {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let sample = Sample { case: case.to_owned(), system: system.to_owned(), round, values, errors: None };
        self.samples.push(sample);
        self.samples.last_mut().unwrap_or_else(|| unreachable!("it was pushed"))
    }

    pub fn skip(&mut self, what: &str, why: &str) {
        eprintln!("    skipped: {what}: {why}");
        let skipped = Skipped { what: what.to_owned(), why: why.to_owned() };
        if !self.skipped.contains(&skipped) {
            self.skipped.push(skipped);
        }
    }

    fn rounds(&self, case: &str, system: &str, metric: &str) -> BTreeMap<u32, f64> {
        let samples = self.samples.iter().filter(|sample| sample.case == case && sample.system == system);
        samples.filter_map(|sample| Some((sample.round, *sample.values.get(metric)?))).collect()
    }

    pub fn spread(&self, case: &str, system: &str, metric: &str) -> Option<Spread> {
        Spread::of(&self.rounds(case, system, metric).into_values().collect::<Vec<_>>())
    }

    pub fn count(&self, case: &str, system: &str, metric: &str) -> usize {
        self.rounds(case, system, metric).len()
    }

    pub fn median(&self, case: &str, system: &str, metric: &str) -> Option<f64> {
        self.spread(case, system, metric).map(|spread| spread.median)
    }

    /// Combines the values of two systems round by round: what one round did to both cancels out.
    pub fn paired(
        &self,
        metric: &str,
        (case, system): (&str, &str),
        (other_case, other): (&str, &str),
        combine: impl Fn(f64, f64) -> f64,
    ) -> Option<Spread> {
        let others = self.rounds(other_case, other, metric);
        let ours = self.rounds(case, system, metric);
        let pairs = ours.iter().filter_map(|(round, value)| Some(combine(*value, *others.get(round)?)));
        Spread::of(&pairs.collect::<Vec<_>>())
    }

    /// One system's value over another's, round by round.
    pub fn ratio(&self, case: &str, metric: &str, system: &str, other: &str) -> Option<Spread> {
        self.paired(metric, (case, system), (case, other), |ours, theirs| ours / theirs)
    }

    /// Names in the order in which they were first measured.
    pub fn cases(&self) -> Vec<&str> {
        first_seen(self.samples.iter().map(|sample| sample.case.as_str()))
    }

    pub fn systems(&self, case: &str) -> Vec<&str> {
        first_seen(self.samples.iter().filter(|sample| sample.case == case).map(|sample| sample.system.as_str()))
    }

    pub fn metrics(&self, case: &str) -> Vec<&str> {
        let samples = self.samples.iter().filter(|sample| sample.case == case);
        first_seen(samples.flat_map(|sample| sample.values.keys().map(String::as_str)))
    }

    /// What load generators complained of, with case and system.
    pub fn complaints(&self) -> Vec<String> {
        let told = self.samples.iter().filter_map(|sample| {
            Some(format!("{} {} round {}: {}", sample.case, sample.system, sample.round, sample.errors.as_ref()?))
        });
        told.collect()
    }
}

fn first_seen<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two systems in three rounds, of which the second lacks one.
    pub fn example() -> Results {
        let mut results = Results::default();
        for (round, (ours, theirs)) in [(110.0, 100.0), (60.0, 50.0), (100.0, 100.0)].into_iter().enumerate() {
            results.push("c", "waylay", round as u32, &[(metric::PER_SECOND, ours)]);
            if round < 2 {
                results.push("c", "peer", round as u32, &[(metric::PER_SECOND, theirs)]);
            }
        }
        results
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        let ratio = example().ratio("c", metric::PER_SECOND, "waylay", "peer").expect("two rounds");
        assert_eq!((ratio.min, ratio.max), (1.1, 1.2));
        assert!(example().ratio("c", metric::PER_SECOND, "waylay", "nobody").is_none());
    }

    #[test]
    fn names_keep_the_order_in_which_they_were_measured() {
        assert_eq!(example().systems("c"), ["waylay", "peer"]);
        assert_eq!(example().cases(), ["c"]);
    }

    #[test]
    fn a_stored_run_reads_back_as_it_was() {
        let mut results = example();
        results.skip("pingora", "not built");
        let text = serde_json::to_string(&results).expect("JSON");
        assert_eq!(serde_json::from_str::<Results>(&text).expect("the same"), results);
    }
}
