//! `/stats`: every statistic, as text, as JSON or for Prometheus.
//!
//! The shapes are Envoy's: `name: value` lines; `{"stats": [{"name", "value"}, ...]}` with one entry for all histograms.

use std::fmt::Write;

use http::{HeaderValue, StatusCode};
use regex::Regex;
use serde_json::{Value as Json, json};

use super::State;
use super::query::Query;
use super::reply::{self, Reply};
use super::trace::kernel_counters;
use crate::telemetry::export::{self, Sample, Value};
use crate::telemetry::metric::{BUCKET_BOUNDS_US, HistogramValue};
use crate::telemetry::prometheus;

/// The quantiles that are printed, in percent.
const QUANTILES: [f64; 8] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 100.0];

/// The page.
pub fn page(state: &State, query: &Query) -> Result<Reply, String> {
    let samples = samples(state, query)?;
    match query.value("format").unwrap_or("text") {
        "text" | "" => Ok(reply::text(StatusCode::OK, text(&samples))),
        "json" => Ok(reply::json(&json(&samples))),
        "prometheus" => {
            let content_type = HeaderValue::from_static(prometheus::CONTENT_TYPE);
            Ok(reply::with_type(StatusCode::OK, content_type, prometheus::encode(&samples)))
        }
        other => Err(format!("format '{other}' is not known: use text, json or prometheus")),
    }
}

/// The statistics that the query asks for.
pub fn samples(state: &State, query: &Query) -> Result<Vec<Sample>, String> {
    let filter: Option<Regex> = query.parsed("filter")?;
    let wanted = match query.value("type").unwrap_or("All") {
        "All" | "" => |_: &Value| true,
        "Counters" => |value: &Value| matches!(value, Value::Counter(_)),
        "Gauges" => |value: &Value| matches!(value, Value::Gauge(_)),
        "Histograms" => |value: &Value| matches!(value, Value::Histogram(_)),
        other => return Err(format!("type '{other}' is not known: use All, Counters, Gauges or Histograms")),
    };
    let shared = &state.shared;
    let mut samples = export::collect(&shared.runtime.stats, &shared.snapshot.load(), &kernel_counters(shared));
    samples.extend(export::pods(&shared.enrolments.load()));
    samples.retain(|sample| {
        wanted(&sample.value)
            && (!query.has("usedonly") || sample.is_used())
            && filter.as_ref().is_none_or(|filter| filter.is_match(&sample.full_name()))
    });
    Ok(samples)
}

fn text(samples: &[Sample]) -> String {
    let mut lines: Vec<_> = samples.iter().map(|sample| (sample.full_name(), &sample.value)).collect();
    lines.sort_by(|one, other| one.0.cmp(&other.0));
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = match value {
            Value::Counter(value) => writeln!(text, "{name}: {value}"),
            Value::Gauge(value) => writeln!(text, "{name}: {value}"),
            Value::Histogram(value) => writeln!(text, "{name}: {}", summary(value)),
        };
    }
    text
}

fn summary(value: &HistogramValue) -> String {
    if value.count == 0 {
        return "No recorded values".to_owned();
    }
    let quantiles: Vec<_> =
        QUANTILES.iter().map(|percent| format!("P{percent}({:.3})", quantile_ms(value, *percent))).collect();
    format!("{} count={} sum_ms={}", quantiles.join(" "), value.count, value.sum_us / 1000)
}

fn json(samples: &[Sample]) -> Json {
    let mut stats = Vec::new();
    let mut histograms = Vec::new();
    for sample in samples {
        let name = sample.full_name();
        match &sample.value {
            Value::Counter(value) => stats.push(json!({"name": name, "value": value})),
            Value::Gauge(value) => stats.push(json!({"name": name, "value": value})),
            Value::Histogram(value) => {
                let values: Vec<_> = QUANTILES
                    .iter()
                    .map(|percent| (value.count > 0).then(|| quantile_ms(value, *percent)))
                    .map(|quantile| json!({"interval": null, "cumulative": quantile}))
                    .collect();
                histograms.push(json!({"name": name, "values": values, "count": value.count}));
            }
        }
    }
    if !histograms.is_empty() {
        stats.push(json!({
            "histograms": {"supported_quantiles": QUANTILES, "computed_quantiles": histograms}
        }));
    }
    json!({"stats": stats})
}

/// An estimate from the buckets: linear between the bounds of the one that holds the quantile.
#[expect(clippy::cast_precision_loss, reason = "an estimate, and 2^53 microseconds are 285 years")]
fn quantile_ms(value: &HistogramValue, percent: f64) -> f64 {
    let rank = value.count as f64 * percent / 100.0;
    let mut below = 0_u64;
    let mut lower = 0_u64;
    for (bound, count) in BUCKET_BOUNDS_US.iter().zip(&value.buckets) {
        if *count > 0 && (below + count) as f64 >= rank {
            let part = ((rank - below as f64) / *count as f64).max(0.0);
            return (lower as f64 + (*bound - lower) as f64 * part) / 1000.0;
        }
        below += count;
        lower = *bound;
    }
    lower as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metric::Histogram;

    #[test]
    fn quantiles_lie_within_the_bucket_that_holds_them() {
        let histogram = Histogram::default();
        (0..90).for_each(|_| histogram.observe(Duration::from_micros(700)));
        (0..10).for_each(|_| histogram.observe(Duration::from_millis(30)));
        let value = histogram.value();
        let (median, high) = (quantile_ms(&value, 50.0), quantile_ms(&value, 99.0));
        assert!((0.5..=1.0).contains(&median), "{median}");
        assert!((25.0..=50.0).contains(&high), "{high}");
        assert_eq!(summary(&Histogram::default().value()), "No recorded values");
    }
}
