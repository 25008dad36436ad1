//! Which rows may cover a row, by how their paths begin.
//!
//! After: [`super::shadow`], which compares a row with these alone.

use std::collections::{BTreeSet, HashMap};

use super::shadow::takes_every_path;
use crate::http::route::PathMatch;
use crate::http::route::rows::beginning_of;

/// Rows by what their paths begin with: a row is covered only by such a one whose beginning its own begins with. That
/// spares most of the comparisons of each row with each other.
#[derive(Default)]
pub(super) struct Beginnings {
    /// Lower-cased; a pattern's is what is literal of it.
    rows: HashMap<Vec<u8>, Vec<usize>>,
    /// How long the keys are.
    lengths: BTreeSet<usize>,
    connect: Vec<usize>,
}

impl Beginnings {
    fn key(path: &PathMatch) -> Vec<u8> {
        beginning_of(path).to_ascii_lowercase()
    }

    /// Rows that may cover a row with `path`: all that do, and others.
    pub(super) fn candidates(&self, path: &PathMatch) -> impl Iterator<Item = usize> {
        let own = Self::key(path);
        let connect: &[usize] = if matches!(path, PathMatch::Connect) { &self.connect } else { &[] };
        let keys = self.lengths.iter().take_while(|length| **length <= own.len());
        let found: Vec<&Vec<usize>> = keys.filter_map(|length| self.rows.get(&own[..*length])).collect();
        found.into_iter().flatten().chain(connect).copied()
    }

    pub(super) fn add(&mut self, row: usize, path: &PathMatch) {
        if matches!(path, PathMatch::Connect) {
            self.connect.push(row);
            return;
        }
        let key = if takes_every_path(path) { Vec::new() } else { Self::key(path) };
        self.lengths.insert(key.len());
        self.rows.entry(key).or_default().push(row);
    }
}
