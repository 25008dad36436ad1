//! `waylay check`: whether a configuration is valid, and what in it can never be reached.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::output::{self, Format};
use crate::config::{self, Diagnostic, Loaded, Source};
use crate::lint::{Kind, Severity, lint};
use crate::snapshot::{Runtime, Snapshot};

/// Validate a configuration; find rows, virtual hosts and filter chains that nothing can reach
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Errors go to standard error, with status 1. Warnings and notes go to standard output, with status 0.

A row is called shadowed only when it is proven that an earlier row takes every request it matches."
)]
pub struct Args {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,

    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    valid: bool,
    file: String,
    errors: Vec<Diagnostic>,
    findings: Vec<Finding>,
    counts: Option<Counts>,
}

/// One thing that is valid and probably not meant.
#[derive(Debug, Serialize)]
struct Finding {
    severity: Severity,
    /// What it is, when the lint found it.
    kind: Option<Kind>,
    #[serde(flatten)]
    at: Diagnostic,
    /// The field that causes it.
    other: Option<String>,
}

/// How much there is.
#[derive(Debug, Serialize)]
struct Counts {
    listeners: usize,
    route_configs: usize,
    virtual_hosts: usize,
    routes: usize,
    clusters: usize,
}

impl Args {
    /// Prints what is wrong, or that all is well.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let source = Source::File(self.config);
        let file = source.name();
        let report = match config::load(&source, &Runtime::default(), 1) {
            Ok(loaded) => Report {
                valid: true,
                errors: Vec::new(),
                findings: findings(&file, &loaded),
                counts: Some(Counts::of(&loaded.snapshot)),
                file,
            },
            Err(errors) => {
                eprintln!("{errors}");
                Report { valid: false, file, errors: errors.diagnostics().to_vec(), findings: Vec::new(), counts: None }
            }
        };
        match self.output {
            Format::Json => output::print_json(&report)?,
            Format::Table => output::print(&report.text())?,
        }
        Ok(if report.valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What is probably not meant so, as [`findings`], without the notes.
pub(super) fn warnings(file: &str, loaded: &Loaded) -> impl Iterator<Item = Diagnostic> {
    let warning = |finding: &Finding| finding.severity == Severity::Warning;
    findings(file, loaded).into_iter().filter(warning).map(|finding| finding.at)
}

/// What the loader and the lint found, in the order of the file.
fn findings(file: &str, loaded: &Loaded) -> Vec<Finding> {
    let warning = |at: &Diagnostic| Finding { severity: Severity::Warning, kind: None, at: at.clone(), other: None };
    let mut all: Vec<_> = loaded.warnings.iter().map(warning).collect();
    all.extend(lint(&loaded.snapshot).into_iter().map(|finding| {
        let position = loaded.positions.nearest(&finding.path);
        Finding {
            severity: finding.kind.severity(),
            kind: Some(finding.kind),
            at: Diagnostic {
                file: file.to_owned(),
                line: position.line,
                column: position.column,
                path: finding.path,
                message: finding.message,
            },
            other: finding.other,
        }
    }));
    all.sort_by_key(|finding| (finding.at.line, finding.at.column));
    all
}

impl Counts {
    fn of(snapshot: &Snapshot) -> Self {
        let hosts = || snapshot.route_configs.values().flat_map(|config| &config.virtual_hosts);
        Self {
            listeners: snapshot.listeners.iter().count(),
            route_configs: snapshot.route_configs.len(),
            virtual_hosts: hosts().count(),
            routes: hosts().map(|host| host.routes.len()).sum(),
            clusters: snapshot.clusters.len(),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        for Finding { severity, at, .. } in &self.findings {
            let severity = match severity {
                Severity::Warning => "warning",
                Severity::Info => "note",
            };
            let path = if at.path.is_empty() { String::new() } else { format!("{}: ", at.path) };
            let Diagnostic { file, line, column, message, .. } = at;
            text.push_str(&format!("{file}:{line}:{column}: {severity}: {path}{message}\n"));
        }
        if let Some(counts) = &self.counts {
            let warnings = self.findings.iter().filter(|finding| finding.severity == Severity::Warning).count();
            let parts = [
                several(counts.listeners, "listener"),
                several(counts.route_configs, "route config"),
                several(counts.virtual_hosts, "virtual host"),
                several(counts.routes, "route"),
                several(counts.clusters, "cluster"),
                several(warnings, "warning"),
            ];
            text.push_str(&format!("{}: ok: {}\n", self.file, parts.join(", ")));
        }
        text
    }
}

fn several(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_stand_at_their_place_in_the_file_before_the_summary() {
        let text = "listeners:
  - name: l
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {http: {route_config: r}}
route_configs:
  - name: r
    virtual_hosts:
      - name: h
        domains: ['*']
        routes:
          - {match: {prefix: /}, route: {cluster: c}}
          - {match: {prefix: /x}, route: {cluster: c}}
clusters: [{name: c, type: original_dst}, {name: spare, type: original_dst}]
";
        let source = Source::Inline { name: "w.yaml".to_owned(), text: text.to_owned() };
        let loaded = config::load(&source, &Runtime::default(), 1).expect("valid");
        let report = Report {
            valid: true,
            file: "w.yaml".to_owned(),
            errors: Vec::new(),
            findings: findings("w.yaml", &loaded),
            counts: Some(Counts::of(&loaded.snapshot)),
        };
        assert_eq!(
            report.text(),
            "w.yaml:13:13: warning: route_configs[0].virtual_hosts[0].routes[1]: row 1 (prefix /x) is shadowed by row 0 \
             (prefix /)\n\
             w.yaml:14:43: note: clusters[\"spare\"]: cluster 'spare' is used by no filter chain and no route\n\
             w.yaml: ok: 1 listener, 1 route config, 1 virtual host, 2 routes, 2 clusters, 1 warning\n"
        );
    }
}
