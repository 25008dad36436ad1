//! Whole configurations: the examples, tables of bad files, the round trip, the reference.

mod examples;

use super::{Loaded, Source, load};
use crate::snapshot::Runtime;

/// Loads `text` as the file `f.yaml`; what is wrong comes back as it is printed.
fn check(text: &str) -> Result<Loaded, String> {
    let source = Source::Inline { name: "f.yaml".to_owned(), text: text.to_owned() };
    load(&source, &Runtime::default(), 1).map_err(|errors| errors.to_string())
}
