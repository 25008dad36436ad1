//! What the benches build on: configurations of any size, loaded as the agent loads them.

use std::fmt::Write as _;

use waylay::config::{self, Source};
use waylay::snapshot::{Runtime, Snapshot};

/// The sizes at which each lookup is measured.
pub const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// Loads `text`.
///
/// # Panics
/// When it is no valid configuration: the bench is wrong.
pub fn load(text: String) -> Snapshot {
    let source = Source::Inline { name: "bench".to_owned(), text };
    match config::load(&source, &Runtime::default(), 1) {
        Ok(loaded) => loaded.snapshot,
        Err(errors) => panic!("{errors}"),
    }
}

/// A list of `count` lines, each made from its number.
pub fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "{}", line(number));
        text
    })
}
