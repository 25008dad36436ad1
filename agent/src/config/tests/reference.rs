//! The reference in the documentation is the one of the decoder.

use std::path::PathBuf;

use crate::config::raw::Config;
use crate::config::record::{Presence, RecordInfo};
use crate::config::{reference, suggest};

const BEGIN: &str = "<!-- fields: written from the decoder's own tables; `WAYLAY_WRITE_REFERENCE=1 cargo test -p waylay the_reference` writes them anew -->\n";
const END: &str = "<!-- end of fields -->\n";

#[test]
fn the_reference_in_the_documentation_is_the_decoders_own() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(&file).expect("docs/configuration.md");
    let (before, rest) = text.split_once(BEGIN).expect("the mark before the fields");
    let (fields, after) = rest.split_once(END).expect("the mark behind the fields");
    let expected = format!("{}\n", reference());
    if std::env::var_os("WAYLAY_WRITE_REFERENCE").is_some() {
        std::fs::write(&file, format!("{before}{BEGIN}{expected}{END}{after}")).expect("writing the reference");
    } else if fields != expected {
        let differs = fields.lines().zip(expected.lines()).find(|(written, known)| written != known);
        panic!(
            "docs/configuration.md is out of date; write it anew with the command in it. First difference: {differs:?}"
        );
    }
}

#[test]
fn the_examples_in_the_documentation_load() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(&file).expect("docs/configuration.md");
    let examples = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    // Those without listeners show a part.
    let whole: Vec<_> = examples.filter(|example| example.contains("listeners:\n")).collect();
    assert_eq!(whole.len(), 2);
    for example in whole {
        assert_eq!(super::warnings(example), [""; 0], "{example}");
    }
}

fn visit(record: &'static RecordInfo, seen: &mut Vec<&'static RecordInfo>) {
    if seen.iter().any(|known| known.name == record.name) {
        return;
    }
    seen.push(record);
    for field in record.fields {
        if let Some(inner) = (field.record)() {
            visit(inner, seen);
        }
    }
}

#[test]
fn every_field_has_a_meaning_a_type_and_a_name_of_its_own() {
    let mut records = Vec::new();
    visit(&Config::INFO, &mut records);
    assert!(records.len() > 25, "{}", records.len());
    for record in records {
        assert!(record.doc.trim().ends_with('.'), "{}", record.name);
        let mut names = Vec::new();
        for field in record.fields {
            let place = format!("{}.{}", record.name, field.name);
            assert!(field.doc.trim().ends_with('.'), "{place}: {}", field.doc);
            assert!(!(field.type_name)().is_empty(), "{place}");
            if let Presence::Optional(absent) = field.presence {
                assert!(!absent.is_empty(), "{place}");
            }
            assert!(suggest::instead_of(field.name).is_none(), "{place} is known and yet explained away");
            for name in std::iter::once(&field.name).chain(field.aliases) {
                assert!(!names.contains(name), "{place}");
                names.push(name);
            }
        }
    }
}
