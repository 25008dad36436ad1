//! The command line: one file a verb.
//!
//! Data goes to standard output, messages to standard error. Exit status: 0 for success, 1 for failure, 2 for wrong
//! usage; `exec` ends with the status of its command.

mod check;
mod client;
mod cni;
mod completion;
mod detach;
mod enter;
mod exec;
mod explain;
mod local;
mod man;
mod maps;
mod output;
mod pods;
mod proxy_config;
mod run;
mod start;
mod table;
mod trace;
mod verify;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::OutputClosed;

/// Takes the connections of unmodified programs in the kernel and routes them as an Envoy sidecar would
#[derive(Debug, Parser)]
#[command(
    name = "waylay",
    version,
    after_help = "Examples:
  sudo waylay run -c waylay.yaml
  sudo waylay exec --route '/checkout => 127.0.0.1:9001' -- curl http://shop.example/checkout
  waylay explain -c waylay.yaml -H 'x-canary: true' http://10.0.0.9:8080/checkout
  sudo waylay proxy-config route -o wide

Exit status: 0 success, 1 failure, 2 wrong usage."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    Exec(exec::Args),
    Check(check::Args),
    Explain(Box<explain::Args>),
    #[command(visible_alias = "pc")]
    ProxyConfig(proxy_config::Args),
    Pods(pods::Args),
    Maps(maps::Args),
    Trace(trace::Args),
    Detach(detach::Args),
    Cni(cni::Args),
    Verify(verify::Args),
    Completion(completion::Args),
    Man(man::Args),
    #[command(name = "__enter", hide = true)]
    Enter(enter::Args),
    #[command(name = "__connect", hide = true)]
    Connect(verify::Connect),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    // Container runtimes run a plugin by its file's name.
    let argv0 = std::env::args_os().next();
    if argv0.is_some_and(|argv0| crate::cni::is_plugin_name(Path::new(&argv0))) {
        return ended(cni::plugin());
    }
    ended(match Cli::parse().verb {
        Verb::Run(args) => succeeded(args.run()),
        Verb::Exec(args) => args.run(),
        Verb::Check(args) => args.run(),
        Verb::Explain(args) => succeeded(args.run()),
        Verb::ProxyConfig(args) => succeeded(args.run()),
        Verb::Pods(args) => succeeded(args.run()),
        Verb::Maps(args) => succeeded(args.run()),
        Verb::Trace(args) => succeeded(args.run()),
        Verb::Detach(args) => args.run(),
        Verb::Cni(args) => args.run(),
        Verb::Verify(args) => args.run(),
        Verb::Completion(args) => succeeded(args.run()),
        Verb::Man(args) => succeeded(args.run()),
        Verb::Enter(args) => args.run(),
        Verb::Connect(args) => succeeded(args.run()),
    })
}

fn ended(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        if error.is::<OutputClosed>() {
            return ExitCode::SUCCESS;
        }
        // The chain of causes; errors that come one a line stay so.
        eprintln!("waylay: {error:#}");
        ExitCode::FAILURE
    })
}

fn succeeded(done: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    done.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_aliases_of_istioctl_work() {
        for line in ["waylay pc listeners", "waylay proxy-config ep --status healthy", "waylay pc r --name 80 -o json"]
        {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        let usage = Cli::try_parse_from(["waylay", "exec", "--route", "nonsense", "--", "true"]).expect_err("usage");
        assert_eq!(usage.exit_code(), 2);
    }
}
