//! This run against a stored one: what became worse beyond the noise.
//!
//! Two runs are two days of a machine. What everybody else of a case changed by, direct and the peers, is the machine's
//! doing and is taken out; what is left has to be more than the rounds of either run lie apart.

use super::{
    results::{Results, metric},
    stats::geometric_mean,
};

/// Changes below this are nobody's.
const SMALLEST: f64 = 0.05;
/// ... and below this, where two rounds or fewer do not tell how far they lie apart.
const SMALLEST_OF_FEW: f64 = 0.2;
const FEW: usize = 2;

/// A number of waylay's that changed.
#[derive(Debug, PartialEq)]
struct Change {
    what: String,
    /// Above 1 is better.
    factor: f64,
}

/// In sentences, for the terminal.
pub fn told(before: &Results, now: &Results) -> String {
    let changes = changes(before, now);
    let lines = |better: bool| -> String {
        let chosen = changes.iter().filter(|change| (change.factor > 1.0) == better);
        chosen.map(|change| format!("  {}: {:.2} x\n", change.what, change.factor)).collect()
    };
    let (worse, better) = (lines(false), lines(true));
    let against = format!("against the run of {}", before.machine.time);
    let mut text = match worse.is_empty() {
        true => format!("Nothing became worse beyond the noise, {against}.\n"),
        false => format!("Worse, {against} (the machine's own change taken out):\n{worse}"),
    };
    if !better.is_empty() {
        text += &format!("Better:\n{better}");
    }
    text
}

fn changes(before: &Results, now: &Results) -> Vec<Change> {
    let mut changes = Vec::new();
    for case in now.cases() {
        for metric in now.metrics(case) {
            let drift = drift(before, now, case, metric);
            for system in now.systems(case).into_iter().filter(|system| system.starts_with("waylay")) {
                changes.extend(change(before, now, (case, system, metric), drift));
            }
        }
    }
    changes
}

/// What the others changed by; 1 without others.
fn drift(before: &Results, now: &Results, case: &str, metric: &str) -> f64 {
    let others = now.systems(case).into_iter().filter(|system| !system.starts_with("waylay"));
    let ratios =
        others.filter_map(|system| Some(now.median(case, system, metric)? / before.median(case, system, metric)?));
    geometric_mean(&ratios.collect::<Vec<_>>()).unwrap_or(1.0)
}

fn change(before: &Results, now: &Results, (case, system, name): (&str, &str, &str), drift: f64) -> Option<Change> {
    let (then, current) = (before.spread(case, system, name)?, now.spread(case, system, name)?);
    let ratio = current.median / then.median / drift;
    if !ratio.is_finite() || ratio <= 0.0 {
        return None;
    }
    let factor = if metric::more_is_better(name) { ratio } else { 1.0 / ratio };
    let rounds = [before, now].map(|results| results.count(case, system, name)).into_iter().min().unwrap_or(0);
    let smallest = if rounds <= FEW { SMALLEST_OF_FEW } else { SMALLEST };
    let noise = then.noise().max(current.noise()).max(smallest);
    ((factor - 1.0).abs() > noise).then(|| Change { what: format!("{case} {system} {name}"), factor })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ours: [f64; 3], direct: f64) -> Results {
        let mut results = Results::default();
        for (round, value) in ours.into_iter().enumerate() {
            results.push("c", "waylay", round as u32, &[(metric::PER_SECOND, value)]);
            results.push("c", "direct", round as u32, &[(metric::PER_SECOND, direct)]);
        }
        results
    }

    #[test]
    fn only_what_is_beyond_noise_and_the_machines_change_is_told() {
        let before = run([100.0, 101.0, 99.0], 200.0);
        let cases = [
            (run([98.0, 99.0, 100.0], 200.0), None),
            // The whole machine is slower.
            (run([50.0, 50.5, 49.5], 100.0), None),
            (run([80.0, 81.0, 79.0], 200.0), Some(0.8)),
            (run([120.0, 121.0, 119.0], 200.0), Some(1.2)),
            // Its rounds lie further apart than the change.
            (run([80.0, 110.0, 60.0], 200.0), None),
        ];
        for (now, expected) in cases {
            let factors: Vec<_> = changes(&before, &now).into_iter().map(|change| change.factor).collect();
            match expected {
                None => assert!(factors.is_empty(), "{factors:?}"),
                Some(expected) => assert!((factors[0] - expected).abs() < 1e-9, "{factors:?}"),
            }
        }
    }

    #[test]
    fn of_few_rounds_only_a_large_change_is_told() {
        let of = |rate: f64| {
            let mut results = Results::default();
            results.push("c", "waylay", 0, &[(metric::PER_SECOND, rate)]);
            results
        };
        assert!(changes(&of(100.0), &of(85.0)).is_empty());
        assert_eq!(changes(&of(100.0), &of(75.0)).len(), 1);
    }

    #[test]
    fn less_memory_is_better() {
        let of = |kb: f64| {
            let mut results = Results::default();
            results.push("idle", "waylay", 0, &[(metric::KB_PER_CONNECTION, kb)]);
            results
        };
        assert!(told(&of(3.0), &of(6.0)).starts_with("Worse"));
        assert!(told(&of(6.0), &of(3.0)).contains("Better:\n  idle waylay kb_per_connection: 2.00 x"));
    }
}
