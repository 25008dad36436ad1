//! Dispatch in the kernel: how a connect hook finds an endpoint by itself, and what it tells of the connection afterwards.
//!
//! Before it: the policy has decided that the connection is taken. After it: the hook writes the endpoint into the connect,
//! and `sock_ops` tells the agent of the connection's beginning and end by [`ConnectionEvent`]s. The agent writes the
//! tables; which endpoints are in them, and how often, is its business. Pure code; the same in the kernel and in the tests.
//!
//! A destination leads to a [`Choice`], which is one word: a hook sees the old one or the new one, whole. A choice names a
//! slice of the array of [`Slot`]s. Another set of endpoints is another slice, so a slice never changes while a choice
//! names it.

use crate::{
    addr::{Endpoint, Ip},
    flow::ProcessStamp,
};

/// How one slot of a slice is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Draw {
    /// No slot: the agent serves the connection.
    Agent = 0,
    /// In turn, for each CPU.
    InTurn = 1,
    /// At random.
    Random = 2,
    /// By [`client_hash`], so that a client stays with an endpoint: the slice is laid out as a consistent table.
    Hashed = 3,
}

/// What stands for the address of a client that connects, which has none yet: the address that its socket is bound to, or
/// else its network namespace, which in a pod is as good as an address. Cookies of namespaces are small numbers in a row, and
/// addresses differ in a few bits: both are mixed until each bit hangs on all of them.
#[inline(always)]
#[must_use]
pub const fn client_hash(bound: Ip, netns_cookie: u64) -> u32 {
    let mixed = if bound.is_unspecified() {
        mix(netns_cookie)
    } else {
        let [a, b, c, d] = bound.words();
        mix(mix(a as u64 | (b as u64) << 32) ^ (c as u64 | (d as u64) << 32))
    };
    (mixed >> 32) as u32
}

/// The finalizer of splitmix64 (Steele and others, "Fast splittable pseudorandom number generators", 2014).
#[inline(always)]
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// How many slots a slice may have: as many as its count in a [`Choice`] can say.
pub const SLICE_SLOTS_MAX: u32 = 0xffff;

/// What becomes of connections to one destination: the slice of slots, and how one of them is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The first slot.
    pub first: u32,
    /// How many there are, at most [`SLICE_SLOTS_MAX`].
    pub slots: u16,
    pub draw: Draw,
}

impl Choice {
    /// The agent serves the connection.
    pub const AGENT: Self = Self { first: 0, slots: 0, draw: Draw::Agent };

    /// The word in the map.
    #[must_use]
    pub const fn word(self) -> u64 {
        self.first as u64 | (self.slots as u64) << 32 | (self.draw as u64) << 48
    }

    /// From the word in the map. What this layout does not know is the agent's.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let draw = match (word >> 48) as u8 {
            1 => Draw::InTurn,
            2 => Draw::Random,
            3 => Draw::Hashed,
            _ => return Self::AGENT,
        };
        Self { first: word as u32, slots: (word >> 32) as u16, draw }
    }

    /// The slot that `number`, a turn, a random number or a hash, leads to; `None`: the agent serves the connection.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, number: u32) -> Option<u32> {
        if self.slots == 0 {
            return None;
        }
        Some(self.first.wrapping_add(number % self.slots as u32))
    }
}

/// One place in a slice: an endpoint, and what the agent calls it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Where the connection goes; none, with a [`Self::target`]: where it was going anyway.
    pub endpoint: Endpoint,
    /// The agent's number for the listener, the cluster and the endpoint together; 0: no endpoint takes traffic, and the
    /// agent serves the connection.
    pub target: u32,
}

const _: () = assert!(size_of::<Slot>() == 24);

impl Slot {
    /// No endpoint takes traffic.
    pub const NONE: Self = Self { endpoint: Endpoint::NONE, target: 0 };
}

/// What is remembered on the socket of a connection that was dispatched, beside what every client's socket has.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dispatched {
    /// When the endpoint answered, `CLOCK_MONOTONIC` in nanoseconds; 0: not yet.
    pub established_ns: u64,
    /// Payload received when the endpoint had acknowledged the end of what the client sends.
    pub received_at_half_close: u64,
    /// [`Slot::target`]; 0: the connection was not dispatched.
    pub target: u32,
    /// [`mark`]s.
    pub marks: u32,
}

const _: () = assert!(size_of::<Dispatched>() == 24);

impl Dispatched {
    /// Of a connection that was not dispatched.
    pub const NOT: Self = Self::to(0);

    /// Of one that is about to begin.
    #[inline(always)]
    #[must_use]
    pub const fn to(target: u32) -> Self {
        Self { established_ns: 0, received_at_half_close: 0, target, marks: 0 }
    }
}

/// Bits of [`Dispatched::marks`].
pub mod mark {
    /// The agent was told of the beginning.
    pub const OPENED: u32 = 1;
    /// The endpoint has ended what it sends; TCP counts that as a byte.
    pub const ENDPOINT_ENDED: u32 = 1 << 1;
    /// The endpoint has acknowledged the end of what the client sends; TCP counts that as a byte.
    pub const CLIENT_END_ACKNOWLEDGED: u32 = 1 << 2;
    /// The agent was told of the end.
    pub const CLOSED: u32 = 1 << 3;
}

/// Which end of its life a connection is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Moment {
    /// Its SYN is about to leave.
    Opened = 1,
    /// Its socket is closed.
    Closed = 2,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Ending {
    /// Both sides have ended what they send.
    Complete = 0,
    /// The endpoint did not answer, or refused.
    NotConnected = 1,
    /// Cut short: reset by one of the sides, or given up by the kernel.
    Reset = 2,
}

/// `TCP_*` of `<net/tcp_states.h>`, as far as they tell something.
pub mod state {
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const TIME_WAIT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const CLOSE_WAIT: u32 = 8;
    pub const LAST_ACK: u32 = 9;
    pub const CLOSING: u32 = 11;
}

impl Ending {
    /// By the state before the last, and whether all that was sent is acknowledged.
    #[inline(always)]
    #[must_use]
    pub const fn from_state(before: u32, all_acknowledged: bool) -> Self {
        match before {
            state::SYN_SENT => Self::NotConnected,
            state::FIN_WAIT2 | state::TIME_WAIT => Self::Complete,
            state::LAST_ACK | state::CLOSING if all_acknowledged => Self::Complete,
            _ => Self::Reset,
        }
    }

    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Complete),
            1 => Some(Self::NotConnected),
            2 => Some(Self::Reset),
            _ => None,
        }
    }
}

/// What TCP has counted of a connection, as `bpf_sock_ops` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpBytes {
    /// `bytes_acked`: begins to count at the SYN.
    pub acked: u64,
    /// `bytes_received`.
    pub received: u64,
}

impl TcpBytes {
    /// Payload alone, from the client and to the client: without what TCP counts for the beginning and the end of each
    /// direction.
    #[inline(always)]
    #[must_use]
    pub const fn payload(self, dispatched: &Dispatched) -> (u64, u64) {
        let syn = (dispatched.established_ns != 0) as u64;
        let client_end = (dispatched.marks & mark::CLIENT_END_ACKNOWLEDGED != 0) as u64;
        let endpoint_end = (dispatched.marks & mark::ENDPOINT_ENDED != 0) as u64;
        (self.acked.saturating_sub(syn + client_end), self.received.saturating_sub(endpoint_end))
    }
}

/// One moment of one connection, as it goes through the ring.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionEvent {
    /// Who connected, and when.
    pub process: ProcessStamp,
    pub original_dst: Endpoint,
    pub client: Endpoint,
    pub endpoint: Endpoint,
    /// [`Slot::target`].
    pub target: u32,
    /// Of the client's socket: the same at both moments.
    pub cookie: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// As [`Dispatched::established_ns`].
    pub established_ns: u64,
    /// Payload from the client, as far as the endpoint has acknowledged it.
    pub bytes_from_client: u64,
    /// Payload to the client.
    pub bytes_to_client: u64,
    /// Round-trip time, smoothed, microseconds; 0: not measured.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// [`Moment`].
    pub moment: u32,
    /// [`Ending`]; meaningless at the beginning.
    pub ending: u32,
    /// [`mark`]s.
    pub marks: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<ConnectionEvent>() == 176 && align_of::<ConnectionEvent>() == 8);

impl ConnectionEvent {
    #[must_use]
    pub const fn moment(&self) -> Option<Moment> {
        match self.moment {
            1 => Some(Moment::Opened),
            2 => Some(Moment::Closed),
            _ => None,
        }
    }

    #[must_use]
    pub const fn ending(&self) -> Option<Ending> {
        Ending::from_raw(self.ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_choice_survives_its_word_and_an_unknown_one_is_the_agents() {
        for draw in [Draw::Agent, Draw::InTurn, Draw::Random, Draw::Hashed] {
            let choice = Choice { first: u32::MAX, slots: u16::MAX, draw };
            let back = Choice::from_word(choice.word());
            assert_eq!(back, if draw == Draw::Agent { Choice::AGENT } else { choice });
        }
        assert_eq!(Choice::from_word(9 << 48 | 1 << 32), Choice::AGENT);
        assert_eq!(Choice::from_word(0), Choice::AGENT);
        assert_eq!(Choice::AGENT.slot(7), None);
    }

    #[test]
    fn clients_are_told_apart_by_bound_address_or_else_by_namespace() {
        let ip = |text: &str| text.parse::<core::net::IpAddr>().map(Ip::from).expect("an address");
        for unbound in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
            assert_eq!(client_hash(ip(unbound), 7), client_hash(ip("::"), 7));
        }
        assert_ne!(client_hash(ip("::"), 7), client_hash(ip("::"), 8));
        assert_eq!(client_hash(ip("10.0.0.1"), 7), client_hash(ip("::ffff:10.0.0.1"), 8), "whatever the namespace");
    }

    /// Small numbers in a row, and addresses of one network, are spread as random ones would be.
    #[test]
    fn neighbours_are_spread() {
        const SLOTS: u32 = 16;
        let mut of_namespaces = [0_u32; SLOTS as usize];
        let mut of_addresses = [0_u32; SLOTS as usize];
        for number in 1..=4096_u32 {
            of_namespaces[(client_hash(Ip::from_words([0; 4]), number.into()) % SLOTS) as usize] += 1;
            let address = core::net::Ipv4Addr::from(0x0a00_0000 + number);
            of_addresses[(client_hash(address.into(), 1) % SLOTS) as usize] += 1;
        }
        for counts in [of_namespaces, of_addresses] {
            // 256 each; five standard deviations of a random draw are 78.
            assert!(counts.iter().all(|count| count.abs_diff(256) < 78), "{counts:?}");
        }
    }

    #[test]
    fn the_last_states_tell_how_it_ended() {
        for (before, acknowledged, ending) in [
            (state::SYN_SENT, true, Ending::NotConnected),
            (state::ESTABLISHED, true, Ending::Reset),
            (state::CLOSE_WAIT, true, Ending::Reset),
            (state::FIN_WAIT1, false, Ending::Reset),
            (state::FIN_WAIT2, true, Ending::Complete),
            (state::LAST_ACK, true, Ending::Complete),
            (state::LAST_ACK, false, Ending::Reset),
            (state::CLOSING, true, Ending::Complete),
        ] {
            assert_eq!(Ending::from_state(before, acknowledged), ending, "{before} {acknowledged}");
        }
    }

    #[test]
    fn payload_is_what_tcp_counts_without_the_ends() {
        let tcp = TcpBytes { acked: 102, received: 51 };
        let both = mark::CLIENT_END_ACKNOWLEDGED | mark::ENDPOINT_ENDED;
        for (established_ns, marks, payload) in
            [(1, both, (100, 50)), (1, 0, (101, 51)), (1, mark::ENDPOINT_ENDED, (101, 50)), (0, 0, (102, 51))]
        {
            let dispatched = Dispatched { established_ns, marks, ..Dispatched::to(1) };
            assert_eq!(tcp.payload(&dispatched), payload);
        }
        assert_eq!(TcpBytes::default().payload(&Dispatched { marks: both, ..Dispatched::to(1) }), (0, 0));
    }

    proptest! {
        #[test]
        fn every_number_leads_into_the_slice(first in 0..u32::MAX / 2, slots in 1..=u16::MAX, number: u32) {
            let slot = Choice { first, slots, draw: Draw::InTurn }.slot(number).expect("a slot");
            prop_assert!(slot >= first && slot - first < u32::from(slots));
        }
    }
}
