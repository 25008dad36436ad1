//! Debian's packages: those whose program is missing, and none of their daemons started.

use std::{fs, io::Read as _, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// A program, and the package that brings it.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    package: &'static str,
    /// The systemd unit that the package enables; the tests start their own servers.
    unit: Option<&'static str>,
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package, unit: None }
}

const fn daemon(name: &'static str, package: &'static str, unit: &'static str) -> Program {
    Program { name, package, unit: Some(unit) }
}

pub const DEMO: &[Program] = &[program("curl", "curl")];

pub const TEST: &[Program] = &[
    program("curl", "curl"),
    program("wget", "wget"),
    program("ip", "iproute2"),
    program("ps", "procps"),
    program("bpftool", "bpftool"),
    program("nsenter", "util-linux"),
    program("setpriv", "util-linux"),
    program("python3", "python3-venv"),
    daemon("redis-server", "redis-server", "redis-server.service"),
    program("redis-cli", "redis-tools"),
    daemon("mariadbd", "mariadb-server", "mariadb.service"),
    program("mariadb", "mariadb-client"),
    daemon("postgres", "postgresql", "postgresql.service"),
    program("psql", "postgresql-client"),
    program("mptcpize", "mptcpize"),
    daemon("containerd", "containerd", "containerd.service"),
    program("runc", "runc"),
    program(CNI_BRIDGE, "containernetworking-plugins"),
    program("busybox", "busybox-static"),
    program("kubectl", "kubernetes-client"),
    program("dig", "bind9-dnsutils"),
    program("dnsmasq", "dnsmasq-base"),
    program("musl-gcc", "musl-tools"),
];

/// The proxies that are measured beside waylay, and what loads them.
pub const BENCH: &[Program] = &[
    program("ip", "iproute2"),
    program("nsenter", "util-linux"),
    program("python3", "python3-venv"),
    daemon("haproxy", "haproxy", "haproxy.service"),
    daemon("nginx", "nginx", "nginx.service"),
    program(NGINX_STREAM, "libnginx-mod-stream"),
    program("wrk", "wrk"),
    program("h2load", "nghttp2-client"),
    program("iperf3", "iperf3"),
    program("iptables", "iptables"),
    // Pingora's compression is built with it.
    program("cmake", "cmake"),
];

/// Not a program, but what nginx loads; where its packages put it elsewhere, it is part of nginx.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A program that is not in the PATH.
const CNI_BRIDGE: &str = "/usr/lib/cni/bridge";

/// Runs as root. invoke-rc.d and deb-systemd-invoke ask policy-rc.d before they start a daemon; 101 is "no". A policy
/// that says so already is left alone, any other is put back, also after an interrupt.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
kept=$policy.before-waylay
restore() { rm -f "$policy"; [ ! -e "$kept" ] || mv "$kept" "$policy"; }
[ ! -e "$kept" ] || restore
verdict=0
[ ! -x "$policy" ] || "$policy" waylay start >/dev/null 2>&1 || verdict=$?
if [ "$verdict" != 101 ]; then
    trap restore EXIT
    trap 'exit 130' INT TERM HUP
    [ ! -e "$policy" ] || mv "$policy" "$kept"
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
units=$1
shift
# The lists may be there already; if not, or if they are stale, they are fetched.
apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 || {
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}
[ ! -d /run/systemd/system ] || for unit in $units; do systemctl disable --quiet "$unit" || true; done
"#;

/// Installs what is missing of these.
pub fn bring(programs: &[Program]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|program| !is_there(program.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|program| program.package).collect();
    let units: Vec<_> = missing.iter().filter_map(|program| program.unit).collect();
    if !available() {
        let names: Vec<_> = missing.iter().map(|program| program.name).collect();
        bail!("missing programs: {}: install them with your package manager", names.join(", "));
    }
    install(&packages, &units)?;
    match missing.iter().find(|program| !is_there(program.name)) {
        Some(Program { name, package, .. }) => {
            bail!("package {package} is installed but {name} is not there")
        }
        None => Ok(()),
    }
}

pub fn available() -> bool {
    shell::find("apt-get").is_some()
}

/// Installs packages; none of their daemons is started, and `units` are not enabled for the next boot either.
pub fn install(packages: &[&str], units: &[&str]) -> Result<()> {
    shell::step(&format!("apt-get install {}", packages.join(" ")), || {
        let mut sh = shell::as_root("sh")?;
        sh.args(["-c", INSTALL, "sh", &units.join(" ")]).args(packages);
        shell::run(&mut sh).with_context(|| format!("cannot install packages: install {} by hand", packages.join(" ")))
    })
}

fn is_there(name: &str) -> bool {
    match name {
        // Debian keeps the server of each version in a folder of its own.
        "postgres" => shell::find(name).is_some() || postgres_of_some_version(),
        // Debian splits python's venv module off.
        "python3" => shell::find(name).is_some() && venv_module(),
        // The tests' pods have no libraries; a busybox that needs some is another package's.
        "busybox" => shell::find(name).is_some_and(|path| is_static(&path)),
        NGINX_STREAM => Path::new(NGINX_STREAM).exists(),
        path if path.starts_with('/') => shell::is_executable(Path::new(path)),
        _ => shell::find(name).is_some(),
    }
}

/// Whether an ELF program names no loader; the name stands among its first bytes.
fn is_static(program: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(program).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.windows(4).any(|bytes| bytes == b"/ld-")
}

fn postgres_of_some_version() -> bool {
    let Ok(versions) = fs::read_dir("/usr/lib/postgresql") else {
        return false;
    };
    versions.flatten().any(|version| shell::is_executable(&version.path().join("bin/postgres")))
}

fn venv_module() -> bool {
    // A virtual environment that stands already has proven it, and asking python costs 40 ms.
    Path::new(&super::python::venv()).join("bin/python").exists()
        || shell::output(shell::command("python3").args(["-c", "import venv, ensurepip"]))
            .is_ok_and(|output| output.status.success())
}
