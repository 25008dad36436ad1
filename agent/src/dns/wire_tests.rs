use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query as Asked};
use hickory_resolver::proto::rr::rdata::opt::{ClientSubnet, EdnsOption};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use proptest::prelude::*;

use super::super::wire_samples::{answer, bytes, edns, message, name, negative, query, reply};
use super::*;

const KEEP: KeepLimits = KeepLimits { max_ttl: Duration::from_secs(3600), max_negative_ttl: Duration::from_secs(300) };

fn read(bytes: &[u8]) -> Query {
    Query::read(bytes).expect("a query")
}

fn parsed(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a well-formed message")
}

fn with(change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = message("www.test.");
    change(&mut message);
    bytes(&message)
}

#[test]
fn equal_questions_are_equal_whatever_their_number_and_case() {
    let question = |bytes: &[u8]| read(bytes).question.expect("a usual question");
    let plain = question(&query("www.test."));
    assert_eq!(plain.name(), "www.test.");
    assert_eq!(question(&with(|message| message.metadata.id = 7)), plain);
    assert_eq!(question(&query("WWW.Test.")), plain);
    assert_eq!(question(&with(|message| message.edns = Some(edns(1232)))), plain);
    assert_ne!(question(&query("www.tes.")), plain);
    assert_ne!(question(&with(|message| message.metadata.checking_disabled = true)), plain);
    let mut dnssec = edns(1232);
    dnssec.set_dnssec_ok(true);
    assert_ne!(question(&with(|message| message.edns = Some(dnssec))), plain);
}

#[test]
fn what_only_the_asked_resolver_can_answer_is_passed_on() {
    let check = |what: &str, change: &dyn Fn(&mut Message)| {
        assert!(read(&with(|message| change(message))).question.is_none(), "{what}");
    };
    check("without recursion", &|message| message.metadata.recursion_desired = false);
    check("an update", &|message| message.metadata.op_code = OpCode::Update);
    check("a transfer", &|message| {
        message.queries[0].set_query_type(RecordType::AXFR);
    });
    check("any", &|message| {
        message.queries[0].set_query_type(RecordType::ANY);
    });
    check("another class", &|message| {
        message.queries[0].set_query_class(DNSClass::CH);
    });
    check("a client subnet", &|message| {
        let mut edns = edns(1232);
        edns.options_mut().insert(EdnsOption::Subnet(ClientSubnet::new([10, 0, 0, 0].into(), 8, 0)));
        message.edns = Some(edns);
    });
    assert!(read(&query("www.test.")).question.is_some());
}

#[test]
fn what_is_no_query_is_ignored_or_refused() {
    let check = |what: &str, bytes: &[u8], expected: Option<ResponseCode>| match (Query::read(bytes), expected) {
        (Err(Refusal::Ignore), None) => {}
        (Err(Refusal::Answer(answer)), Some(code)) => {
            let answer = parsed(&answer);
            assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x1234, code), "{what}");
            assert_eq!(answer.metadata.message_type, MessageType::Response, "{what}");
        }
        (found, _) => panic!("{what}: {found:?}"),
    };
    let good = query("www.test.");
    check("nothing", &[], None);
    check("half a header", &good[..11], None);
    check("an answer", &answer(&good, &[1]), None);
    check("a header alone", &good[..12], Some(ResponseCode::FormErr));
    check("half a question", &good[..good.len() - 1], Some(ResponseCode::FormErr));
    check("more than a question", &[&good[..], b"x"].concat(), Some(ResponseCode::FormErr));
    let two = with(|message| {
        message.add_query(Asked::query(name("b.test."), RecordType::A));
    });
    check("two questions", &two, Some(ResponseCode::FormErr));
    let mut compressed = good.clone();
    compressed.splice(12..good.len() - 4, [0xc0, 12]);
    check("a name that points at itself", &compressed, Some(ResponseCode::FormErr));
    let future = with(|message| {
        let mut edns = edns(1232);
        edns.set_version(1);
        message.edns = Some(edns);
    });
    let Err(Refusal::Answer(answer)) = Query::read(&future) else { panic!("an unknown version of EDNS") };
    // BADSIG is the same number, within signatures.
    assert_eq!(u16::from(parsed(&answer).response_code), 16);
}

#[test]
fn a_resolver_is_asked_the_same_with_options_of_our_own() {
    let sent = |bytes: &[u8]| parsed(&read(bytes).to_upstream(99));
    let plain = sent(&query("WwW.test."));
    assert_eq!((plain.metadata.id, plain.metadata.recursion_desired, plain.edns.is_none()), (99, true, true));
    assert_eq!(plain.queries[0].name().to_string(), "WwW.test.");
    let options = sent(&with(|message| {
        let mut edns = edns(9000);
        edns.set_dnssec_ok(true);
        edns.options_mut().insert(EdnsOption::Unknown(10, b"a cookie".to_vec()));
        message.edns = Some(edns);
    }));
    let edns = options.edns.expect("an OPT record");
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (4096, true));
    assert!(edns.options().as_ref().is_empty(), "the cookie is between the client and us");
}

#[test]
fn an_answer_from_the_cache_is_as_old_as_it_is_and_nobodys_authority() {
    let asked = read(&query("www.test."));
    let response = asked.read_answer(&answer(asked.bytes(), &[60, 30]), &KEEP).expect("an answer");
    assert_eq!(response.keep, Some(Duration::from_secs(30)));
    let fresh = parsed(&asked.answer(&response, None));
    assert!(fresh.metadata.authoritative);
    let other = read(&with(|message| {
        message.metadata.id = 4711;
        message.queries[0] = Asked::query(name("WWW.test."), RecordType::A);
        message.edns = Some(edns(1232));
    }));
    let old = parsed(&other.answer(&response, Some(Duration::from_millis(20_900))));
    assert_eq!(old.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [40, 10]);
    assert_eq!((old.metadata.id, old.metadata.authoritative), (4711, false));
    assert_eq!(old.queries[0].name().to_string(), "WWW.test.");
    assert!(old.edns.is_some() && fresh.edns.is_none(), "OPT only to those who sent one");
}

#[test]
fn how_long_an_answer_holds() {
    let asked = read(&query("www.test."));
    let check = |what: &str, bytes: &[u8], expected: Option<u64>| {
        let response = asked.read_answer(bytes, &KEEP).expect("an answer");
        assert_eq!(response.keep.map(|keep| keep.as_secs()), expected, "{what}");
    };
    let question = asked.bytes();
    check("the shortest record", &answer(question, &[70, 20, 90]), Some(20));
    check("at most the limit", &answer(question, &[1_000_000]), Some(3600));
    check("nothing that lives no time", &answer(question, &[0, 60]), None);
    check("nothing of negative time", &answer(question, &[0x8000_0000]), None);
    let no = |code, times| bytes(&negative(question, code, times));
    check("no name, by the zone's minimum", &no(ResponseCode::NXDomain, (900, 60)), Some(60));
    check("no name, by the record", &no(ResponseCode::NXDomain, (50, 60)), Some(50));
    check("no record", &no(ResponseCode::NoError, (900, 70)), Some(70));
    check("no name, at most the limit", &no(ResponseCode::NXDomain, (9000, 9000)), Some(300));
    check("a failure", &no(ResponseCode::ServFail, (900, 60)), None);
    check("no name and no zone", &bytes(&reply(question, ResponseCode::NXDomain)), None);
    let mut cut = reply(question, ResponseCode::NoError);
    cut.metadata.truncation = true;
    check("a part", &bytes(&cut), None);
}

#[test]
fn an_answer_that_the_client_does_not_take_asks_it_to_come_over_tcp() {
    let small = read(&query("www.test."));
    let response = small.read_answer(&answer(small.bytes(), &[60; 40]), &KEEP).expect("an answer");
    let short = small.answer(&response, None);
    assert!(short.len() <= 512 && is_truncated(&short));
    assert!(parsed(&short).answers.is_empty());
    let large = read(&with(|message| message.edns = Some(edns(1232))));
    let whole = parsed(&large.answer(&response, None));
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (40, false));
}

#[test]
fn only_the_answer_to_this_question_is_one() {
    let asked = read(&query("www.test."));
    let mut good = answer(asked.bytes(), &[60]);
    good[..2].copy_from_slice(&99_u16.to_be_bytes());
    assert!(asked.is_answered_by(&good, 99));
    assert!(!asked.is_answered_by(&good, 98), "another number");
    assert!(!asked.is_answered_by(&asked.to_upstream(99), 99), "a question");
    let other = answer(&query("wwx.test."), &[60]);
    assert!(!asked.is_answered_by(&other, 0x1234), "another name");
    assert!(!asked.is_answered_by(&good[..good.len().min(14)], 99), "half a question");
    assert!(asked.is_answered_by(&answer(&query("WWW.test."), &[60]), 0x1234), "another case");
    let of_type = |kind: u16| with(|message| _ = message.queries[0].set_query_type(RecordType::from(kind)));
    let https = read(&of_type(65));
    assert!(https.is_answered_by(&answer(&of_type(65), &[]), 0x1234));
    assert!(!https.is_answered_by(&answer(&of_type(97), &[]), 0x1234), "as letters, 65 and 97 are A and a");
    let mut notified = good.clone();
    notified[2] |= 0x20;
    assert!(!asked.is_answered_by(&notified, 99), "another kind of message");
}

#[test]
fn the_answer_to_a_question_that_is_passed_on_is_to_that_question_too() {
    let asked = read(&with(|message| message.metadata.recursion_desired = false));
    assert!(asked.question.is_none());
    assert!(asked.is_answered_by(&answer(asked.bytes(), &[60]), 0x1234));
    assert!(!asked.is_answered_by(&answer(&query("wwx.test."), &[60]), 0x1234), "another name");
    let header = |code: ResponseCode| bare(asked.bytes(), code);
    assert!(asked.is_answered_by(&header(ResponseCode::FormErr), 0x1234), "refused without its question");
    assert!(!asked.is_answered_by(&header(ResponseCode::NoError), 0x1234), "nothing is said of any question");
    let update = read(&with(|message| message.metadata.op_code = OpCode::Update));
    assert!(update.is_answered_by(&bare(update.bytes(), ResponseCode::NoError), 0x1234));
}

#[test]
fn no_answer_is_longer_than_udp_takes() {
    let greedy = read(&with(|message| message.edns = Some(edns(65_535))));
    let response = greedy.read_answer(&answer(greedy.bytes(), &[60; 2000]), &KEEP).expect("an answer");
    assert!(response.len() > 20_000);
    let short = greedy.answer(&response, None);
    assert!(short.len() <= 4096 && is_truncated(&short));
    assert_eq!(greedy.answer_room(), 4096, "what we ask for ourselves");
}

#[test]
fn the_options_of_a_resolver_stay_between_it_and_us() {
    let asked = read(&with(|message| message.edns = Some(edns(1232))));
    let mut message = reply(asked.bytes(), ResponseCode::NoError);
    let mut options = edns(4096);
    options.options_mut().insert(EdnsOption::Unknown(10, b"another cookie".to_vec()));
    message.edns = Some(options);
    let response = asked.read_answer(&bytes(&message), &KEEP).expect("an answer");
    let passed = parsed(&asked.answer(&response, None)).edns.expect("an OPT record");
    assert_eq!((passed.max_payload(), passed.options().as_ref().is_empty()), (1232, true));
}

proptest! {
    #[test]
    fn nothing_that_arrives_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..200_usize, at in 0..200_usize, to: u8) {
        let _ = Query::read(&bytes);
        let asked = read(&query("www.test."));
        let _ = asked.read_answer(&bytes, &KEEP);
        let mut broken = self::bytes(&negative(asked.bytes(), ResponseCode::NXDomain, (60, 60)));
        let at = at % broken.len();
        broken[at] = to;
        broken.truncate(broken.len().saturating_sub(cut % 20));
        if asked.is_answered_by(&broken, asked.id())
            && let Some(response) = asked.read_answer(&broken, &KEEP)
        {
            prop_assert!(asked.answer(&response, Some(Duration::from_secs(1))).len() >= 12);
        }
        if let Ok(query) = Query::read(&broken) {
            let _ = query.to_upstream(1);
            let _ = query.refuse(ResponseCode::ServFail);
        }
    }
}
