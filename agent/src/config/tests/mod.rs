//! Whole configurations: the examples, tables of bad files, the round trip, the reference.

mod bad_clusters;
mod bad_dns;
mod bad_intercept;
mod bad_listeners;
mod bad_routes;
mod bad_values;
mod examples;
mod reference;
mod resolved;
mod round_trip;

use super::{Loaded, Source, load};
use crate::snapshot::Runtime;

/// Loads `text` as the file `f.yaml`; what is wrong comes back as it is printed.
fn check(text: &str) -> Result<Loaded, String> {
    let source = Source::Inline { name: "f.yaml".to_owned(), text: text.to_owned() };
    load(&source, &Runtime::default(), 1).map_err(|errors| errors.to_string())
}

/// What the loader says about each of `cases`, without the `f.yaml:` that begins every line.
#[track_caller]
fn check_errors(cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        let found = match check(text) {
            Err(errors) => errors,
            Ok(loaded) => panic!("this loads, with the warnings {:?}:\n{text}", loaded.warnings),
        };
        let found: Vec<_> = found.lines().map(|line| line.strip_prefix("f.yaml:").unwrap_or(line)).collect();
        assert_eq!(found, *expected, "\n{text}");
    }
}

/// The warnings about `text`, without the `f.yaml:` that begins every line.
#[track_caller]
fn warnings(text: &str) -> Vec<String> {
    let loaded = check(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    loaded.warnings.iter().map(|warning| warning.to_string().replacen("f.yaml:", "", 1)).collect()
}
