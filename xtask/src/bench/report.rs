//! Tables of a run in Markdown: first the promises with the ratio beside each, then everything.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::{
    results::{Results, metric},
    stats::Spread,
    targets::TARGETS,
};

/// Plots that the README shows.
const SHORT: [&str; 2] = ["requests", "cpu"];
/// In `docs/benchmarks.md` and in the README, what a run writes stands between these.
const BEGIN: &str = "<!-- measured: written by `cargo xtask bench --publish` -->";
const END: &str = "<!-- end of measured -->";

/// The promises: target, what was measured, whether it is met.
pub fn targets_table(results: &Results) -> String {
    let mut text = "| work | compared | target | measured (min - max) | met |\n|---|---|---|---|---|\n".to_owned();
    for target in TARGETS {
        let (measured, met) = match target.measured(results) {
            Some(spread) => {
                let met = if target.bound.holds(spread.median) { "yes" } else { "**no**" };
                (format!("{}{} ({})", number(spread.median), target.unit, extremes(spread)), met)
            }
            None => (target.absent().unwrap_or("not measured").to_owned(), "-"),
        };
        let bound = target.bound.shown(target.unit);
        row(&mut text, &[target.work, target.compared, &bound, &measured, met]);
    }
    text
}

fn extremes(spread: Spread) -> String {
    format!("{} - {}", number(spread.min), number(spread.max))
}

/// Three digits that say something.
pub fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        large if large >= 1.0 || large == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn row(text: &mut String, cells: &[&str]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// Everything: the machine, the promises, one table for each case, what was skipped, what was run.
pub fn whole(results: &Results) -> String {
    let mut text = machine(results);
    text += "\n## Targets\n\nRatios are medians of ratios within each round.\n\n";
    text += &targets_table(results);
    text += "\n## All measurements\n\nMedians, with the smallest and the largest round.\n";
    for case in results.cases() {
        text += &case_table(results, case);
    }
    text += &list(
        "\n## Not measured\n\n",
        results.skipped.iter().map(|skipped| format!("{}: {}", skipped.what, skipped.why)),
    );
    text += &list("\n## What load generators complained of\n\n", results.complaints().into_iter());
    text += &list("\n## Commands\n\n", results.commands.iter().map(|(name, line)| format!("{name}: `{line}`")));
    text
}

fn list(title: &str, lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("- {line}\n")).collect();
    if lines.is_empty() { lines } else { format!("{title}{lines}") }
}

fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let versions: Vec<_> = machine.versions.iter().map(|(name, version)| format!("{name}: {version}")).collect();
    format!(
        "Measured {} ({} run) on {}, {} CPUs ({}), {} MB of memory; {}; each proxy with one worker, in a network namespace \
         with loopback only.\n\n{}\n",
        machine.time,
        machine.plan,
        machine.kernel,
        machine.cpus,
        machine.cpu,
        machine.memory_mb,
        machine.pinning,
        versions.join("; ")
    )
}

/// What a metric is called in a table's head.
pub fn title(name: &str) -> &str {
    match name {
        metric::PER_SECOND => "per second",
        metric::PROXY_US => "proxy CPU µs each",
        metric::SYSTEM_US => "system CPU µs each",
        metric::GB_PER_SECOND => "GB/s",
        metric::PROXY_S_PER_GB => "proxy CPU s/GB",
        metric::SYSTEM_S_PER_GB => "system CPU s/GB",
        metric::P50_US => "p50 µs",
        metric::P99_US => "p99 µs",
        metric::P999_US => "p99.9 µs",
        metric::CONNECT_US => "connect() µs",
        metric::RSS_MB => "process MB",
        metric::KB_PER_CONNECTION => "KB each",
        metric::KB_PER_POD => "KB a pod",
        metric::READY_MS => "ready after ms",
        metric::RELOAD_MS => "reload ms",
        metric::ENROL_MS => "all enrolled after ms",
        other => other,
    }
}

fn case_table(results: &Results, case: &str) -> String {
    let metrics = results.metrics(case);
    let mut text = format!("\n### {case}\n\n");
    let titles: Vec<_> = metrics.iter().map(|metric| title(metric)).collect();
    row(&mut text, &[&[""], titles.as_slice()].concat());
    row(&mut text, &vec!["---"; metrics.len() + 1]);
    for system in results.systems(case) {
        let cells = metrics.iter().map(|metric| match results.spread(case, system, metric) {
            Some(spread) if spread.min == spread.max => number(spread.median),
            Some(spread) => format!("{} ({})", number(spread.median), extremes(spread)),
            None => String::new(),
        });
        let cells: Vec<_> = std::iter::once(system.to_owned()).chain(cells).collect();
        row(&mut text, &cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

/// `docs/benchmarks.md` with what a run measured in place of what an earlier one did.
pub fn published(page: &str, results: &Results, images: &[String]) -> Result<String> {
    let plots: String = images.iter().map(|name| format!("![{name}](benchmarks/{name}.svg)\n\n")).collect();
    let measured = whole(results);
    // The plots stand after the promises.
    let (top, tables) = measured.split_once("\n## All measurements").unwrap_or((&measured, ""));
    replaced(page, &format!("{top}\n## Plots\n\n{plots}## All measurements{tables}"))
}

/// The README with the promises and the plots that say most.
pub fn in_short(readme: &str, results: &Results, images: &[String]) -> Result<String> {
    let plots = SHORT.iter().filter(|name| images.iter().any(|image| image == *name));
    let plots: String = plots.map(|name| format!("![{name}](docs/benchmarks/{name}.svg)\n\n")).collect();
    let machine = &results.machine;
    let table = targets_table(results);
    let told = format!(
        "{plots}Measured on {}, {} CPUs, {}; {}.\n\n{table}",
        machine.kernel, machine.cpus, machine.time, machine.pinning
    );
    replaced(readme, &told)
}

/// Puts `measured` between the marks of a page.
fn replaced(page: &str, measured: &str) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("it lacks the line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("it lacks the line {END}"))?;
    Ok(format!("{before}{BEGIN}\n\n{measured}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Results {
        let mut results = Results::default();
        for (round, us) in [(0, 10.0), (1, 12.0)] {
            results.push("h1-keepalive-32", "waylay", round, &[(metric::PROXY_US, us)]);
            results.push("h1-keepalive-32", "nginx", round, &[(metric::PROXY_US, 12.5)]);
        }
        results.skip("pingora", "not built");
        results
    }

    #[test]
    fn a_promise_stands_beside_its_ratio() {
        let table = targets_table(&example());
        let line = table.lines().find(|line| line.contains("of nginx's")).expect("the row");
        assert_eq!(
            line,
            "| HTTP/1.1 keepalive, 32 connections, CPU per request | of nginx's | ≤ 1.00 | 0.880 (0.800 - 0.960) | yes |"
        );
        assert!(table.contains("not measured"), "{table}");
    }

    #[test]
    fn a_page_keeps_what_stands_around_the_measured_part() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = published(&page, &example(), &["cpu".to_owned()]).expect("a page");
        assert!(once.starts_with("before\n") && once.ends_with("\nafter\n") && !once.contains("old"), "{once}");
        assert!(once.contains("](benchmarks/cpu.svg)") && once.contains("- pingora: not built"), "{once}");
        assert_eq!(published(&once, &example(), &["cpu".to_owned()]).expect("a page"), once);
        assert!(published("no markers", &example(), &[]).is_err());
    }

    #[test]
    fn numbers_have_three_digits() {
        let cases =
            [(84_123.0, "84.1k"), (812.4, "812"), (12.44, "12.4"), (2.5, "2.50"), (0.15, "0.150"), (0.0, "0.00")];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }
}
