//! `waylay proxy-config`: what the running agent holds, in the columns of `istioctl proxy-config`.
//!
//! It reads Envoy's dumps, the agent's or those of a file, and knows nothing of the agent's own types: a dump of a real
//! Envoy prints the same way.

mod cluster;
mod dump;
mod endpoint;
mod listener;
mod route;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use serde_json::Value;

use super::client::{AdminClient, Socket};
use super::output;
use super::table::Table;

/// Show what the running agent holds: listeners, routes, clusters, endpoints
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  waylay proxy-config listener --port 8080
  waylay pc route --name 8080 -o wide      # with headers, row numbers and hits
  waylay pc cluster --fqdn httpbin
  waylay pc endpoint --status unhealthy
  waylay pc listener --file dump.json      # a saved /config_dump, of waylay or of Envoy")]
pub struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Listeners and their filter chains
    #[command(visible_aliases = ["listeners", "l"])]
    Listener(listener::Args),
    /// Route tables, row by row
    #[command(visible_aliases = ["routes", "r"])]
    Route(route::Args),
    /// Clusters
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster(cluster::Args),
    /// Endpoints and their health
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint(endpoint::Args),
}

/// What all kinds have in common.
#[derive(Debug, clap::Args)]
struct Common {
    /// How to print: a table in istioctl's columns, the same with more columns, or the resources themselves
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    /// Read this dump instead of asking the agent
    #[arg(short, long, value_name = "DUMP")]
    file: Option<PathBuf>,

    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// istioctl's columns
    #[default]
    #[value(alias = "short")]
    Table,
    /// istioctl's columns and more
    Wide,
    /// The resources as JSON
    Json,
}

impl Common {
    /// The dump: from the file, or else the agent's page.
    fn dump(&self, page: &str) -> anyhow::Result<Value> {
        match &self.file {
            Some(file) => read(file),
            None => AdminClient::new(&self.socket)?.json(page),
        }
    }

    /// Prints `resources` as the format wants it; `table` makes the table.
    fn print(&self, resources: &[Value], table: impl FnOnce(Columns) -> Table) -> anyhow::Result<()> {
        match self.output {
            Format::Table => output::print(&table(Columns::Istioctl).text()),
            Format::Wide => output::print(&table(Columns::All).text()),
            Format::Json => output::print_json(&resources),
        }
    }
}

/// Which columns a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Columns {
    /// Those of `istioctl`.
    Istioctl,
    /// And ours.
    All,
}

fn read(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON dump", file.display()))
}

impl Args {
    /// Prints it.
    ///
    /// # Errors
    /// No agent answers, or the dump cannot be read.
    pub fn run(&self) -> anyhow::Result<()> {
        match &self.kind {
            Kind::Listener(args) => args.run(),
            Kind::Route(args) => args.run(),
            Kind::Cluster(args) => args.run(),
            Kind::Endpoint(args) => args.run(),
        }
    }
}
