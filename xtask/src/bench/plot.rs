//! Plots of a run: bars beside each other, waylay's in a colour of its own, as SVG that suits light and dark pages.

use std::fmt::Write as _;

use super::{
    report::number,
    results::{Results, metric},
    stats::Spread,
};

/// One file: a title, and panels of bars side by side.
#[derive(Debug)]
struct Plot {
    name: &'static str,
    title: &'static str,
    /// Case, metric, title.
    panels: &'static [(&'static str, &'static str, &'static str)],
}

const PLOTS: &[Plot] = &[
    Plot {
        name: "requests",
        title: "Requests per second, 32 connections (more is better)",
        panels: &[
            ("h1-keepalive-32", metric::PER_SECOND, "HTTP/1.1, keepalive"),
            ("h1-new-32", metric::PER_SECOND, "HTTP/1.1, a new connection each"),
        ],
    },
    Plot {
        name: "cpu",
        title: "Proxy CPU per request, µs (less is better)",
        panels: &[
            ("h1-keepalive-32", metric::PROXY_US, "HTTP/1.1, keepalive"),
            ("h2-4x16", metric::PROXY_US, "HTTP/2, 4 connections of 16 streams"),
        ],
    },
    Plot {
        name: "latency",
        title: "Latency at 4,000 requests per second, µs (less is better)",
        panels: &[("rate-4000", metric::P50_US, "median"), ("rate-4000", metric::P99_US, "99th percentile")],
    },
    Plot {
        name: "bytes",
        title: "Bytes through L4, GB/s (more is better)",
        panels: &[
            ("l4-bytes-1", metric::GB_PER_SECOND, "1 stream"),
            ("l4-bytes-4", metric::GB_PER_SECOND, "4 streams"),
        ],
    },
    Plot {
        name: "connections",
        title: "New connections through L4 (per second: more is better), and one connect() (µs: less is better)",
        panels: &[
            ("l4-new-32", metric::PER_SECOND, "connections per second"),
            ("connect", metric::CONNECT_US, "one connect(), µs"),
        ],
    },
    Plot {
        name: "memory",
        title: "Memory per idle connection, KB (less is better)",
        panels: &[
            ("idle-l4-9000", metric::KB_PER_CONNECTION, "L4"),
            ("idle-l7-9000", metric::KB_PER_CONNECTION, "L7, keepalive after one request"),
        ],
    },
];

const PANEL_WIDTH: f64 = 450.0;
const LABEL_WIDTH: f64 = 150.0;
/// From a bar's end to the panel's: the number stands there.
const NUMBER_WIDTH: f64 = 70.0;
const HEAD: f64 = 84.0;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
const FOOT: f64 = 18.0;

const STYLE: &str = "
  text { font: 13px ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #334155 }
  .title { font-size: 16px; font-weight: 600; fill: #0f172a }
  .panel { font-weight: 600 }
  .number { font-variant-numeric: tabular-nums; fill: #475569 }
  .page { fill: #ffffff } .rail { fill: #f1f5f9 }
  .waylay { fill: #0d9488 } .peer { fill: #94a3b8 } .iptables { fill: #b9a58f } .direct { fill: #cbd5e1 }
  .spread { stroke: #0f172a; stroke-opacity: .55; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #cbd5e1 } .title { fill: #f8fafc } .number { fill: #94a3b8 }
    .page { fill: #0d1117 } .rail { fill: #161b22 }
    .waylay { fill: #2dd4bf } .peer { fill: #64748b } .iptables { fill: #8a7a68 } .direct { fill: #475569 }
    .spread { stroke: #f8fafc }
  }
";

/// Names and texts of all plots for which something was measured.
pub fn all(results: &Results) -> Vec<(String, String)> {
    PLOTS.iter().filter_map(|plot| Some((plot.name.to_owned(), draw(plot, results)?))).collect()
}

#[derive(Debug)]
struct Bar<'a> {
    label: &'a str,
    value: Spread,
}

fn draw(plot: &Plot, results: &Results) -> Option<String> {
    let panels: Vec<_> = plot
        .panels
        .iter()
        .map(|(case, metric, title)| (*title, bars(results, case, metric)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let rows = panels.iter().map(|(_, bars)| bars.len()).max()?;
    let (width, height) = (PANEL_WIDTH * panels.len() as f64 + 20.0, HEAD + rows as f64 * ROW + FOOT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>\n\
         <text class=\"title\" x=\"20\" y=\"32\">{title}</text>\n",
        title = escaped(plot.title)
    );
    for (index, (title, bars)) in panels.iter().enumerate() {
        panel(&mut svg, PANEL_WIDTH * index as f64 + 10.0, title, bars);
    }
    Some(svg + "</svg>\n")
}

fn panel(svg: &mut String, left: f64, title: &str, bars: &[Bar<'_>]) {
    let largest = bars.iter().map(|bar| bar.value.max).fold(f64::MIN_POSITIVE, f64::max);
    let room = PANEL_WIDTH - LABEL_WIDTH - NUMBER_WIDTH - 20.0;
    let scale = |value: f64| (value / largest * room).max(0.0);
    let start = left + LABEL_WIDTH;
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "<text class=\"panel\" x=\"{start:.1}\" y=\"62\">{}</text>", escaped(title));
    for (index, bar) in bars.iter().enumerate() {
        let top = HEAD - 8.0 + index as f64 * ROW;
        let (middle, base) = (top + BAR / 2.0, top + BAR - 3.5);
        let (from, to) = (start + scale(bar.value.min), start + scale(bar.value.max));
        let _ = writeln!(
            svg,
            "<text text-anchor=\"end\" x=\"{:.1}\" y=\"{base:.1}\">{}</text>\n\
             <rect class=\"rail\" x=\"{start:.1}\" y=\"{top:.1}\" width=\"{room:.1}\" height=\"{BAR}\" rx=\"3\"/>\n\
             <rect class=\"{}\" x=\"{start:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"3\"/>\n\
             <line class=\"spread\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\n\
             <text class=\"number\" x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
            start - 8.0,
            escaped(bar.label),
            class(bar.label),
            scale(bar.value.median).max(1.0),
            start + room + 8.0,
            number(bar.value.median),
        );
    }
}

fn bars<'a>(results: &'a Results, case: &str, metric: &str) -> Vec<Bar<'a>> {
    // A quick run has a thousand idle connections only.
    let case = if results.cases().contains(&case) { case.to_owned() } else { case.replace("9000", "1000") };
    let systems = results.samples.iter().filter(|sample| sample.case == case).map(|sample| sample.system.as_str());
    let mut bars: Vec<Bar<'a>> = Vec::new();
    for label in systems {
        if !bars.iter().any(|bar| bar.label == label)
            && let Some(value) = results.spread(&case, label, metric)
        {
            bars.push(Bar { label, value });
        }
    }
    bars
}

fn class(label: &str) -> &'static str {
    match label {
        "direct" => "direct",
        label if label.starts_with("waylay") => "waylay",
        label if label.ends_with("iptables") || label == "conntrack" => "iptables",
        _ => "peer",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_bar_for_each_system_and_none_without_numbers() {
        let mut results = Results::default();
        assert!(all(&results).is_empty());
        for (system, value) in [("direct", 90.0), ("waylay", 80.0), ("nginx", 70.0)] {
            results.push("h1-keepalive-32", system, 0, &[(metric::PER_SECOND, value)]);
        }
        let plots = all(&results);
        assert_eq!(plots.len(), 1);
        let (name, svg) = &plots[0];
        assert_eq!(name, "requests");
        for class in ["direct", "waylay", "peer"] {
            assert_eq!(svg.matches(&format!("<rect class=\"{class}\"")).count(), 1, "{svg}");
        }
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }
}
