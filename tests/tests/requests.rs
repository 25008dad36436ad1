//! Connections that are served as requests.

use waylay_tests::config::SHOP;
use waylay_tests::world::Side;
use waylay_tests::{World, eventually, tools};

const SHOP_ADDRESS: &str = "http://127.77.0.1:8080";

fn curl(world: &World, args: &[&str]) -> String {
    world.app("curl", &[&["-sS", "--max-time", "10"], args].concat()).success()
}

#[test]
fn the_first_matching_row_decides_and_the_record_says_which() {
    let world = World::new();
    let _v1 = world.origin("checkout-v1", "127.0.0.1:9001");
    let _v2 = world.origin("checkout-v2", "127.0.0.1:9003");
    let _default = world.origin("default-svc", "127.0.0.1:9004");
    let agent = world.agent(SHOP);
    let url = format!("{SHOP_ADDRESS}/checkout/cart");
    assert_eq!(curl(&world, &["-H", "x-canary: true", &url]), "checkout-v2 GET /checkout/cart HTTP/1.1\n");
    assert_eq!(curl(&world, &[&url]), "checkout-v1 GET /checkout/cart HTTP/1.1\n");
    assert_eq!(curl(&world, &["-X", "PUT", &url]), "default-svc PUT /checkout/cart HTTP/1.1\n");
    let routes: Vec<_> = agent
        .wait_records("request", 3)
        .iter()
        .map(|record| (record["route"].clone(), record["upstream_cluster"].clone(), record["response_code"].clone()))
        .collect();
    assert_eq!(
        routes,
        [
            (0.into(), "checkout-v2".into(), 200.into()),
            (1.into(), "checkout-v1".into(), 200.into()),
            (2.into(), "default-svc".into(), 200.into())
        ]
    );
    agent.wait_records("connection", 3);
    agent.stop();
}

#[test]
fn other_bytes_on_an_inspected_port_go_to_their_original_destination() {
    let world = World::new();
    let server = world.spawn(
        Side::Outside,
        "python3",
        &[
            "-u",
            "-c",
            "import socket
l = socket.create_server(('127.77.0.1', 8080))
print('listening')
c, _ = l.accept()
c.sendall(c.recv(100)[::-1])
",
        ],
    );
    server.wait_for("listening");
    let agent = world.agent(SHOP);
    let printed = world.python(
        "import socket
s = socket.create_connection(('127.77.0.1', 8080))
s.sendall(b'\\x00\\x01binary')
print(s.recv(100))
",
    );
    assert_eq!(printed, "b'yranib\\x01\\x00'\n");
    assert_eq!(agent.wait_records("connection", 1)[0]["upstream_host"], "127.77.0.1:8080");
    agent.stop();
}

#[test]
fn nothing_matches_means_404_with_flag_nr() {
    let world = World::new();
    let agent = world.agent(&SHOP.replace("          - {match: {prefix: /}, route: {cluster: default-svc}}\n", ""));
    let status = curl(&world, &["-o", "/dev/null", "-w", "%{http_code}", &format!("{SHOP_ADDRESS}/other")]);
    assert_eq!(status, "404");
    let record = &agent.wait_records("request", 1)[0];
    assert_eq!((&record["response_flags"], &record["response_code"]), (&"NR".into(), &404.into()));
    agent.stop();
}

#[test]
fn a_refused_endpoint_means_503_with_flag_uf() {
    let world = World::new();
    let agent = world.agent(SHOP);
    let status = curl(&world, &["-o", "/dev/null", "-w", "%{http_code}", SHOP_ADDRESS]);
    assert_eq!(status, "503");
    let record = &agent.wait_records("request", 1)[0];
    assert!(record["response_flags"].as_str().is_some_and(|flags| flags.contains("UF")), "{record:#}");
    agent.stop();
}

/// Two endpoints, checked four times a second.
fn checked() -> String {
    SHOP.replace(
        "{name: default-svc, type: static, endpoints: [127.0.0.1:9004]}",
        "{name: default-svc, type: static, endpoints: [127.0.0.1:9004, 127.0.0.1:9005], health_checks: [{timeout: 1s, interval: 250ms, unhealthy_threshold: 1, healthy_threshold: 1, http: {path: /health}}]}",
    )
}

/// Without a policy another endpoint is tried where nothing listens any more and where a used connection went silent. What
/// the dying kernel still accepted for a process that never will is neither: a new connection, cut off without a word.
const RETRIED: &str = "{cluster: default-svc, retry_policy: {retry_on: [reset]}}";

#[test]
fn an_endpoint_killed_under_load_and_brought_back_costs_no_request() {
    let world = World::new();
    let steady = world.origin("steady", "127.0.0.1:9004");
    let flaky = world.spawn(Side::Outside, "python3", &["-u", "-c", FLAKY]);
    flaky.wait_for("listening");
    let agent = world.agent(&checked().replace("{cluster: default-svc}", RETRIED));
    let stop = world.folder().join("stop");
    let mut load = world.spawn_python(LOAD, &[stop.to_str().expect("path")]);
    load.wait_for("progress");
    drop(flaky);
    let healthy = "waylay_cluster_membership_healthy{cluster=\"default-svc\"}";
    eventually("the endpoint is taken out", || agent.metric(healthy) as u64 == 1);
    let alone = steady.seen().len();
    eventually("the other one serves alone", || steady.seen().len() > alone + 20);
    let flaky = world.spawn(Side::Outside, "python3", &["-u", "-c", FLAKY]);
    flaky.wait_for("listening");
    eventually("the endpoint is back", || agent.metric(healthy) as u64 == 2);
    flaky.wait_for("served 20");
    std::fs::write(&stop, "").expect("stop file");
    load.wait(waylay_tests::SOON);
    let summary = load.stdout().lines().last().map(str::to_owned);
    // A GET that had no answer is tried again at another endpoint: the client sees nothing of all this.
    let requests = agent.records().into_iter().filter(|record| record["kind"] == "request");
    let refused: Vec<_> = requests.filter(|record| record["response_code"] != 200).collect();
    assert!(
        summary.as_deref().is_some_and(|line| line.ends_with("bad 0")),
        "{summary:?}\n{}{refused:#?}",
        load.stderr()
    );
    agent.stop();
}

const FLAKY: &str = "
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    served = 0
    def do_GET(self):
        body = b'flaky\\n'
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.path != '/health':
            Handler.served += 1
            if Handler.served == 20: print('served 20', flush=True)
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 9005), Handler)
print('listening', flush=True)
server.serve_forever()
";

const LOAD: &str = "
import http.client, os, sys
good = bad = 0
connection = http.client.HTTPConnection('127.77.0.1', 8080, timeout=10)
while not os.path.exists(sys.argv[1]):
    try:
        connection.request('GET', '/')
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            print(response.status, file=sys.stderr)
            raise EOFError()
        good += 1
    except Exception as error:
        print(repr(error), file=sys.stderr)
        bad += 1
        connection.close()
    if (good + bad) % 20 == 0: print('progress', good, flush=True)
print('good', good, 'bad', bad, flush=True)
";

#[test]
fn all_endpoints_unhealthy_means_503_with_flag_uh() {
    let world = World::new();
    let agent = world.agent(&checked());
    let healthy = "waylay_cluster_membership_healthy{cluster=\"default-svc\"}";
    eventually("both endpoints are unhealthy", || {
        agent.metric("waylay_cluster_health_check_failure{cluster=\"default-svc\"}") > 1.0
            && agent.metric(healthy) as u64 == 0
    });
    let answer = curl(&world, &["-w", " %{http_code}", SHOP_ADDRESS]);
    assert_eq!(answer, "no healthy upstream 503");
    assert_eq!(agent.wait_records("request", 1)[0]["response_flags"], "UH");
    agent.stop();
}

#[test]
fn a_websocket_is_carried() {
    let world = World::new();
    let server = world.spawn(
        Side::Outside,
        tools::python(),
        &[
            "-u",
            "-c",
            "
import asyncio, websockets
async def echo(ws):
    async for message in ws:
        await ws.send(message[::-1])
async def main():
    async with websockets.serve(echo, '127.0.0.1', 9004):
        print('listening', flush=True)
        await asyncio.Future()
asyncio.run(main())
",
        ],
    );
    server.wait_for("listening");
    let agent = world.agent(SHOP);
    let printed = world
        .app(
            &tools::python(),
            &[
                "-c",
                "
import asyncio, websockets
async def main():
    async with websockets.connect('ws://127.77.0.1:8080/socket', compression=None) as ws:
        for message in ('hello', 'x' * 100000):
            await ws.send(message)
            assert await ws.recv() == message[::-1]
    print('closed well')
asyncio.run(main())
",
            ],
        )
        .success();
    assert_eq!(printed, "closed well\n");
    let record = &agent.wait_records("request", 1)[0];
    assert_eq!(record["response_code"], 101);
    assert!(record["bytes_received"].as_u64().is_some_and(|bytes| bytes > 100_000), "{record:#}");
    agent.stop();
}

/// The clusters speak HTTP/2.
fn over_http2() -> String {
    SHOP.replace("endpoints: [127.0.0.1:9004]}", "endpoints: [127.0.0.1:9004], protocol: http2}")
}

#[test]
fn grpc_calls_and_streams_are_carried() {
    let world = World::new();
    let server = world.spawn(Side::Outside, tools::python(), &["-u", "-c", GRPC_SERVER]);
    server.wait_for("listening");
    let agent = world.agent(&over_http2());
    let printed = world.app(&tools::python(), &["-c", GRPC_CLIENT]).success();
    assert_eq!(
        printed,
        "unary olleh\nstream ['0', '1', '2', '3', '4']\nboth ['a', 'b', 'c']\nerror NOT_FOUND no such thing\n"
    );
    let records = agent.wait_records("request", 4);
    assert!(
        records.iter().all(|record| record["protocol"] == "HTTP/2" && record["response_code"] == 200),
        "{records:#?}"
    );
    agent.stop();
}

const GRPC_SERVER: &str = "
import grpc
from concurrent import futures
def unary(request, context): return request[::-1]
def stream(request, context):
    for i in range(int(request)): yield str(i).encode()
def both(requests, context):
    for request in requests: yield request
def error(request, context): context.abort(grpc.StatusCode.NOT_FOUND, 'no such thing')
handlers = {
    'Unary': grpc.unary_unary_rpc_method_handler(unary),
    'Stream': grpc.unary_stream_rpc_method_handler(stream),
    'Both': grpc.stream_stream_rpc_method_handler(both),
    'Error': grpc.unary_unary_rpc_method_handler(error),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('demo.Demo', handlers),))
assert server.add_insecure_port('127.0.0.1:9004')
server.start()
print('listening', flush=True)
server.wait_for_termination()
";

const GRPC_CLIENT: &str = "
import grpc
channel = grpc.insecure_channel('127.77.0.1:8080', options=[('grpc.enable_http_proxy', 0)])
print('unary', channel.unary_unary('/demo.Demo/Unary')(b'hello', timeout=10).decode())
print('stream', [m.decode() for m in channel.unary_stream('/demo.Demo/Stream')(b'5', timeout=10)])
print('both', [m.decode() for m in channel.stream_stream('/demo.Demo/Both')(iter([b'a', b'b', b'c']), timeout=10)])
try:
    channel.unary_unary('/demo.Demo/Error')(b'', timeout=10)
except grpc.RpcError as error:
    print('error', error.code().name, error.details())
";

#[test]
fn cleartext_http2_by_prior_knowledge_reaches_http1_endpoints() {
    let world = World::new();
    let _default = world.origin("default-svc", "127.0.0.1:9004");
    let agent = world.agent(SHOP);
    let url = format!("{SHOP_ADDRESS}/h2c");
    // One connection each: Debian 12's curl fails to use one of prior knowledge again, whatever the server.
    for _ in 0..2 {
        let answer = curl(&world, &["--http2-prior-knowledge", "-w", "%{http_version}", &url]);
        assert_eq!(answer, "default-svc GET /h2c HTTP/1.1\n2");
    }
    let records = agent.wait_records("request", 2);
    assert!(records.iter().all(|record| record["protocol"] == "HTTP/2"), "{records:#?}");
    agent.wait_records("connection", 2);
    agent.stop();
}

#[test]
fn a_large_upload_and_download_pass_unharmed() {
    let world = World::new();
    let origin = world.origin("default-svc", "127.0.0.1:9004");
    let agent = world.agent(SHOP);
    let big = world.folder().join("big");
    let bytes: Vec<u8> = (0..8_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&big, &bytes).expect("a big file");
    let data = format!("@{}", big.display());
    curl(&world, &["--data-binary", &data, "-H", "transfer-encoding: chunked", SHOP_ADDRESS]);
    curl(&world, &["--data-binary", &data, SHOP_ADDRESS]);
    let seen = origin.seen();
    assert!(seen.len() == 2 && seen.iter().all(|request| request.body == bytes));
    assert!(agent.wait_records("request", 2).iter().all(|record| record["bytes_received"] == 8_000_000));
    agent.stop();
}
