//! DNS messages as they stand on the wire (RFC 1035 section 4): read without being taken apart, so that an answer reaches
//! the client as the resolver wrote it, whatever record types it holds.
//!
//! Before: [`super::serve`], with datagrams. After: [`super::cache`], which keeps what [`Response`] holds. This file opens
//! no sockets and reads no clock.

use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;

/// Bytes of the fixed part of every message.
const HEADER_BYTES: usize = 12;
/// What a client takes that does not say otherwise (RFC 1035 section 4.2.1).
const PLAIN_UDP_BYTES: u16 = 512;
/// What the agent itself takes over UDP: fits into one packet on any usual path (DNS flag day 2020).
const OWN_UDP_BYTES: u16 = 1232;
/// The largest answer that resolvers are asked for over UDP; beyond it there is TCP.
const MAX_UDP_BYTES: u16 = 4096;
/// Longest name (RFC 1035 section 2.3.4).
const MAX_NAME_BYTES: usize = 255;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;
const RCODE: u16 = 0x000f;
/// In the flags of an OPT record.
const DO: u32 = 0x8000;

const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
/// Meta types, of zone transfers and of ANY: their answers are not those of a name.
const META_TYPES: std::ops::RangeInclusive<u16> = 249..=255;
/// EDNS options that concern one hop or one client only, and change no answer: cookie, keepalive, padding.
const HOP_OPTIONS: [u16; 3] = [10, 11, 12];

/// What is asked: equal for equal questions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// In lower case, as on the wire.
    name: Box<[u8]>,
    /// A, AAAA, ...
    pub kind: u16,
    /// The flags by which answers differ: DO, CD, AD.
    security: u8,
}

/// A query of a client.
#[derive(Clone, Debug)]
pub struct Query {
    bytes: Vec<u8>,
    question_end: usize,
    edns: Option<Edns>,
    /// `None`: only the resolver that was asked can answer, and nothing of it is kept: updates, transfers, signed
    /// queries, those of another class, those without recursion.
    pub question: Option<Question>,
}

#[derive(Clone, Copy, Debug)]
struct Edns {
    udp_bytes: u16,
    dnssec_ok: bool,
}

/// Why a datagram is no query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not even worth an answer: too short, or an answer itself.
    Ignore,
    /// Answer this.
    Answer(Vec<u8>),
}

/// A resolver's answer, without its OPT record.
#[derive(Debug)]
pub struct Response {
    bytes: Box<[u8]>,
    /// Where the times to live stand.
    ttls: Box<[u16]>,
    /// With the upper bits, which stood in the OPT record.
    rcode: u16,
    /// How long it may be kept; `None`: it must not be (RFC 2308, RFC 2181 section 8).
    pub keep: Option<Duration>,
}

/// One record: where it begins, what it is, where its data is.
struct Record {
    start: usize,
    kind: u16,
    class: u16,
    ttl_at: usize,
    ttl: u32,
    data: std::ops::Range<usize>,
}

impl Query {
    /// Reads a datagram.
    ///
    /// # Errors
    /// What to do with one that is no query.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let flags = word(bytes, 2).filter(|_| bytes.len() >= HEADER_BYTES).ok_or(Refusal::Ignore)?;
        if flags & QR != 0 {
            return Err(Refusal::Ignore);
        }
        let opaque = |question_end| Self { bytes: bytes.to_vec(), question_end, edns: None, question: None };
        // Updates and notifications have sections of their own meaning.
        if flags & OPCODE != 0 {
            return Ok(opaque(HEADER_BYTES));
        }
        let malformed = || Refusal::Answer(bare(bytes, ResponseCode::FormErr));
        let [questions, answers, authorities, additionals] = counts(bytes).ok_or_else(malformed)?;
        // More than one question has no meaning (RFC 9619).
        let (name, end) = name(bytes, HEADER_BYTES).filter(|_| questions == 1).ok_or_else(malformed)?;
        let (kind, class) = (word(bytes, end).ok_or_else(malformed)?, word(bytes, end + 2).ok_or_else(malformed)?);
        let question_end = end + 4;
        let all = [answers, authorities, additionals].map(usize::from).iter().sum();
        let records = records(bytes, question_end, all).filter(|(_, end)| *end == bytes.len());
        let (records, _) = records.ok_or_else(malformed)?;
        let (options, others): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.kind == TYPE_OPT);
        if options.len() > 1 {
            return Err(malformed());
        }
        let edns = options.first().map(|opt| Edns { udp_bytes: opt.class, dnssec_ok: opt.ttl & DO != 0 });
        let mut query = Self { edns, ..opaque(question_end) };
        if options.first().is_some_and(|opt| opt.ttl >> 16 & 0xff != 0) {
            return Err(Refusal::Answer(query.refuse(ResponseCode::BADVERS)));
        }
        let usual = options.iter().all(|opt| only_hop_options(&bytes[opt.data.clone()]));
        if usual && others.is_empty() && class == CLASS_IN && flags & RD != 0 && !META_TYPES.contains(&kind) {
            let dnssec_ok = if edns.is_some_and(|edns| edns.dnssec_ok) { 1 } else { 0 };
            let security = dnssec_ok | u8::try_from(flags & (CD | AD)).unwrap_or_default();
            query.question = Some(Question { name, kind, security });
        }
        Ok(query)
    }

    /// Its number.
    pub fn id(&self) -> u16 {
        word(&self.bytes, 0).unwrap_or_default()
    }

    /// As the client wrote it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a resolver is asked: the same question with the number `id` and an OPT record of the agent's own, because
    /// that of the client is for the agent (RFC 6891 section 6.1.1).
    pub fn to_upstream(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes[..self.question_end].to_vec();
        let flags = self.flags() & (RD | AD | CD);
        put(&mut bytes, 0, id);
        put(&mut bytes, 2, flags);
        set_counts(&mut bytes, [1, 0, 0, 0]);
        if let Some(edns) = self.edns {
            let size = edns.udp_bytes.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES);
            append_opt(&mut bytes, size, 0, edns.dnssec_ok);
        }
        bytes
    }

    /// `response` as the answer to this query, when it is `age` old; shortened to a request to ask over TCP when it is
    /// longer than the client takes.
    pub fn answer(&self, response: &Response, age: Option<Duration>) -> Vec<u8> {
        let mut bytes = response.bytes.to_vec();
        let mut flags = word(&bytes, 2).unwrap_or_default() & !(RD | CD) | self.flags() & (RD | CD);
        if let Some(age) = age {
            // What comes from a cache is no authority's word.
            flags &= !AA;
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            for &at in &response.ttls {
                let at = usize::from(at);
                if let Some(ttl) = bytes.get_mut(at..at + 4) {
                    let left = u32::from_be_bytes([ttl[0], ttl[1], ttl[2], ttl[3]]).saturating_sub(age);
                    ttl.copy_from_slice(&left.to_be_bytes());
                }
            }
        }
        put(&mut bytes, 0, self.id());
        put(&mut bytes, 2, flags);
        // The names are equal; the client may look for its own upper case in it.
        let question = HEADER_BYTES..self.question_end;
        bytes[question.clone()].copy_from_slice(&self.bytes[question]);
        self.append_own_opt(&mut bytes, response.rcode);
        // More than it would get from a resolver it does not get over UDP, which has no room for all that TCP has.
        let limit = self.edns.map_or(PLAIN_UDP_BYTES, |edns| edns.udp_bytes.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES));
        if bytes.len() <= usize::from(limit) {
            return bytes;
        }
        bytes.truncate(self.question_end);
        put(&mut bytes, 2, flags | TC);
        set_counts(&mut bytes, [1, 0, 0, 0]);
        self.append_own_opt(&mut bytes, response.rcode);
        bytes
    }

    /// An answer without any records.
    pub fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        let mut bytes = self.bytes[..self.question_end].to_vec();
        let code = u16::from(code);
        put(&mut bytes, 2, QR | self.flags() & (OPCODE | RD | CD) | code & RCODE);
        set_counts(&mut bytes, [u16::from(self.question_end > HEADER_BYTES), 0, 0, 0]);
        self.append_own_opt(&mut bytes, code);
        bytes
    }

    /// Whether `bytes` answer this query when it was sent with the number `id`. Anybody may send anything to a socket.
    pub fn is_answered_by(&self, bytes: &[u8], id: u16) -> bool {
        let (Some(flags), Some([questions, ..])) = (word(bytes, 2), counts(bytes)) else { return false };
        if word(bytes, 0) != Some(id) || flags & QR == 0 || (flags ^ self.flags()) & OPCODE != 0 {
            return false;
        }
        // Updates and notifications have sections of their own meaning. What is passed on byte for byte may be refused
        // without its question.
        let none = self.question.is_none() && questions == 0 && flags & RCODE != 0;
        self.question_end == HEADER_BYTES || none || questions == 1 && self.has_question_of(bytes)
    }

    /// Whether the same is asked in `bytes`: names are equal in whatever case, types and classes are numbers.
    fn has_question_of(&self, bytes: &[u8]) -> bool {
        let kind = self.question_end - 4;
        let (name, numbers) = (HEADER_BYTES..kind, kind..self.question_end);
        let same_name = bytes.get(name.clone()).is_some_and(|found| found.eq_ignore_ascii_case(&self.bytes[name]));
        same_name && bytes.get(numbers.clone()) == self.bytes.get(numbers)
    }

    /// Room that an answer over UDP takes at most.
    pub fn answer_room(&self) -> usize {
        // What is passed on tells the resolver how much its client takes.
        let told = self.edns.filter(|_| self.question.is_none()).map_or(0, |edns| edns.udp_bytes);
        usize::from(told.max(MAX_UDP_BYTES))
    }

    /// Reads an answer that [`Self::is_answered_by`]. `None`: it is malformed.
    pub fn read_answer(&self, bytes: &[u8], limits: &KeepLimits) -> Option<Response> {
        let [_, answers, authorities, additionals] = counts(bytes)?.map(usize::from);
        let flags = word(bytes, 2)?;
        let (records, end) = records(bytes, self.question_end, answers + authorities + additionals)?;
        // Behind the OPT record stands nothing that a client cannot do without.
        let opt = records.iter().position(|record| record.kind == TYPE_OPT);
        let upper = opt.map_or(0, |at| records[at].ttl >> 24);
        let rcode = u16::try_from(upper << 4).ok()? | flags & RCODE;
        let kept = &records[..opt.unwrap_or(records.len())];
        let mut cut = bytes[..opt.map_or(end, |at| records[at].start)].to_vec();
        let additional = kept.len().checked_sub(answers + authorities)?;
        put(&mut cut, 10, u16::try_from(additional).ok()?);
        for record in kept {
            let ttl = record.ttl.min(limits.max_ttl_secs());
            cut[record.ttl_at..record.ttl_at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        let sections = (&kept[..answers], &kept[answers..answers + authorities]);
        let keep = self.keep(bytes, flags, rcode, sections, limits);
        let ttls = kept.iter().map(|record| u16::try_from(record.ttl_at)).collect::<Result<_, _>>().ok()?;
        Some(Response { bytes: cut.into(), ttls, rcode, keep })
    }

    /// How long an answer holds: as long as its shortest record, and a "no" as long as its zone says (RFC 2308).
    fn keep(
        &self,
        bytes: &[u8],
        flags: u16,
        rcode: u16,
        (answers, authorities): (&[Record], &[Record]),
        limits: &KeepLimits,
    ) -> Option<Duration> {
        let known = [u16::from(ResponseCode::NoError), u16::from(ResponseCode::NXDomain)];
        if flags & TC != 0 || !known.contains(&rcode) {
            return None;
        }
        let wanted = self.question.as_ref()?.kind;
        let mut seconds = answers.iter().chain(authorities).map(|record| record.ttl).min()?;
        let is_no = rcode != 0 || answers.iter().all(|record| record.kind != wanted);
        if is_no {
            let soa = authorities.iter().find(|record| record.kind == TYPE_SOA)?;
            // The last of five numbers at the end of the record.
            let minimum = long(bytes, soa.data.end.checked_sub(4)?)?;
            seconds = seconds.min(minimum).min(limits.max_negative_ttl_secs());
        }
        let seconds = seconds.min(limits.max_ttl_secs());
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    fn flags(&self) -> u16 {
        word(&self.bytes, 2).unwrap_or_default()
    }

    fn append_own_opt(&self, bytes: &mut Vec<u8>, rcode: u16) {
        if let Some(edns) = self.edns {
            append_opt(bytes, OWN_UDP_BYTES, rcode, edns.dnssec_ok);
        }
    }
}

/// How long answers are kept at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepLimits {
    /// Any answer.
    pub max_ttl: Duration,
    /// The answer that there is no such name or record.
    pub max_negative_ttl: Duration,
}

impl KeepLimits {
    fn max_ttl_secs(&self) -> u32 {
        u32::try_from(self.max_ttl.as_secs()).unwrap_or(u32::MAX)
    }

    fn max_negative_ttl_secs(&self) -> u32 {
        u32::try_from(self.max_negative_ttl.as_secs()).unwrap_or(u32::MAX)
    }
}

impl Response {
    /// Its size in memory, roughly.
    pub fn len(&self) -> usize {
        self.bytes.len() + 2 * self.ttls.len()
    }

    /// NOERROR, NXDOMAIN, ...
    pub fn code(&self) -> ResponseCode {
        ResponseCode::from(u8::try_from(self.rcode >> 4).unwrap_or_default(), (self.rcode & RCODE) as u8)
    }
}

impl Question {
    /// The name, for people.
    pub fn name(&self) -> String {
        let mut text = String::new();
        let mut rest = &*self.name;
        while let Some((&len, after)) = rest.split_first() {
            let Some((label, after)) = after.split_at_checked(usize::from(len)).filter(|_| len > 0) else { break };
            text.push_str(&label.escape_ascii().to_string());
            text.push('.');
            rest = after;
        }
        if text.is_empty() { ".".to_owned() } else { text }
    }

    /// Its size in memory, roughly.
    pub fn len(&self) -> usize {
        self.name.len()
    }
}

/// Whether an answer asks to be asked for over TCP.
pub fn is_truncated(bytes: &[u8]) -> bool {
    word(bytes, 2).is_some_and(|flags| flags & TC != 0)
}

/// The answer's code without the upper bits.
pub fn short_code(bytes: &[u8]) -> ResponseCode {
    ResponseCode::from_low(word(bytes, 2).map_or(0, |flags| (flags & RCODE) as u8))
}

/// An answer to what could not be read: the header alone.
fn bare(query: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut bytes = query[..HEADER_BYTES].to_vec();
    let flags = word(&bytes, 2).unwrap_or_default();
    put(&mut bytes, 2, QR | flags & (OPCODE | RD) | u16::from(code) & RCODE);
    set_counts(&mut bytes, [0; 4]);
    bytes
}

fn append_opt(bytes: &mut Vec<u8>, udp_bytes: u16, rcode: u16, dnssec_ok: bool) {
    bytes.push(0);
    bytes.extend(TYPE_OPT.to_be_bytes());
    bytes.extend(udp_bytes.to_be_bytes());
    let flags = u32::from(rcode >> 4) << 24 | if dnssec_ok { DO } else { 0 };
    bytes.extend(flags.to_be_bytes());
    bytes.extend([0, 0]);
    let additionals = word(bytes, 10).unwrap_or_default();
    put(bytes, 10, additionals.saturating_add(1));
}

fn only_hop_options(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let (Some(code), Some(len)) = (word(data, 0), word(data, 2)) else { return false };
        let Some(rest) = data.get(4 + usize::from(len)..).filter(|_| HOP_OPTIONS.contains(&code)) else { return false };
        data = rest;
    }
    true
}

/// `count` records from `at` on, and where they end.
fn records(bytes: &[u8], mut at: usize, count: usize) -> Option<(Vec<Record>, usize)> {
    // Each takes eleven bytes at least: a lie about their number costs no memory.
    let mut records = Vec::with_capacity(count.min(bytes.len() / 11));
    for _ in 0..count {
        let start = at;
        let fixed = skip_name(bytes, at)?;
        let (kind, class, ttl) = (word(bytes, fixed)?, word(bytes, fixed + 2)?, long(bytes, fixed + 4)?);
        let data = fixed + 10..fixed + 10 + usize::from(word(bytes, fixed + 8)?);
        bytes.get(data.clone())?;
        at = data.end;
        // A negative time to live is none (RFC 2181 section 8); in an OPT record the word is none.
        let ttl = if kind != TYPE_OPT && ttl > i32::MAX as u32 { 0 } else { ttl };
        records.push(Record { start, kind, class, ttl_at: fixed + 4, ttl, data });
    }
    Some((records, at))
}

/// Where the name ends that begins at `at`. What compression points to is not looked at.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            len if len & 0xc0 == 0 => at += 1 + usize::from(len),
            pointer if pointer & 0xc0 == 0xc0 => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        if at - start > MAX_NAME_BYTES {
            return None;
        }
    }
}

/// The name at `at`, which must not be compressed, in lower case, and its end.
fn name(bytes: &[u8], at: usize) -> Option<(Box<[u8]>, usize)> {
    let end = skip_name(bytes, at)?;
    let name = bytes.get(at..end)?;
    // Bytes of lengths are below 64, where there are no letters.
    let plain = name.last() == Some(&0) && name.len() <= MAX_NAME_BYTES && !is_compressed(name);
    plain.then(|| (name.to_ascii_lowercase().into(), end))
}

fn is_compressed(name: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&len) = name.get(at).filter(|len| **len != 0) {
        if len & 0xc0 != 0 {
            return true;
        }
        at += 1 + usize::from(len);
    }
    false
}

fn counts(bytes: &[u8]) -> Option<[u16; 4]> {
    Some([word(bytes, 4)?, word(bytes, 6)?, word(bytes, 8)?, word(bytes, 10)?])
}

fn set_counts(bytes: &mut [u8], counts: [u16; 4]) {
    for (at, count) in [4, 6, 8, 10].into_iter().zip(counts) {
        put(bytes, at, count);
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
