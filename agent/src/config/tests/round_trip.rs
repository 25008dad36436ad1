//! What is written is read back equal.

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use crate::config::diagnostic::{Path, Report};
use crate::config::raw::Config;
use crate::config::value::Value as _;
use crate::config::{Source, normalize, write, yaml};

fn read(text: &str) -> Result<Config, String> {
    let mut report = Report::new("f.yaml");
    let tree = yaml::parse(text, &mut report);
    let config = tree.map(|tree| Config::decode(&tree, &Path::ROOT, &mut report));
    report.finish().map_err(|errors| errors.to_string())?;
    config.ok_or_else(|| "no tree".to_owned())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Every field of every record takes part, since values and decoding come from the same declaration.
    #[test]
    fn any_configuration_survives_being_written_and_read(seed: u64) {
        let config = Config::random(&mut SmallRng::seed_from_u64(seed));
        let text = write::to_yaml(&config.encode());
        match read(&text) {
            Ok(again) => prop_assert_eq!(again, config, "{}", text),
            Err(errors) => prop_assert!(false, "{}\n{}", errors, text),
        }
    }

    #[test]
    fn no_text_makes_the_loader_panic(text in "[-:{}\\[\\]&*!|>'\"%@#?, \n\tа-я0-9a-z]{0,200}") {
        let _ = super::check(&text);
    }
}

#[test]
fn a_normalized_configuration_has_every_default_and_means_the_same() {
    let short = "listeners:\n  - {name: a, address: 127.0.0.1:80, default_filter_chain: {tcp_proxy: {cluster: c}}}\nclusters:\n  - {name: c, endpoints: [127.0.0.1:1]}\n";
    let source = |text: &str| Source::Inline { name: "f.yaml".to_owned(), text: text.to_owned() };
    let long = normalize(&source(short)).expect("normalized");
    for expected in
        ["drain_timeout: 30s", "max_connect_attempts: 1", "address: \"127.0.0.1:1\"", "prometheus: \"127.0.0.1:15090\""]
    {
        assert!(long.contains(expected), "{expected} in\n{long}");
    }
    assert_eq!(normalize(&source(&long)).expect("again"), long);
    assert!(super::check(&long).is_ok());
}
