//! `waylay verify`: proves on the spot that interception works here, and names what is missing if not.
//!
//! `host` looks at the machine, `others` at who else is at the hooks, `proof` sends a connection through them.

mod host;
mod others;
mod proof;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use serde::Serialize;

use super::output::{self, Format};

pub use proof::Connect;

/// Prove that interception works here, or say which piece is missing
///
/// A program in a cgroup of its own connects to an address that nobody serves, with waylay's hooks on that cgroup, and must
/// reach a listener of this command, which must be told where the program wanted to go. Nothing else is intercepted and
/// nothing is left behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status 1 when a check has failed; a warning is none.

Examples:
  sudo waylay verify
  sudo waylay verify --to 10.96.0.1:443     the address of a service, say: it is not contacted
  sudo waylay verify -o json")]
pub struct Args {
    /// Connect to this address instead of unused ones of the loopback
    #[arg(long, value_name = "IP:PORT")]
    to: Option<SocketAddr>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It may do harm, or takes something away.
    Warning,
    /// Interception does not work like this.
    Failed,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    result: State,
    /// What was found.
    found: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, result: State::Ok, found: found.into(), mend: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, result: State::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    fn failed(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, result: State::Failed, found: found.into(), mend: Some(mend.into()) }
    }
}

impl Args {
    /// Looks, and tells.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let mut checks = host::checks();
        checks.extend(others::checks());
        checks.extend(proof::checks(self.to));
        match self.output {
            Format::Json => output::print_json(&checks)?,
            Format::Table => output::print(&human(&checks))?,
        }
        let failed = checks.iter().any(|check| check.result == State::Failed);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// An error with its causes, on one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

fn human(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { check, result, found, mend } in checks {
        let result = match result {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failed => "failed",
        };
        let _ = write!(text, "{result:<7}  {check:<width$}  {found}");
        let mend = mend.as_ref().map(|mend| format!("; {mend}"));
        let _ = writeln!(text, "{}", mend.unwrap_or_default());
    }
    let failed = checks.iter().filter(|check| check.result == State::Failed).count();
    text.push_str(match failed {
        0 => "waylay can intercept here\n",
        _ => "waylay cannot intercept here as it is\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_a_line_and_says_how_to_mend_it() {
        let checks = [Check::ok("kernel", "Linux 6.18"), Check::failed("btf", "missing", "build it")];
        assert_eq!(
            human(&checks),
            "ok       kernel  Linux 6.18\nfailed   btf     missing; build it\nwaylay cannot intercept here as it is\n"
        );
        assert!(human(&checks[..1]).ends_with("waylay can intercept here\n"));
        let json = serde_json::to_value(&checks[1]).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!({"check": "btf", "result": "failed", "found": "missing", "mend": "build it"})
        );
    }
}
