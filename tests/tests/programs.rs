//! Real clients with their real servers.

use std::path::{Path, PathBuf};
use std::process::Command;

use waylay_tests::config::{BYTES, SHOP};
use waylay_tests::world::Side;
use waylay_tests::{Child, Finished, World};

#[test]
fn curl_and_wget_fetch_through_a_routed_listener() {
    let world = World::new();
    let _default = world.origin("default-svc", "127.0.0.1:9004");
    let _checkout = world.origin("checkout-v1", "127.0.0.1:9001");
    let agent = world.agent(SHOP);
    let page = world.app("curl", &["-sS", "--max-time", "10", "http://127.77.0.1:8080/catalog"]).success();
    assert_eq!(page, "default-svc GET /catalog HTTP/1.1\n");
    let page = world
        .app("wget", &["-q", "-O", "-", "--tries=1", "--timeout=10", "http://127.77.0.1:8080/checkout/cart"])
        .success();
    assert_eq!(page, "checkout-v1 GET /checkout/cart HTTP/1.1\n");
    let records = agent.wait_records("request", 2);
    assert_eq!((&records[0]["comm"], &records[0]["upstream_cluster"]), (&"curl".into(), &"default-svc".into()));
    assert_eq!((&records[1]["comm"], &records[1]["upstream_cluster"]), (&"wget".into(), &"checkout-v1".into()));
    agent.stop();
}

#[test]
fn redis_answers_through_the_agent() {
    let world = World::new();
    let folder = world.folder().to_str().expect("path").to_owned();
    let server = world.spawn(
        Side::Outside,
        "redis-server",
        &["--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", &folder],
    );
    server.wait_for("Ready to accept connections");
    let agent = world.agent(BYTES);
    let cli = |args: &[&str]| world.app("redis-cli", &[&["-h", "127.0.0.1"], args].concat()).success();
    assert_eq!(cli(&["set", "greeting", "hello"]), "OK\n");
    assert_eq!(cli(&["get", "greeting"]), "hello\n");
    let pipelined = world.app("sh", &["-c", "seq 1 2000 | sed 's/.*/incr n/' | redis-cli | tail -1"]).success();
    assert_eq!(pipelined, "2000\n");
    let records = agent.wait_records("connection", 3);
    assert!(records.iter().all(|record| record["comm"] == "redis-cli"), "{records:#?}");
    agent.stop();
}

/// A client with a server that speaks first, behind a listener that inspects what the client says.
const INSPECTED: &str = "
intercept: {cgroup: '@CGROUP@'}
listeners:
  - name: virtualOutbound
    address: 127.0.0.1:15001
    use_original_dst: true
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
  - name: inspected
    address: 0.0.0.0:3306
    bind_to_port: false
    listener_filters: [tls_inspector, http_inspector]
    filter_chains:
      - match: {application_protocols: [http/1.1, h2c]}
        http: {route_config: {name: none, virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 418}}]}]}}
    default_filter_chain: {tcp_proxy: {cluster: passthrough}}
clusters:
  - {name: passthrough, type: original_dst}
";

#[test]
fn mariadb_answers_at_once_behind_an_inspected_listener() {
    let world = World::new();
    let data = world.folder().join("mariadb");
    let data_dir = format!("--datadir={}", data.display());
    world
        .run(
            Side::Outside,
            "mariadb-install-db",
            &["--no-defaults", &data_dir, "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"],
        )
        .success();
    let socket = format!("--socket={}", world.folder().join("mariadb.sock").display());
    let server = world.spawn(
        Side::Outside,
        find(&["/usr/sbin/mariadbd", "/usr/sbin/mysqld"]),
        &["--no-defaults", &data_dir, &socket, "--user=root", "--bind-address=127.0.0.1", "--port=3306"],
    );
    server.wait_for("ready for connections");
    // Password-less root over TCP, which the client below uses.
    world.run(Side::Outside, "mariadb", &["--no-defaults", &socket, "-e", "CREATE USER app@'127.0.0.1'"]).success();
    let agent = world.agent(INSPECTED);
    let answer = world.app(
        "mariadb",
        &["--no-defaults", "--host=127.0.0.1", "--port=3306", "--protocol=tcp", "--user=app", "-N", "-e", "SELECT 6*7"],
    );
    assert_eq!(answer.success(), "42\n");
    let record = &agent.wait_records("connection", 1)[0];
    assert_eq!(record["server_first"], true, "{record:#}");
    let label = "{listener=\"inspected\"}";
    assert_eq!(agent.metric(&format!("waylay_listener_downstream_pre_cx_timeout{label}")) as u64, 0);
    assert_eq!(agent.metric(&format!("waylay_listener_detection_server_first{label}")) as u64, 1);
    agent.stop();
}

#[test]
fn postgresql_answers_through_the_agent() {
    let world = World::new();
    let server = Postgres::start(&world);
    let agent = world.agent(BYTES);
    let answer = world.app(
        "psql",
        &[
            "-X",
            "-t",
            "-A",
            "-h",
            "127.0.0.1",
            "-p",
            "5432",
            "-U",
            "postgres",
            "-c",
            "SELECT sum(n) FROM generate_series(1, 100000) n",
        ],
    );
    assert_eq!(answer.success(), "5000050000\n");
    assert_eq!(agent.wait_records("connection", 1)[0]["original_dst"], "127.0.0.1:5432");
    agent.stop();
    drop(server);
}

struct Postgres {
    _server: Child,
}

impl Postgres {
    /// PostgreSQL does not run as root: it gets its own user and a folder that this user owns.
    fn start(world: &World) -> Self {
        let bin = std::fs::read_dir("/usr/lib/postgresql")
            .expect("PostgreSQL is installed")
            .flatten()
            .map(|version| version.path().join("bin"))
            .find(|bin| bin.join("initdb").exists())
            .expect("PostgreSQL's server programs are installed");
        let data = world.folder().join("postgres");
        std::fs::create_dir(&data).expect("the data folder");
        success("chmod", &["755", world.folder().to_str().expect("path")]);
        success("chown", &["postgres", data.to_str().expect("path")]);
        let user = ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];
        let data = data.to_str().expect("path");
        let initdb = bin.join("initdb");
        let initdb = initdb.to_str().expect("path");
        let args = [&user[..], &[initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]].concat();
        world.run(Side::Outside, "setpriv", &args).success();
        let postgres = bin.join("postgres");
        let postgres = postgres.to_str().expect("path");
        let args = [&user[..], &[postgres, "-D", data, "-h", "127.0.0.1", "-k", data, "-F"]].concat();
        let server = world.spawn(Side::Outside, "setpriv", &args);
        server.wait_for("ready to accept connections");
        Self { _server: server }
    }
}

fn success(program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    command.args(args);
    Finished::of(command).success();
}

fn find(candidates: &[&str]) -> PathBuf {
    candidates.iter().map(Path::new).find(|path| path.exists()).expect("the program is installed").to_owned()
}

#[test]
fn a_program_that_connects_long_before_it_speaks_is_served() {
    let world = World::new();
    let _default = world.origin("default-svc", "127.0.0.1:9004");
    // The detection's early connection goes to where the client wanted to go: nobody is there, and that must not
    // end the connection of a client that turns out to speak HTTP.
    let agent = world.agent(SHOP);
    let printed = world.python(
        "import socket, time
s = socket.create_connection(('127.77.0.1', 8080))
time.sleep(1)
s.sendall(b'GET /late HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')
print(rest(s).decode().splitlines()[-1])
",
    );
    assert_eq!(printed, "default-svc GET /late HTTP/1.1\n");
    agent.wait_records("request", 1);
    agent.stop();
}
