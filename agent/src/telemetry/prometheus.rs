//! Prometheus' text exposition format 0.0.4.
//!
//! Before: [`super::export`]. After: `/stats/prometheus` and the listener on 15090. Names are Envoy's with `waylay_` in
//! front; as in Envoy, the statistics by class of status are one metric with a label (`..._rq_xx{response_code_class=
//! "2"}`). Histograms are in seconds and say so in their names.
//!
//! The exposition crates speak OpenMetrics, which forces `_total` upon every counter; Envoy's names do not bear that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

use super::export::{Sample, Value};
use super::metric::{BUCKET_BOUNDS_US, HistogramValue};

/// The media type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `samples` as text: each metric's HELP and TYPE once, its samples together.
pub fn encode(samples: &[Sample]) -> String {
    let mut families: BTreeMap<String, Vec<(&Sample, Option<&'static str>)>> = BTreeMap::new();
    for sample in samples {
        let (name, class) = metric_name(sample);
        families.entry(name).or_default().push((sample, class));
    }
    let mut text = String::with_capacity(samples.len() * 96);
    for (name, members) in &families {
        // Writing to a string cannot fail.
        let _ = write_family(&mut text, name, members);
    }
    text
}

/// The metric's name, and the class of status that becomes a label.
fn metric_name(sample: &Sample) -> (String, Option<&'static str>) {
    let family = sample.scope.family();
    if matches!(sample.value, Value::Histogram(_)) {
        return (format!("waylay_{family}_{}_seconds", sample.name), None);
    }
    let class = ["1", "2", "3", "4", "5"].into_iter().find_map(|class| {
        let stem = sample.name.strip_suffix("xx")?.strip_suffix(class)?;
        Some((format!("waylay_{family}_{stem}xx"), Some(class)))
    });
    class.unwrap_or_else(|| (format!("waylay_{family}_{}", sample.name), None))
}

fn write_family(text: &mut String, name: &str, members: &[(&Sample, Option<&'static str>)]) -> fmt::Result {
    let Some((first, class)) = members.first() else { return Ok(()) };
    let help = if class.is_some() { "Responses by class of status" } else { first.help };
    let kind = match first.value {
        Value::Counter(_) => "counter",
        Value::Gauge(_) => "gauge",
        Value::Histogram(_) => "histogram",
    };
    writeln!(text, "# HELP {name} {}", help.replace('\\', "\\\\").replace('\n', "\\n"))?;
    writeln!(text, "# TYPE {name} {kind}")?;
    for (sample, class) in members {
        let mut labels = sample.scope.labels();
        labels.extend(class.map(|class| ("response_code_class", class.to_owned())));
        match &sample.value {
            Value::Counter(value) => writeln!(text, "{name}{} {value}", Labels(&labels, None))?,
            Value::Gauge(value) => writeln!(text, "{name}{} {value}", Labels(&labels, None))?,
            Value::Histogram(value) => write_histogram(text, name, &labels, value)?,
        }
    }
    Ok(())
}

fn write_histogram(
    text: &mut String,
    name: &str,
    labels: &[(&'static str, String)],
    value: &HistogramValue,
) -> fmt::Result {
    let mut below = 0;
    for (bound, count) in BUCKET_BOUNDS_US.iter().zip(&value.buckets) {
        below += count;
        let bound = seconds(*bound).to_string();
        writeln!(text, "{name}_bucket{} {below}", Labels(labels, Some(&bound)))?;
    }
    // Read without a lock, the parts may differ by what was recorded meanwhile; the buckets must not decrease.
    let count = value.count.max(below);
    writeln!(text, "{name}_bucket{} {count}", Labels(labels, Some("+Inf")))?;
    writeln!(text, "{name}_sum{} {}", Labels(labels, None), seconds(value.sum_us))?;
    writeln!(text, "{name}_count{} {count}", Labels(labels, None))
}

#[expect(clippy::cast_precision_loss, reason = "2^53 microseconds are 285 years")]
fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// `{name="value",...}`, or nothing.
struct Labels<'a>(&'a [(&'static str, String)], Option<&'a str>);

impl Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.0.iter().map(|(name, value)| (*name, value.as_str()));
        let mut separator = '{';
        for (name, value) in plain.chain(self.1.map(|bound| ("le", bound))) {
            write!(f, "{separator}{name}=\"{}\"", escaped(value))?;
            separator = ',';
        }
        if separator == ',' { f.write_char('}') } else { Ok(()) }
    }
}

fn escaped(value: &str) -> Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
    } else {
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::export::Scope;
    use super::super::metric::Histogram;
    use super::*;

    fn sample(scope: Scope, name: &'static str, value: Value) -> Sample {
        Sample { scope, name, help: "Help", value }
    }

    #[test]
    fn each_metric_is_introduced_once_and_its_samples_are_together() {
        let cluster = |name: &str| Scope::Cluster(name.into());
        let samples = [
            sample(cluster("a"), "upstream_rq_total", Value::Counter(3)),
            sample(cluster("a"), "upstream_rq_active", Value::Gauge(-1)),
            sample(cluster("b"), "upstream_rq_total", Value::Counter(4)),
            sample(Scope::Server, "concurrency", Value::Gauge(2)),
        ];
        assert_eq!(
            encode(&samples),
            concat!(
                "# HELP waylay_cluster_upstream_rq_active Help\n",
                "# TYPE waylay_cluster_upstream_rq_active gauge\n",
                "waylay_cluster_upstream_rq_active{cluster=\"a\"} -1\n",
                "# HELP waylay_cluster_upstream_rq_total Help\n",
                "# TYPE waylay_cluster_upstream_rq_total counter\n",
                "waylay_cluster_upstream_rq_total{cluster=\"a\"} 3\n",
                "waylay_cluster_upstream_rq_total{cluster=\"b\"} 4\n",
                "# HELP waylay_server_concurrency Help\n",
                "# TYPE waylay_server_concurrency gauge\n",
                "waylay_server_concurrency 2\n",
            )
        );
    }

    #[test]
    fn classes_of_status_are_a_label() {
        let samples = [
            sample(Scope::Http("p".into()), "downstream_rq_2xx", Value::Counter(1)),
            sample(Scope::Http("p".into()), "downstream_rq_5xx", Value::Counter(2)),
        ];
        assert_eq!(
            encode(&samples),
            concat!(
                "# HELP waylay_http_downstream_rq_xx Responses by class of status\n",
                "# TYPE waylay_http_downstream_rq_xx counter\n",
                "waylay_http_downstream_rq_xx{http_conn_manager_prefix=\"p\",response_code_class=\"2\"} 1\n",
                "waylay_http_downstream_rq_xx{http_conn_manager_prefix=\"p\",response_code_class=\"5\"} 2\n",
            )
        );
    }

    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let histogram = Histogram::default();
        for us in [40, 600, 600, 7_200_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let text =
            encode(&[sample(Scope::Listener("l".into()), "downstream_cx_length", Value::Histogram(histogram.value()))]);
        let name = "waylay_listener_downstream_cx_length_seconds";
        for line in [
            format!("# TYPE {name} histogram"),
            format!("{name}_bucket{{listener=\"l\",le=\"0.00005\"}} 1"),
            format!("{name}_bucket{{listener=\"l\",le=\"0.0005\"}} 1"),
            format!("{name}_bucket{{listener=\"l\",le=\"0.001\"}} 3"),
            format!("{name}_bucket{{listener=\"l\",le=\"3600\"}} 3"),
            format!("{name}_bucket{{listener=\"l\",le=\"+Inf\"}} 4"),
            format!("{name}_sum{{listener=\"l\"}} 7200.00124"),
            format!("{name}_count{{listener=\"l\"}} 4"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let samples = [sample(Scope::Cluster("a\"b\\c\nd".into()), "membership_total", Value::Gauge(1))];
        assert!(encode(&samples).ends_with("{cluster=\"a\\\"b\\\\c\\nd\"} 1\n"));
    }
}
