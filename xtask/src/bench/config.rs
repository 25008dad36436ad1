//! The configurations of all proxies: the same three routes in each, and what makes them larger for the tables of cost
//! against size. The rest of each lies in `conf/`.

use std::{fmt::Write as _, fs, path::Path};

use super::waylay::Flavour;

/// Limits of connections and requests that no case comes near.
const LIMITS: &str = "{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}";

/// What there is how many of, beside the three routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub of: Dimension,
    pub count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dimension {
    /// Rows of one virtual host, each with a prefix of its own; the last one answers.
    Routes,
    /// Virtual hosts with one domain each; the last one answers.
    Hosts,
    /// Clusters of one endpoint; the last one is where requests go.
    Clusters,
    /// Listeners that are found by original destination; the last one answers.
    Listeners,
}

impl Dimension {
    pub const ALL: [Self; 4] = [Self::Routes, Self::Hosts, Self::Clusters, Self::Listeners];

    pub fn word(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Hosts => "hosts",
            Self::Clusters => "clusters",
            Self::Listeners => "listeners",
        }
    }
}

impl Size {
    pub const SMALL: Self = Self { of: Dimension::Clusters, count: 0 };

    fn each(self, of: Dimension, mut line: impl FnMut(usize) -> String) -> String {
        (0..if self.of == of { self.count } else { 0 }).map(|index| line(index) + "\n").collect()
    }

    /// Where a request goes that neither of the first two rows takes.
    fn last(self, otherwise: &str) -> String {
        match self {
            Self { of: Dimension::Clusters, count: 1.. } => format!("x{}", self.count - 1),
            _ => otherwise.to_owned(),
        }
    }

    /// The path and the host of a request that meets the last of them.
    pub fn request(self) -> (String, String) {
        let last = self.count.saturating_sub(1);
        match self.of {
            Dimension::Routes => (format!("/r{last}/x"), "shop.local".to_owned()),
            Dimension::Hosts => ("/x".to_owned(), format!("h{last}.local")),
            Dimension::Clusters | Dimension::Listeners => ("/x".to_owned(), "shop.local".to_owned()),
        }
    }
}

/// The first port of many virtual listeners.
pub const FIRST_LISTENER: usize = 10_000;

pub fn origin(folder: &Path) -> String {
    in_folder(include_str!("conf/origin.conf"), folder)
}

pub fn nginx(folder: &Path, size: Size) -> String {
    // Debian keeps it beside the program; others link it in.
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let modules = if fs::exists(module).unwrap_or(false) { format!("load_module {module};") } else { String::new() };
    let routes = size.each(Dimension::Routes, |row| format!("    location /r{row}/ {{ proxy_pass http://c; }}"));
    let hosts = size.each(Dimension::Hosts, |host| {
        format!("  server {{ listen 0.0.0.0:7202; server_name h{host}.local; location / {{ proxy_pass http://c; }} }}")
    });
    let clusters = size.each(Dimension::Clusters, |cluster| {
        format!("  upstream x{cluster} {{ server 127.0.0.1:9003; keepalive 256; keepalive_requests 1000000000; }}")
    });
    let text = in_folder(include_str!("conf/nginx.conf"), folder).replace("@MODULES@", &modules);
    let text = text.replace("@ROUTES@", &routes).replace("@HOSTS@", &hosts).replace("@CLUSTERS@", &clusters);
    text.replace("@LAST@", &size.last("$by_header"))
}

pub fn haproxy(size: Size) -> String {
    let routes = size.each(Dimension::Routes, |row| format!("  use_backend c if {{ path_beg /r{row}/ }}"));
    let hosts = size.each(Dimension::Hosts, |host| format!("  use_backend c if {{ req.hdr(host) -i h{host}.local }}"));
    let clusters = size.each(Dimension::Clusters, |cluster| {
        format!("backend x{cluster}\n  mode http\n  http-reuse always\n  server s 127.0.0.1:9003")
    });
    let text = include_str!("conf/haproxy.cfg").replace("@ROUTES@", &routes).replace("@HOSTS@", &hosts);
    text.replace("@CLUSTERS@", &clusters).replace("@LAST@", &size.last("c"))
}

pub fn envoy(size: Size) -> String {
    let row = |matcher: &str, cluster: &str| {
        format!("              - {{match: {{{matcher}}}, route: {{cluster: {cluster}, timeout: 0s}}}}\n")
    };
    let host = |name: &str, domain: &str, rows: &str| {
        format!("            - name: {name}\n              domains: ['{domain}']\n              routes:\n{rows}")
    };
    let mut rows =
        size.each(Dimension::Routes, |number| row(&format!("prefix: /r{number}/"), "c").trim_end().to_owned());
    rows += &row("prefix: /checkout", "a");
    rows += &row("prefix: /, headers: [{name: x-canary, string_match: {exact: 'true'}}]", "b");
    rows += &row("prefix: /", &size.last("c"));
    let hosts = host("any", "*", &rows)
        + &size.each(Dimension::Hosts, |number| {
            host(&format!("h{number}"), &format!("h{number}.local"), row("prefix: /", "c").trim_end())
        });
    let mut clusters = String::new();
    for (name, port) in [("a", 9001), ("b", 9002), ("c", 9003), ("bulk", 9100)] {
        clusters += &envoy_cluster(name, port);
    }
    clusters +=
        &size.each(Dimension::Clusters, |number| envoy_cluster(&format!("x{number}"), 9003).trim_end().to_owned());
    include_str!("conf/envoy.yaml").replace("@VIRTUAL_HOSTS@", &hosts).replace("@CLUSTERS@", &clusters)
}

fn envoy_cluster(name: &str, port: u16) -> String {
    format!(
        "  - {{name: {name}, type: STATIC, connect_timeout: 5s, circuit_breakers: {{thresholds: [{LIMITS}]}}, \
         load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}\n"
    )
}

/// waylay's, for one way of meeting connections; `group` is the control group that it takes, if any.
pub fn waylay(folder: &Path, flavour: Flavour, group: &str, size: Size) -> String {
    let row =
        |matcher: &str, cluster: &str| format!("          - {{match: {{{matcher}}}, route: {{cluster: {cluster}}}}}\n");
    let host = |name: &str, domain: &str, rows: &str| {
        format!("      - name: {name}\n        domains: [\"{domain}\"]\n        routes:\n{rows}")
    };
    let mut rows =
        size.each(Dimension::Routes, |number| row(&format!("prefix: /r{number}/"), "c").trim_end().to_owned());
    rows += &row("prefix: /checkout", "a");
    rows += &row("prefix: /, headers: [{name: x-canary, exact: \"true\"}]", "b");
    rows += &row("prefix: /", &size.last("c"));
    let hosts = host("any", "*", &rows)
        + &size.each(Dimension::Hosts, |number| {
            host(&format!("h{number}"), &format!("h{number}.local"), row("prefix: /", "c").trim_end())
        });
    let limits = flavour.limits();
    let cluster = |name: &str, port: u16| {
        format!("  - {{name: {name}, type: static, endpoints: [127.0.0.1:{port}], circuit_breakers: {limits}}}\n")
    };
    let mut clusters: String = [("a", 9001), ("b", 9002), ("c", 9003), ("bulk", 9100), ("sink", 9101)]
        .map(|(name, port)| cluster(name, port))
        .concat();
    clusters += "  - {name: passthrough, type: original_dst}\n";
    clusters += &size.each(Dimension::Clusters, |number| cluster(&format!("x{number}"), 9003).trim_end().to_owned());
    let text = in_folder(include_str!("conf/waylay.yaml"), folder).replace("@NAME@", flavour.id());
    let text = text
        .replace("@ACCESS_LOG@", &flavour.access_log(folder))
        .replace("@INTERCEPT@", &flavour.intercept(group, folder));
    let text = text.replace("@LISTENERS@", &(flavour.listeners() + &virtual_listeners(size)));
    text.replace("@VIRTUAL_HOSTS@", &hosts).replace("@CLUSTERS@", &clusters)
}

fn virtual_listeners(size: Size) -> String {
    let mut text = String::new();
    for number in 0..if size.of == Dimension::Listeners { size.count } else { 0 } {
        let port = FIRST_LISTENER + number;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  - {{name: v{number}, address: \"0.0.0.0:{port}\", bind_to_port: false, default_filter_chain: {{tcp_proxy: {{cluster: c}}}}}}"
        );
    }
    text
}

fn in_folder(text: &str, folder: &Path) -> String {
    text.replace("@RUNDIR@", &folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_has_as_many_as_were_asked_for_and_no_placeholder() {
        let folder = Path::new("/run/x");
        for of in Dimension::ALL {
            let size = Size { of, count: 3 };
            let waylay = waylay(folder, Flavour::Transparent, "/g", size);
            for text in [nginx(folder, size), haproxy(size), envoy(size), waylay.clone()] {
                assert!(!text.contains('@') || text.contains("'@type'"), "{text}");
            }
            let sought = match of {
                Dimension::Routes => "prefix: /r2/",
                Dimension::Hosts => "h2.local",
                Dimension::Clusters => "name: x2,",
                Dimension::Listeners => "name: v2,",
            };
            assert_eq!(waylay.matches(sought).count(), 1, "{sought} in {waylay}");
        }
        assert!(!haproxy(Size::SMALL).contains("x0"));
    }

    #[test]
    fn the_request_meets_the_last_one() {
        let request = |of| Size { of, count: 10 }.request();
        assert_eq!(request(Dimension::Routes), ("/r9/x".to_owned(), "shop.local".to_owned()));
        assert_eq!(request(Dimension::Hosts).1, "h9.local");
        assert_eq!(Size { of: Dimension::Clusters, count: 10 }.last("c"), "x9");
    }
}
