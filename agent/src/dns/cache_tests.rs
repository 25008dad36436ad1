use super::super::wire::{KeepLimits, Query};
use super::super::wire_samples::{answer, query};
use super::*;

const LIMITS: CacheLimits = CacheLimits { entries: 3, bytes: 1024 * 1024 };
const KEEP: KeepLimits = KeepLimits { max_ttl: Duration::from_secs(3600), max_negative_ttl: Duration::from_secs(300) };

fn sample(name: &str, ttl: u32) -> (Key, Rc<Response>) {
    let bytes = query(name);
    let query = Query::read(&bytes).expect("a query");
    let response = query.read_answer(&answer(&bytes, &[ttl]), &KEEP).expect("an answer");
    (Key { source: Source::Upstreams(0), question: query.question.expect("a usual question") }, Rc::new(response))
}

#[test]
fn an_answer_is_found_until_its_time_is_over() {
    let (mut cache, start) = (Cache::default(), Instant::now());
    let (key, response) = sample("a.test.", 60);
    cache.store(key.clone(), response, start, LIMITS);
    let age = |cache: &mut Cache, seconds| {
        cache.find(&key, start + Duration::from_secs(seconds)).map(|(_, age)| age.as_secs())
    };
    assert_eq!(age(&mut cache, 0), Some(0));
    assert_eq!(age(&mut cache, 59), Some(59));
    assert_eq!(age(&mut cache, 60), None);
    assert_eq!((cache.len(), cache.bytes), (0, 0));
}

#[test]
fn answers_of_one_resolver_are_not_those_of_another() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let (key, response) = sample("a.test.", 60);
    let asked = |place, ip: [u8; 4]| Key { source: Source::Asked(place, ip.into()), ..key.clone() };
    cache.store(asked(1, [10, 0, 0, 1]), response, now, LIMITS);
    assert!(cache.find(&asked(1, [10, 0, 0, 1]), now).is_some());
    for other in [asked(1, [10, 0, 0, 2]), asked(2, [10, 0, 0, 1]), key.clone()] {
        assert!(cache.find(&other, now).is_none(), "{other:?}");
    }
    cache.forget(|source| matches!(source, Source::Asked(1, _)));
    assert_eq!((cache.len(), cache.bytes), (0, 0));
}

#[test]
fn what_was_not_asked_for_the_longest_goes_first() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let names = ["a.test.", "b.test.", "c.test.", "d.test."];
    let samples = names.map(|name| sample(name, 60));
    for (key, response) in &samples[..3] {
        cache.store(key.clone(), response.clone(), now, LIMITS);
    }
    assert!(cache.find(&samples[0].0, now).is_some());
    cache.store(samples[3].0.clone(), samples[3].1.clone(), now, LIMITS);
    let there = samples.each_ref().map(|(key, _)| cache.find(key, now).is_some());
    assert_eq!(there, [true, false, true, true]);
}

#[test]
fn bytes_are_bounded_and_given_back() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let (key, response) = sample("a.test.", 60);
    let one = size(&key, &response);
    let limits = CacheLimits { entries: 100, bytes: 2 * one };
    for name in ["a.test.", "b.test.", "c.test."] {
        let (key, response) = sample(name, 60);
        cache.store(key, response, now, limits);
    }
    assert_eq!((cache.len(), cache.bytes), (2, 2 * one));
    cache.store(key.clone(), response.clone(), now, limits);
    cache.store(key, response, now, limits);
    assert_eq!((cache.len(), cache.used.len(), cache.bytes), (2, 2, 2 * one));
    cache.shrink(CacheLimits { entries: 100, bytes: one - 1 });
    assert_eq!((cache.len(), cache.used.len(), cache.bytes), (0, 0, 0));
}

#[test]
fn nothing_is_kept_where_nothing_may_be() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let (key, response) = sample("a.test.", 60);
    cache.store(key.clone(), response.clone(), now, CacheLimits { entries: 0, bytes: 1024 });
    cache.store(key.clone(), response, now, CacheLimits { entries: 1, bytes: 10 });
    let (_, dead) = sample("a.test.", 0);
    cache.store(key, dead, now, LIMITS);
    assert_eq!(cache.len(), 0);
}
