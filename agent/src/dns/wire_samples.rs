//! Messages for the tests, written by another implementation.

use std::net::Ipv4Addr;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

pub fn name(text: &str) -> Name {
    // Unlike `parse`, this keeps upper case.
    Name::from_ascii(text).expect("a name")
}

/// A question for the A records of `name`, as resolver libraries ask.
pub fn message(name_text: &str) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(name_text), RecordType::A));
    message
}

pub fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message")
}

pub fn query(name_text: &str) -> Vec<u8> {
    bytes(&message(name_text))
}

pub fn edns(size: u16) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    edns
}

/// The answer to `query`, without records.
pub fn reply(query: &[u8], code: ResponseCode) -> Message {
    let mut message = Message::from_vec(query).expect("a message");
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = true;
    message.metadata.response_code = code;
    message
}

/// An A record for each of `ttls`.
pub fn answer(query: &[u8], ttls: &[u32]) -> Vec<u8> {
    let mut message = reply(query, ResponseCode::NoError);
    let owner = message.queries[0].name().clone();
    for (last, ttl) in (1..).zip(ttls) {
        let data = RData::A(A(Ipv4Addr::new(10, 0, (last >> 8) as u8, last as u8)));
        message.add_answer(Record::from_rdata(owner.clone(), *ttl, data));
    }
    bytes(&message)
}

/// That there is nothing, with the zone's word on how long that holds.
pub fn negative(query: &[u8], code: ResponseCode, (ttl, minimum): (u32, u32)) -> Message {
    let mut message = reply(query, code);
    let soa = SOA::new(name("ns.test."), name("host.test."), 1, 7200, 600, 86400, minimum);
    message.add_authority(Record::from_rdata(name("test."), ttl, RData::SOA(soa)));
    message
}
