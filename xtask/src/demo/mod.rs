//! `cargo xtask demo`: one request, three orderings of the same routes, then the same connection as bytes and as requests.
//!
//! This file is the story; [`stage`] holds what it is played on (agent, cgroup, curl), [`origin`] the servers, and
//! [`config`] writes the files. Every claim the text makes is checked against what came back.

mod config;
mod origin;
mod stage;

use anyhow::{Result, bail, ensure};

use self::{config::Ordering, origin::Origin, stage::Stage};
use crate::{setup, shell};

/// Nobody serves this address: an answer proves that the connection was taken on its way.
const SHOP: &str = "http://127.77.0.1:8080";
const CANARY: &str = "x-canary: true";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Set up and built already: what is left needs root
    #[arg(long, hide = true)]
    prepared: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.prepared {
        setup::bring(setup::Purpose::Demo)?;
        shell::step("cargo build", || shell::run(shell::cargo().args(["build", "--quiet", "--package", "waylay"])))?;
    }
    if !shell::is_root() {
        println!("Taking connections in the kernel needs root: going on through sudo.\n");
        return shell::run(shell::as_root(std::env::current_exe()?)?.args(["demo", "--prepared"]));
    }
    let origins = Origins::start()?;
    let stage = Stage::build()?;
    let result = play(&stage, &origins);
    stage.clear();
    result
}

/// The three programs that the shop consists of.
#[derive(Debug)]
pub struct Origins {
    default_svc: Origin,
    checkout_v1: Origin,
    checkout_v2: Origin,
}

impl Origins {
    fn start() -> Result<Self> {
        Ok(Self {
            default_svc: Origin::start("default-svc")?,
            checkout_v1: Origin::start("checkout-v1")?,
            checkout_v2: Origin::start("checkout-v2")?,
        })
    }

    fn all(&self) -> [&Origin; 3] {
        [&self.default_svc, &self.checkout_v1, &self.checkout_v2]
    }
}

fn play(stage: &Stage, origins: &Origins) -> Result<()> {
    introduce(stage, origins)?;
    for ordering in Ordering::ALL {
        show_ordering(stage, origins, *ordering)?;
    }
    show_bytes(stage, origins)?;
    show_requests(stage, origins)?;
    println!(
        "\nThat was all. Everything the demo attached is gone with it; its files are in {}.",
        stage.folder().display()
    );
    Ok(())
}

fn introduce(stage: &Stage, origins: &Origins) -> Result<()> {
    heading("The scene");
    println!("Three small origins stand for the services of a shop:");
    for origin in origins.all() {
        println!("  {:<12} {}", origin.name(), origin.address());
    }
    println!(
        "\ncurl knows none of them. It asks for {SHOP}, an address that nobody serves,\n\
         and without waylay it gets nowhere:\n"
    );
    let answer = stage.curl_outside(&["/checkout/cart"])?;
    ensure!(!answer.success, "something does serve {SHOP}: {}", answer.text);
    println!("{}", indented(&answer.text));
    println!(
        "\nFrom here on curl runs in a cgroup of its own, {}.\n\
         waylay takes the connections of that cgroup in the kernel, at connect(2), and of no other.\n\
         No iptables rule, no proxy variable, no change to curl.",
        stage.cgroup().display()
    );
    Ok(())
}

fn show_ordering(stage: &Stage, origins: &Origins, ordering: Ordering) -> Result<()> {
    heading(ordering.title());
    println!("Routes are tried from the top; the first that matches wins:\n");
    for (index, row) in ordering.rows().iter().enumerate() {
        println!("  row {index}: {}", row.shown());
    }
    let file = stage.write_config(ordering.file_name(), &config::http(stage, origins, ordering))?;
    println!("\nwaylay explain, which sends nothing and decides with the agent's own code:\n");
    let url = format!("{SHOP}/checkout/cart");
    println!("{}", indented(&stage.explain(&file, &["-H", CANARY, &url])?));

    let agent = stage.start_agent(&file)?;
    println!("\nwaylay run, and the real request:\n");
    let answer = stage.curl(&["/checkout/cart"])?;
    println!("{}", indented(&answer.text));
    println!("\nIts access record:\n");
    println!("{}", indented(&agent.records(1)?));
    agent.stop()?;
    let landed = ordering.lands_on();
    ensure!(
        answer.success && answer.text.contains(&format!("{landed} answers")),
        "this should have landed on {landed}"
    );
    println!("\nSo it lands on {landed}: {}", ordering.why());
    Ok(())
}

/// Two requests on one connection, each way.
const TWO_REQUESTS: &[&str] = &["/checkout/cart", "/account"];

fn show_bytes(stage: &Stage, origins: &Origins) -> Result<()> {
    heading("The same connection as bytes (L4)");
    println!(
        "The listener now has a tcp_proxy. One curl sends two requests on one connection,\n\
         {} and {}:\n",
        TWO_REQUESTS[0], TWO_REQUESTS[1]
    );
    let file = stage.write_config("l4-bytes.yaml", &config::tcp(stage, origins))?;
    let agent = stage.start_agent(&file)?;
    let answer = stage.curl(TWO_REQUESTS)?;
    println!("{}", indented(&answer.text));
    println!("\nIts access record, one for the connection:\n");
    println!("{}", indented(&agent.records(1)?));
    agent.stop()?;
    ensure!(
        answer.success && answer.text.matches("default-svc answers").count() == 2,
        "both requests should have gone to default-svc"
    );
    println!(
        "\nL4 sees: where the connection was going, who opened it, how many bytes went each way, how long it took.\n\
         L4 cannot see: methods, paths, headers, status codes. The x-canary header passed as bytes like any other, so\n\
         both requests went to one place. It costs least, and it carries every protocol, also encrypted ones."
    );
    Ok(())
}

fn show_requests(stage: &Stage, origins: &Origins) -> Result<()> {
    heading("The same connection as requests (L7)");
    println!("The listener has HTTP routes again (prefix on top). The same curl:\n");
    let ordering = Ordering::Prefix;
    let file = stage.write_config("l7-requests.yaml", &config::http(stage, origins, ordering))?;
    let agent = stage.start_agent(&file)?;
    let answer = stage.curl(TWO_REQUESTS)?;
    println!("{}", indented(&answer.text));
    println!("\nIts access records, one for each request:\n");
    println!("{}", indented(&agent.records(TWO_REQUESTS.len())?));
    agent.stop()?;
    let (cart, account) = (answer.text.contains("checkout-v1 answers"), answer.text.contains("checkout-v2 answers"));
    if !(answer.success && cart && account) {
        bail!("/checkout/cart should have gone to checkout-v1 and /account to checkout-v2");
    }
    println!(
        "\nL7 sees each request: method, path, headers, status, time. Two requests of one connection went to two\n\
         services: /checkout/cart by its prefix, /account by its header. It cannot look into TLS that it does not\n\
         terminate, and it takes more work for each byte."
    );
    Ok(())
}

fn heading(text: &str) {
    println!("\n{text}\n{}\n", "=".repeat(text.len()));
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
