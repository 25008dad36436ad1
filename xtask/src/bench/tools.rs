//! wrk, h2load and iperf3: how they are asked and what they answer.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// How much longer than it measures a load generator may take.
pub const SLACK: Duration = Duration::from_secs(15);

/// What a load generator counted.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Counted {
    /// Requests, or GB.
    pub units: f64,
    pub per_second: f64,
    pub errors: Option<String>,
}

/// wrk's report.
pub fn wrk(text: &str) -> Result<Counted> {
    let line = text.lines().find(|line| line.contains(" requests in ")).context("wrk counted nothing")?;
    let units =
        line.split_whitespace().next().and_then(|number| number.parse().ok()).context("no number of requests")?;
    let errors: Vec<_> = text.lines().map(str::trim).filter(|line| is_complaint(line)).collect();
    let errors = (!errors.is_empty()).then(|| errors.join("; "));
    Ok(Counted { units, per_second: after(text, "Requests/sec:").context("no Requests/sec")?, errors })
}

/// Timeouts at the end of a run are of requests that the end cut off.
fn is_complaint(line: &str) -> bool {
    let of_sockets = line.starts_with("Socket errors:") && !line.contains("connect 0, read 0, write 0");
    of_sockets || line.starts_with("Non-2xx")
}

/// h2load's report.
pub fn h2load(text: &str) -> Result<Counted> {
    // requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout
    let line = text.lines().find_map(|line| line.strip_prefix("requests:")).context("h2load counted nothing")?;
    let count = |word: &str| -> Option<f64> {
        line.split(',').find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
    };
    let units = count("succeeded").context("no number of requests")?;
    let finished = text.lines().find(|line| line.starts_with("finished in")).context("no rate")?;
    let rate = finished.split(',').find_map(|part| part.trim().strip_suffix(" req/s")?.parse().ok());
    let failed = count("failed").unwrap_or(0.0) + count("errored").unwrap_or(0.0);
    let errors = (failed > 0.0).then(|| format!("{failed} requests failed"));
    Ok(Counted { units, per_second: rate.context("no rate")?, errors })
}

/// iperf3's JSON report: what arrived, in GB.
pub fn iperf3(text: &str) -> Result<Counted> {
    let report: serde_json::Value = serde_json::from_str(text).context("iperf3 wrote no JSON")?;
    let received = &report["end"]["sum_received"];
    let number = |name: &str| received[name].as_f64().with_context(|| format!("iperf3: {}", report["error"]));
    let (bytes, seconds) = (number("bytes")?, number("seconds")?);
    Ok(Counted { units: bytes / 1e9, per_second: bytes / 1e9 / seconds.max(1e-9), errors: None })
}

fn after(text: &str, word: &str) -> Option<f64> {
    text.split_once(word)?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let report = "  2 threads\n  1600 requests in 2.00s, 20MB read\n  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec:    800.5\n";
        let counted = wrk(report).expect("a report");
        assert_eq!((counted.units, counted.per_second), (1600.0, 800.5));
        assert!(counted.errors.expect("read errors").contains("read 3"));

        let report = "finished in 1.00s, 5000.25 req/s, 1MB/s\nrequests: 10 total, 10 started, 9 done, 8 succeeded, 1 failed, 1 errored, 0 timeout\n";
        let counted = h2load(report).expect("a report");
        assert_eq!((counted.units, counted.per_second), (8.0, 5000.25));
        assert_eq!(counted.errors.as_deref(), Some("2 requests failed"));

        let report = r#"{"end": {"sum_received": {"bytes": 3000000000, "seconds": 2.0}}}"#;
        assert_eq!(iperf3(report).expect("a report"), Counted { units: 3.0, per_second: 1.5, errors: None });
        assert!(iperf3(r#"{"error": "refused"}"#).is_err());
        assert!(wrk("unable to connect").is_err());
    }
}
