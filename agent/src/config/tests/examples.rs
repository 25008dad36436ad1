//! Every example that is delivered loads.

use std::path::PathBuf;

use crate::cluster::ClusterSpecifier;
use crate::config::{Loaded, Source, load};
use crate::http::route::Action;
use crate::snapshot::Runtime;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples")
}

fn example(name: &str) -> Loaded {
    load(&Source::File(folder().join(name)), &Runtime::default(), 1).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_example_loads() {
    let mut names: Vec<_> = std::fs::read_dir(folder())
        .expect("the folder of examples")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        let loaded = example(&name);
        let expected: &[&str] = match name.as_str() {
            "egress-sni.yaml" => &[
                "cluster `blackhole` has no endpoints: requests that go there get 503, connections are reset (flag UH)",
            ],
            _ => &[],
        };
        let warnings: Vec<_> = loaded.warnings.iter().map(|warning| warning.message.as_str()).collect();
        assert_eq!(warnings, expected, "{name}");
        assert!(loaded.snapshot.intercept.is_some(), "{name}");
    }
}

#[test]
fn the_configuration_of_the_daemon_set_loads() {
    let file = folder().join("../kubernetes/base/waylay.yaml");
    let loaded = load(&Source::File(file), &Runtime::default(), 1).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let intercept = loaded.snapshot.intercept.expect("something is intercepted");
    assert!(!intercept.host && intercept.pods.is_some() && intercept.inbound.is_some());
}

#[test]
fn the_three_orderings_hold_the_same_rows() {
    let rows = |name: &str| {
        let loaded = example(name);
        let config = &loaded.snapshot.route_configs["8080"];
        let rows = config.virtual_hosts[0].routes.iter().map(|route| match &route.action {
            Action::Route(action) => match &action.cluster {
                ClusterSpecifier::Cluster(cluster) => cluster.name.to_string(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        });
        rows.collect::<Vec<_>>()
    };
    assert_eq!(rows("ordering-wildcard.yaml"), ["default-svc", "checkout-v1", "checkout-v2"]);
    assert_eq!(rows("ordering-prefix.yaml"), ["checkout-v1", "checkout-v2", "default-svc"]);
    assert_eq!(rows("ordering-header.yaml"), ["checkout-v2", "checkout-v1", "default-svc"]);
}
