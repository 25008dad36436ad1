//! The index against the walk over all rows, which `explain` does: the same row, always.

use proptest::prelude::*;

use super::super::decide::{decide, decide_observed};
use super::super::fixture::{Request, any_match, any_request, config, header, on, prefix, rows, virtual_host};
use super::super::matching::RequestView;
use super::super::mismatch::Mismatch;
use super::super::template::PathTemplate;
use super::super::{FullRegex, PathMatch, RouteMatch};
use super::patterns::literal_prefix;
use super::*;

/// The rows that the index and the walk find.
fn found(matches: Vec<RouteMatch>, requests: &[Request]) -> Vec<(Option<usize>, Option<usize>)> {
    let config = config(vec![virtual_host("shop", &["*"], rows(matches))]);
    let both = |request: &Request| {
        let facts = request.facts();
        let indexed = decide(&config, &facts, &|_| None).route.map(|route| route.index);
        let mut seen: Vec<(usize, Result<(), Mismatch>)> = Vec::new();
        let walked = decide_observed(&config, &facts, &|_| None, &mut seen).route.map(|route| route.index);
        (indexed, walked)
    };
    requests.iter().map(both).collect()
}

fn regex(source: &str) -> RouteMatch {
    on(PathMatch::SafeRegex(FullRegex::new(source).expect("regex")))
}

fn template(source: &str) -> RouteMatch {
    on(PathMatch::Template(PathTemplate::new(source).expect("template")))
}

/// Rows that mostly ask for their path alone, so that many of them match.
fn mostly_plain() -> impl Strategy<Value = RouteMatch> {
    let plain =
        any_match().prop_map(|matches| RouteMatch { case_sensitive: matches.case_sensitive, ..on(matches.path) });
    let numbered = (0..40_u32, 0..6_u32).prop_map(|(number, kind)| match kind {
        0 => regex(&format!("/a/{number}.*")),
        1 => regex(&format!("/a/.*{number}")),
        2 => template(&format!("/a/*/{number}")),
        3 => on(PathMatch::Exact(format!("/a/{number}"))),
        4 => on(PathMatch::PathSeparatedPrefix(format!("/a/{number}"))),
        _ => RouteMatch { case_sensitive: false, ..prefix(&format!("/A/{number}")) },
    });
    prop_oneof![2 => plain, 4 => numbered, 2 => any_match()]
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let numbered = (0..400_u32, select_tail()).prop_map(|(number, tail)| Request::get(&format!("/a/{number}{tail}")));
    proptest::collection::vec(prop_oneof![any_request(), numbered], 1..16)
}

fn select_tail() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["", "/", "/7", "/x/3", "?q=a", "x", "#f"])
}

/// Of regular expressions.
const PARTS: [&str; 16] = [
    "/", "a", "b", "(a)", "(/b|/c)", "(ab|ac)", "[ab]", "a+", "b*", "(ab){2}", ".", r"\b", "|", "(?i)", "^", "(?:/?a)",
];

proptest! {
    // Each with up to 16 requests; tables with more patterns take longer to compile than to search.
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn the_index_finds_the_row_that_a_walk_over_all_of_them_finds(
        matches in proptest::collection::vec(mostly_plain(), 0..48),
        requests in requests(),
    ) {
        for (request, (indexed, walked)) in requests.iter().zip(found(matches, &requests)) {
            prop_assert_eq!(indexed, walked, "{:?}", request);
        }
    }

    #[test]
    fn conditions_of_all_kinds_do_not_change_what_is_found(
        matches in proptest::collection::vec(any_match(), 0..24),
        requests in proptest::collection::vec(any_request(), 1..16),
    ) {
        for (request, (indexed, walked)) in requests.iter().zip(found(matches, &requests)) {
            prop_assert_eq!(indexed, walked, "{:?}", request);
        }
    }

    #[test]
    fn paths_that_match_a_regular_expression_begin_with_its_literal_prefix(
        parts in proptest::collection::vec(proptest::sample::select(PARTS.to_vec()), 0..7),
        path in "/?[abABc/]{0,8}",
    ) {
        let source = parts.concat();
        let Ok(regex) = FullRegex::new(&source) else { return Ok(()) };
        let matches = regex.is_match(&path);
        let prefix = literal_prefix(&PathMatch::SafeRegex(regex));
        prop_assert!(!matches || path.as_bytes().starts_with(&prefix), "{} {:?}", source, prefix);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn large_tables_are_no_different(
        matches in proptest::collection::vec(mostly_plain(), 600..900),
        requests in requests(),
    ) {
        for (request, (indexed, walked)) in requests.iter().zip(found(matches, &requests)) {
            prop_assert_eq!(indexed, walked, "{:?}", request);
        }
    }
}

#[test]
fn many_patterns_that_begin_alike_go_through_sets_and_keep_their_order() {
    let numbered = (0..600).map(|number| regex(&format!("/u/[0-9]+/{number}")));
    let matches: Vec<_> = numbered.chain([regex("/u/[0-9]+/5.*"), prefix("/u")]).collect();
    let index = RowIndex::new(&rows(matches.clone()));
    assert_eq!(index.patterns.iter().map(|patterns| patterns.sets.len()).sum::<usize>(), 3);
    let cases = [("/u/7/599", 599), ("/u/7/5", 5), ("/u/7/5999", 600), ("/u/x", 601)];
    let requests = cases.map(|(path, _)| Request::get(path));
    for ((path, expected), rows) in cases.into_iter().zip(found(matches, &requests)) {
        assert_eq!(rows, (Some(expected), Some(expected)), "{path}");
    }
}

#[test]
fn a_set_that_is_too_large_is_tried_row_by_row() {
    let matches: Vec<_> = (0..20).map(|number| regex(&format!("/[a-z]{{1,3000}}/\\pL{{1,40}}/{number}"))).collect();
    let index = RowIndex::new(&rows(matches.clone()));
    assert!(index.patterns[0].sets.is_empty() && index.patterns[0].single.len() == 20);
    assert_eq!(found(matches, &[Request::get("/a/b/7")]), [(Some(7), Some(7))]);
}

#[test]
fn prefixes_nested_without_end_are_indexed_and_found() {
    let matches: Vec<_> = (1..=3_000).rev().map(|length| prefix(&"/".repeat(length))).collect();
    let requests = [Request::get("/"), Request::get(&"/".repeat(1_234)), Request::get(&"/".repeat(9_000))];
    assert_eq!(
        found(matches, &requests),
        [(Some(2_999), Some(2_999)), (Some(3_000 - 1_234), Some(3_000 - 1_234)), (Some(0), Some(0))]
    );
}

#[test]
fn more_nested_conditional_rows_than_there_is_room_for_are_all_tried_in_order() {
    let conditional =
        |length: usize| RouteMatch { headers: vec![header("x-a", &length.to_string())], ..prefix(&"/".repeat(length)) };
    let matches: Vec<_> = (1..=40).map(conditional).chain([prefix("/")]).collect();
    let requests: Vec<_> =
        [1, 9, 10, 40, 41].map(|length: usize| Request::get(&"/".repeat(64)).with("x-a", &length.to_string())).into();
    let expected: Vec<_> = [0, 8, 9, 39, 40].map(|row| (Some(row), Some(row))).into();
    assert_eq!(found(matches, &requests), expected);
}

#[test]
fn an_index_without_rows_finds_none() {
    let request = Request::get("/");
    let facts = request.facts();
    assert!(RowIndex::new(&[]).first(&[], &RequestView::new(&facts)).is_none());
}
