//! Which row of a virtual host a request matches, without looking at all of them.
//!
//! Before: the virtual host. After: the row's action. The first row that matches wins, whatever the table looks like:
//! this finds the very row that a walk over all of them would find ([`super::decide`] walks where somebody wants to
//! know about each row), and a property test holds it to that.
//!
//! Built once with the configuration. Paths are in a `tree`: prefixes, exact ones, and the beginnings of regular
//! expressions and templates. A row that asks for nothing but such a path is decided on by the walk down the tree
//! alone. Of the others only those are tried, in order, whose path fits and which stand before that row.

mod patterns;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::ops::Range;

use super::matching::RequestView;
use super::{PathMatch, Route, RouteMatch};

use patterns::{Patterns, literal_prefix};
use tree::{Case, Tree};

/// The place of a row in its virtual host.
type Row = u32;
/// No row.
const NONE: Row = Row::MAX;

/// Finds the first row of one virtual host that matches a request.
#[derive(Debug, Default)]
pub struct RowIndex {
    /// Paths that are compared as they are, and the beginnings of patterns.
    sensitive: Tree,
    /// Lower-cased paths of the rows that ignore case.
    any_case: Tree,
    /// What the trees lead to.
    places: Vec<Place>,
    /// Rows that ask for more than their path, by place.
    conditional: Vec<Row>,
    /// Of the places that have some.
    patterns: Vec<Patterns>,
    /// CONNECT requests only.
    connect: Rows,
}

/// The rows of one path, by what they ask of it.
#[derive(Clone, Debug)]
struct Place {
    /// The path begins with it.
    prefix: Rows,
    /// It, or anything below it.
    segment: Rows,
    /// The path itself.
    exact: Rows,
    /// In [`RowIndex::patterns`]; [`NONE`] when there are none.
    patterns: u32,
}

/// Rows that ask the same of the path.
#[derive(Clone, Debug)]
struct Rows {
    /// The first that asks for nothing else.
    plain: Row,
    /// Those before it that do, in [`RowIndex::conditional`].
    conditional: Range<u32>,
}

impl Default for Rows {
    fn default() -> Self {
        Self { plain: NONE, conditional: 0..0 }
    }
}

/// The rows of one path while the index is built, in order.
#[derive(Default)]
struct Gathered<'r> {
    /// As in [`Place`]: prefix, segment, exact.
    compared: [Vec<(Row, &'r RouteMatch)>; 3],
    patterns: Vec<Row>,
}

/// Paths in order.
type Paths<'r> = BTreeMap<Vec<u8>, Gathered<'r>>;

impl RowIndex {
    /// Indexes `routes`. Takes time and memory in proportion to their number.
    pub fn new(routes: &[Route]) -> Self {
        let [mut sensitive, mut any_case] = [Paths::new(), Paths::new()];
        let mut connect = Vec::new();
        for (row, route) in (0..NONE).zip(routes) {
            let matches = &route.matches;
            let (text, kind) = match &matches.path {
                PathMatch::Prefix(prefix) => (prefix, 0),
                PathMatch::PathSeparatedPrefix(prefix) => (prefix, 1),
                PathMatch::Exact(exact) => (exact, 2),
                PathMatch::SafeRegex(_) | PathMatch::Template(_) => {
                    sensitive.entry(literal_prefix(&matches.path)).or_default().patterns.push(row);
                    continue;
                }
                PathMatch::Connect => {
                    connect.push((row, matches));
                    continue;
                }
            };
            let gathered = match matches.case_sensitive {
                true => sensitive.entry(text.as_bytes().to_vec()),
                false => any_case.entry(text.as_bytes().to_ascii_lowercase()),
            };
            gathered.or_default().compared[kind].push((row, matches));
        }
        let mut index = Self::default();
        index.connect = index.rows(&connect);
        index.sensitive = index.tree(Case::Sensitive, &sensitive, routes);
        index.any_case = index.tree(Case::Ignored, &any_case, routes);
        index
    }

    fn tree(&mut self, case: Case, paths: &Paths<'_>, routes: &[Route]) -> Tree {
        let mut keys = Vec::with_capacity(paths.len());
        for (path, Gathered { compared, patterns }) in paths {
            let [prefix, segment, exact] = [0, 1, 2].map(|kind: usize| self.rows(&compared[kind]));
            let patterns = Patterns::new(patterns, |row| &routes[row as usize].matches.path);
            let compared = [&prefix, &segment, &exact].map(|rows| self.smallest(rows));
            let smallest = compared.into_iter().fold(patterns.smallest(), Row::min);
            let mut place = Place { prefix, segment, exact, patterns: NONE };
            if patterns.smallest() != NONE {
                place.patterns = count(self.patterns.len());
                self.patterns.push(patterns);
            }
            keys.push((path.as_slice(), count(self.places.len()), smallest));
            self.places.push(place);
        }
        Tree::new(case, &keys)
    }

    /// Notes `rows`, which are in order. What follows the first plain one is never reached.
    fn rows(&mut self, rows: &[(Row, &RouteMatch)]) -> Rows {
        let start = count(self.conditional.len());
        let mut plain = NONE;
        for (row, matches) in rows {
            if matches.is_path_alone() {
                plain = *row;
                break;
            }
            self.conditional.push(*row);
        }
        Rows { plain, conditional: start..count(self.conditional.len()) }
    }

    fn conditional(&self, rows: &Rows) -> &[Row] {
        &self.conditional[rows.conditional.start as usize..rows.conditional.end as usize]
    }

    fn smallest(&self, rows: &Rows) -> Row {
        self.conditional(rows).first().copied().unwrap_or(NONE).min(rows.plain)
    }

    /// The first of `routes`, which it was made of, that matches.
    pub fn first<'r>(&self, routes: &'r [Route], request: &RequestView<'_>) -> Option<&'r Route> {
        let mut search = Search::new(self);
        if (self.connect.plain != NONE || !self.connect.conditional.is_empty()) && request.is_connect() {
            search.consider(&self.connect);
        }
        // A CONNECT request that names no path matches no condition on it.
        if !request.is_pathless() {
            let path = request.path().as_bytes();
            for tree in [&self.sensitive, &self.any_case] {
                tree.walk(path, search.best, |place, end| search.visit(&self.places[place as usize], path, end));
            }
            search.try_sets(request.path());
        }
        let row = search.finish(routes, request);
        routes.get(row as usize)
    }
}

/// What every path begins with that `path` matches, apart from its case; nothing for CONNECT requests.
pub(crate) fn beginning_of(path: &PathMatch) -> Vec<u8> {
    match path {
        PathMatch::Prefix(text) | PathMatch::Exact(text) | PathMatch::PathSeparatedPrefix(text) => {
            text.as_bytes().to_vec()
        }
        PathMatch::SafeRegex(_) | PathMatch::Template(_) => literal_prefix(path),
        PathMatch::Connect => Vec::new(),
    }
}

fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Rows to try, in order.
#[derive(Clone, Copy)]
struct Candidates<'i> {
    rows: &'i [Row],
    path: PathFits,
}

/// Whether the paths of candidates are known to fit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PathFits {
    Yes,
    Perhaps,
}

/// Lists of candidates that are kept without allocating: more come together only where conditional rows are nested
/// deeper than that.
const INLINE_LISTS: usize = 8;

/// One request's search.
struct Search<'i> {
    index: &'i RowIndex,
    /// The smallest row that is known to match; [`NONE`] for none yet.
    best: Row,
    lists: [Candidates<'i>; INLINE_LISTS],
    used: usize,
    more: Vec<Candidates<'i>>,
    /// Places with sets of patterns.
    sets: Vec<&'i Patterns>,
    /// Rows that sets found.
    found: Vec<Row>,
}

impl<'i> Search<'i> {
    fn new(index: &'i RowIndex) -> Self {
        let none = Candidates { rows: &[], path: PathFits::Yes };
        Self {
            index,
            best: NONE,
            lists: [none; INLINE_LISTS],
            used: 0,
            more: Vec::new(),
            sets: Vec::new(),
            found: Vec::new(),
        }
    }

    /// The request's path begins with the place's, which is `end` bytes long. Returns the best row so far.
    fn visit(&mut self, place: &'i Place, path: &[u8], end: usize) -> Row {
        self.consider(&place.prefix);
        match path.get(end) {
            None => {
                self.consider(&place.segment);
                self.consider(&place.exact);
            }
            Some(b'/') => self.consider(&place.segment),
            Some(_) => {}
        }
        if let Some(patterns) = self.index.patterns.get(place.patterns as usize) {
            self.add(Candidates { rows: &patterns.single, path: PathFits::Perhaps });
            if !patterns.sets.is_empty() {
                self.sets.push(patterns);
            }
        }
        self.best
    }

    /// The path is what `rows` ask for.
    fn consider(&mut self, rows: &'i Rows) {
        self.best = self.best.min(rows.plain);
        self.add(Candidates { rows: self.index.conditional(rows), path: PathFits::Yes });
    }

    fn add(&mut self, candidates: Candidates<'i>) {
        if candidates.rows.first().is_none_or(|row| *row >= self.best) {
            return;
        }
        match self.lists.get_mut(self.used) {
            Some(list) => {
                *list = candidates;
                self.used += 1;
            }
            None => self.more.push(candidates),
        }
    }

    fn try_sets(&mut self, path: &str) {
        for set in self.sets.iter().flat_map(|patterns| &patterns.sets) {
            set.matching(path, self.best, &mut self.found);
        }
        self.found.sort_unstable();
    }

    /// Tries the candidates before the best row in order, and returns the first that matches, else the best.
    fn finish(self, routes: &[Route], request: &RequestView<'_>) -> Row {
        let Self { best, used, found, .. } = self;
        if used == 0 && found.is_empty() {
            return best;
        }
        // From here on the lists live no longer than what the sets found.
        let (mut lists, mut more): ([Candidates<'_>; INLINE_LISTS], Vec<Candidates<'_>>) = (self.lists, self.more);
        let mut found = Candidates { rows: &found, path: PathFits::Yes };
        loop {
            let all = lists[..used].iter_mut().chain(&mut more).chain([&mut found]);
            let next = all.filter_map(|list| Some((*list.rows.first()?, list))).min_by_key(|(row, _)| *row);
            let Some((row, list)) = next.filter(|(row, _)| *row < best) else { return best };
            list.rows = &list.rows[1..];
            let matches = &routes[row as usize].matches;
            let holds = match list.path {
                PathFits::Yes => matches.check_conditions::<()>(request),
                PathFits::Perhaps => matches.check::<()>(request),
            };
            if holds.is_ok() {
                return row;
            }
        }
    }
}
