//! Medians, percentiles and their spread.

use serde::{Deserialize, Serialize};

/// What several rounds came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, min, max })
    }

    /// How far the rounds lie apart, as a share of the median.
    pub fn noise(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { ((self.max - self.min) / self.median).abs() }
    }
}

/// The smallest value that at least `share` of all are not above (nearest rank); 0 without values.
///
/// `sorted` ascends; `share` is 0 to 1.
pub fn percentile(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0)
}

/// The mean of ratios; `None` without values or with one that is not above 0.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|value| *value <= 0.0 || !value.is_finite()) {
        return None;
    }
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    Some((sum / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        type Case = (&'static [f64], Option<(f64, f64, f64)>);
        let cases: [Case; 4] = [
            (&[], None),
            (&[3.0], Some((3.0, 3.0, 3.0))),
            (&[5.0, 1.0, 2.0], Some((2.0, 1.0, 5.0))),
            (&[4.0, 1.0, f64::NAN, 2.0, 3.0], Some((2.5, 1.0, 4.0))),
        ];
        for (values, expected) in cases {
            let spread = Spread::of(values).map(|spread| (spread.median, spread.min, spread.max));
            assert_eq!(spread, expected, "{values:?}");
        }
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<u64> = (1..=100).collect();
        let cases = [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100), (0.0, 1)];
        for (share, expected) in cases {
            assert_eq!(percentile(&hundred, share), expected, "{share}");
        }
        assert_eq!(percentile(&[], 0.5), 0);
        assert_eq!(percentile(&[7], 0.999), 7);
    }

    #[test]
    fn a_mean_of_ratios_is_one_where_they_cancel_out() {
        assert_eq!(geometric_mean(&[2.0, 0.5]).map(|mean| (mean * 1e9).round()), Some(1e9));
        assert_eq!(geometric_mean(&[]), None);
        assert_eq!(geometric_mean(&[1.0, 0.0]), None);
    }
}
