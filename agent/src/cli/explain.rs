//! `waylay explain`: what the agent would do with a connection and a request, and why; nothing is sent.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::bail;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;

use super::client::{AdminClient, Socket};
use super::output::{self, Format};
use crate::config::{self, Source};
use crate::explain::{Question, Url, explain};
use crate::listener::TrafficDirection;
use crate::server::decide;
use crate::snapshot::Runtime;
use crate::workload::Workload;

/// Show what would become of a request: listener, filter chain, every row and why, cluster, endpoint
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  waylay explain -c waylay.yaml http://10.0.0.9:8080/checkout
  waylay explain -c waylay.yaml --dst 10.0.0.9:8080 -H 'x-canary: true' http://shop.example/checkout
  waylay explain -c waylay.yaml --sni api.example.com --alpn h2 https://10.0.0.9/ -o json
  waylay explain -c waylay.yaml --inbound --source-pod shop/web-1 --source-label app=web http://10.42.0.7:8080/
  waylay explain -c waylay.yaml --pod shop/web-1 --label waylay.io/inject=true --dst 10.96.0.7:5432 http://db/
  waylay explain --pod shop/web-1 --inbound --src 10.42.0.5:4000 --dst 10.42.0.7:8080 http://web/

Nothing is sent. The matching is the agent's own code; health is not known, so that every endpoint counts as usable.")]
pub struct Args {
    /// The configuration; without, that of the running agent, from the file as it is now
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where the client connects to; by default the URL's host and port
    #[arg(long, value_name = "IP:PORT")]
    dst: Option<SocketAddr>,

    /// The client; by default loopback
    #[arg(long, value_name = "IP:PORT")]
    src: Option<SocketAddr>,

    /// The connection is TLS; so is that of an https URL
    #[arg(long)]
    tls: bool,

    /// The TLS server name; by default the host of an https URL
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,

    /// A protocol of the ALPN offer, in order; h2c without TLS is HTTP/2 by prior knowledge
    #[arg(long, value_name = "PROTOCOL")]
    alpn: Vec<String>,

    /// The connection arrives, instead of going out: to the listener with traffic_direction inbound
    #[arg(long)]
    inbound: bool,

    /// The pod that the connection comes from
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod)]
    source_pod: Option<Workload>,

    /// A label of that pod; going out, that is the one of --pod when there is no --source-pod
    #[arg(long = "source-label", value_name = "NAME=VALUE", value_parser = label)]
    source_labels: Vec<(String, String)>,

    /// The pod whose connection it is: would it be enrolled, by which rows, and the connection taken? Without --config
    /// the running agent says what its labels and annotations are
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod)]
    pod: Option<Workload>,

    /// A label of --pod
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label, requires = "pod")]
    labels: Vec<(String, String)>,

    /// An annotation of --pod
    #[arg(long = "annotation", value_name = "NAME=VALUE", value_parser = label, requires = "pod")]
    annotations: Vec<(String, String)>,

    #[command(flatten)]
    socket: Socket,

    /// The number that fractions, weights and random balancing draw with
    #[arg(long, value_name = "N", default_value_t = 0)]
    random: u64,

    /// The method
    #[arg(short = 'X', long = "request", value_name = "METHOD", default_value_t = Method::GET)]
    method: Method,

    /// A header, as 'name: value'; Host replaces the URL's
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,

    /// What is asked for, as curl takes it; a path alone needs --dst
    url: Url,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("no header: write 'name: value'")?;
    let name = name.trim().parse().map_err(|_| format!("{name:?} is no header name"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is no header value"))?;
    Ok((name, value))
}

fn pod(text: &str) -> Result<Workload, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Workload { namespace: namespace.into(), name: name.into(), ..Workload::default() })
        }
        _ => Err("no pod: write NAMESPACE/NAME, such as shop/web-1".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("no label: write NAME=VALUE, such as app=web")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Args {
    /// Prints the answer.
    ///
    /// # Errors
    /// The configuration is not valid; without one, no agent answers, or it knows nothing of the pod.
    pub fn run(self) -> anyhow::Result<()> {
        if self.source_pod.is_none() && !self.source_labels.is_empty() && (self.inbound || self.pod.is_none()) {
            wrong_usage("--source-label needs --source-pod NAMESPACE/NAME");
        }
        if self.dst.is_none() && !self.url.has_host() {
            wrong_usage("a URL without a host needs --dst IP:PORT");
        }
        if self.headers.iter().filter(|(name, _)| name == http::header::HOST).count() > 1 {
            wrong_usage("a request has one Host header");
        }
        let (config, pod) = match &self.config {
            Some(config) => (config.clone(), self.pod.clone().map(imagined)),
            None => running(&AdminClient::new(&self.socket)?, self.pod.as_ref())?,
        };
        let loaded = config::load(&Source::File(config), &Runtime::default(), 1)?;
        let output = self.output;
        let question = self.question(pod);
        let answer = explain(&loaded.snapshot, &question);
        match output {
            Format::Table => output::print(&answer.text()),
            Format::Json => output::print_json(&answer),
        }
    }

    fn question(self, pod: Option<Workload>) -> Question {
        let direction = if self.inbound { TrafficDirection::Inbound } else { TrafficDirection::Outbound };
        let pod = pod.map(|mut pod| {
            pod.labels.extend(self.labels);
            pod.annotations.extend(self.annotations);
            if self.source_pod.is_none() {
                pod.labels.extend(self.source_labels.clone());
            }
            pod
        });
        let named = self.source_pod.map(|pod| Workload { labels: self.source_labels.into_iter().collect(), ..pod });
        // What goes out comes from the pod itself.
        let source_pod = named.or_else(|| pod.clone().filter(|_| direction == TrafficDirection::Outbound));
        Question {
            url: self.url,
            dst: self.dst,
            src: self.src,
            tls: self.tls,
            sni: self.sni,
            alpn: self.alpn,
            method: self.method,
            headers: {
                let mut headers = HeaderMap::new();
                for (name, value) in self.headers {
                    headers.append(name, value);
                }
                headers
            },
            random: self.random,
            direction,
            source_pod,
            node: if pod.is_some() { decide::node_addresses() } else { Vec::new() },
            pod,
        }
    }
}

/// A pod of which only the command line tells: it is taken for one that runs, in a network namespace of its own.
fn imagined(pod: Workload) -> Workload {
    Workload { pid: Some(std::process::id()), ..pod }
}

/// The configuration of the running agent, and what it knows of the pod.
fn running(agent: &AdminClient, pod: Option<&Workload>) -> anyhow::Result<(PathBuf, Option<Workload>)> {
    let info = agent.json("/server_info")?;
    let config = info["command_line_options"]["config_path"].as_str().unwrap_or_default();
    let config = PathBuf::from(config);
    if !config.is_file() {
        bail!(
            "the running agent has its configuration from {}, which cannot be read here: give --config",
            config.display()
        );
    }
    let Some(pod) = pod else { return Ok((config, None)) };
    let pods = agent.json("/pods?format=json")?;
    let is_it = |row: &&Value| row["namespace"] == *pod.namespace && row["name"] == *pod.name;
    let row = pods["pods"].as_array().into_iter().flatten().find(is_it);
    let Some(row) = row else {
        bail!("the running agent knows of no pod {pod}: `waylay pods` lists them; with --config any may be asked for");
    };
    Ok((config, Some(told(row, pod))))
}

/// A pod as the agent tells of it.
fn told(row: &Value, pod: &Workload) -> Workload {
    let map = |field: &str| {
        let pairs = row[field].as_object().into_iter().flatten();
        pairs.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    };
    Workload {
        labels: map("labels"),
        annotations: map("annotations"),
        pid: row["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()),
        netns_path: row["netns_path"].as_str().map(PathBuf::from),
        host_network: row["host_network"] == true,
        ..pod.clone()
    }
}

/// Ends the program with status 2.
fn wrong_usage(message: &str) -> ! {
    #[derive(Parser)]
    #[command(name = "waylay explain")]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }
    Alone::command().error(ErrorKind::MissingRequiredArgument, message).exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_curl_reads_them() {
        let (name, value) = header("X-Canary:  true ").expect("header");
        assert_eq!((name.as_str(), value.as_bytes()), ("x-canary", &b"true"[..]));
        assert_eq!(header("x-time: 12:30").expect("header").1, "12:30");
        for wrong in ["x-canary", "x canary: 1", "x: a\nb"] {
            assert!(header(wrong).is_err(), "{wrong}");
        }
    }
}
