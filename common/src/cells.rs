//! Where the kernel's side keeps what the usual connection needs: arrays whose places are found by arithmetic.
//!
//! Before it: the connect hooks remember an application's connection in a [`ClientSlot`], by the cookie of its socket.
//! After it: `sock_ops` copies it into a [`HandoverCell`], by the addresses of both ends, and the agent takes it out of
//! there, in its own memory and without a system call. A place is one of many that a connection could have had: when
//! another one is in it, the connection takes the way that is always open (socket storage, and the hash of handshakes in
//! flight), which costs more.
//!
//! Each place has one word, which says whose it is and how far it has come ([`Stage`]). Everybody changes it by
//! comparing and swapping the whole word, and no two connections ever have the same one, so what was read under a word
//! that is still there was read whole.

use crate::{
    addr::Endpoint,
    flow::{FlowKey, ProcessStamp, Role, SocketState},
};

/// How far the connection of a place has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Stage {
    /// Somebody writes it, or (of a slot) its SYN has not left yet.
    Claimed = 1,
    /// The SYN is about to leave, or has left.
    Published = 2,
    /// Of a cell: both ends know of it; the accepted socket's side is the one that empties it. Of a slot: as `Published`, and
    /// the connection is in no cell but in the hash of handshakes.
    Established = 3,
}

/// Whose place it is, and its [`Stage`]. Zero: nobody's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word(pub u64);

const STAGE_BITS: u32 = 2;
const STAGE_MASK: u64 = (1 << STAGE_BITS) - 1;

impl Word {
    pub const FREE: Self = Self(0);

    /// `owner`: of a slot the cookie of the socket, of a cell the time of the connect, in nanoseconds; both have two bits to
    /// spare.
    #[inline(always)]
    #[must_use]
    pub const fn new(owner: u64, stage: Stage) -> Self {
        Self(owner << STAGE_BITS | stage as u64)
    }

    #[inline(always)]
    #[must_use]
    pub const fn owner(self) -> u64 {
        self.0 >> STAGE_BITS
    }

    #[inline(always)]
    #[must_use]
    pub const fn is(self, stage: Stage) -> bool {
        self.0 & STAGE_MASK == stage as u64
    }

    /// Of a slot: it is that of the socket with this cookie, and its SYN has left.
    #[inline(always)]
    #[must_use]
    pub const fn has_departed(self, cookie: u64) -> bool {
        self.owner() == cookie && (self.is(Stage::Published) || self.is(Stage::Established))
    }

    /// The same connection at another stage.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, stage: Stage) -> Self {
        Self(self.0 & !STAGE_MASK | stage as u64)
    }
}

/// What a connection brings to the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    pub process: ProcessStamp,
    /// Where the application wanted to go.
    pub original_dst: Endpoint,
    reserved: u32,
}

const _: () = assert!(size_of::<Origin>() == 72);

impl Origin {
    #[inline(always)]
    #[must_use]
    pub const fn new(process: ProcessStamp, original_dst: Endpoint) -> Self {
        Self { process, original_dst, reserved: 0 }
    }

    /// The same as socket storage has it.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self, role: Role) -> SocketState {
        SocketState::new(role, self.original_dst, self.process)
    }
}

/// Slots of clients. Cookies count upwards on each CPU, so connections meet in a slot only when so many others have begun
/// since. 80 bytes each.
pub const CLIENT_SLOTS: u32 = 32_768;

/// Cells of connections that the agent has not accepted yet: some microseconds each, so a few at once. The agent maps
/// them into its memory, 128 bytes each.
pub const HANDOVER_CELLS: u32 = 1_024;

/// A place whose connection began so long ago and has not come further is free for the next one: the socket is gone
/// without a word (its connect has failed before the SYN), or will find no agent that waits for it.
pub const STALE_NS: u64 = 600 * 1_000_000_000;

const _: () = assert!(CLIENT_SLOTS.is_power_of_two() && HANDOVER_CELLS.is_power_of_two());

/// A client whose connection was redirected to the agent, from the connect to the end of the connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientSlot {
    /// By the cookie of the client's socket.
    pub word: u64,
    pub origin: Origin,
}

const _: () = assert!(size_of::<ClientSlot>() == 80);

impl ClientSlot {
    /// The place of a socket.
    #[inline(always)]
    #[must_use]
    pub const fn index(cookie: u64) -> u32 {
        cookie as u32 & (CLIENT_SLOTS - 1)
    }

    /// What is known of the socket with this cookie, if it is its slot and its SYN has left.
    #[must_use]
    pub fn published(&self, cookie: u64) -> Option<&Origin> {
        Word(self.word).has_departed(cookie).then_some(&self.origin)
    }
}

/// A connection on its way from the client's socket to the accepted one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandoverCell {
    /// By the time of the connect.
    pub word: u64,
    pub key: FlowKey,
    pub origin: Origin,
}

const _: () = assert!(size_of::<HandoverCell>() == 128);

impl HandoverCell {
    /// The place of a connection. Multiplication by the golden ratio spreads ports, which differ most, over all cells.
    #[inline(always)]
    #[must_use]
    pub const fn index(key: &FlowKey) -> u32 {
        let [a, b, c, d] = key.client().ip().words();
        let ip = (a as u64 ^ c as u64) << 32 | (b as u64 ^ d as u64);
        let mixed = (ip.rotate_left(29) ^ key.netns_cookie().rotate_left(17) ^ key.client().port() as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (u64::BITS - HANDOVER_CELLS.trailing_zeros())) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ip;
    use core::net::Ipv4Addr;

    #[test]
    fn a_word_keeps_its_owner_and_its_stage() {
        let word = Word::new(u64::MAX >> 2, Stage::Published);
        assert_eq!((word.owner(), word.is(Stage::Published), word.is(Stage::Claimed)), (u64::MAX >> 2, true, false));
        assert_eq!(word.at(Stage::Established), Word::new(u64::MAX >> 2, Stage::Established));
        assert_ne!(Word::new(0, Stage::Claimed), Word::FREE);
    }

    #[test]
    fn ports_that_follow_each_other_have_places_of_their_own() {
        let key = |port: u16| {
            let ip = Ip::from(Ipv4Addr::LOCALHOST);
            FlowKey::new(7, Endpoint::new(ip, port), Endpoint::new(ip, 15001))
        };
        for step in [1, 2] {
            let mut places: std::vec::Vec<_> = (0..600).map(|n| HandoverCell::index(&key(32_768 + n * step))).collect();
            assert!(places.iter().all(|&place| place < HANDOVER_CELLS));
            places.sort_unstable();
            places.dedup();
            assert!(places.len() > 500, "{} places for 600 ports", places.len());
        }
    }

    #[test]
    fn a_slot_speaks_of_its_own_socket_only_and_not_before_the_syn() {
        let origin = Origin::new(ProcessStamp::NONE, Endpoint::NONE);
        let slot = ClientSlot { word: Word::new(5, Stage::Published).0, origin };
        assert_eq!((slot.published(5), slot.published(5 + u64::from(CLIENT_SLOTS))), (Some(&origin), None));
        let slot = ClientSlot { word: Word::new(5, Stage::Established).0, origin };
        assert_eq!((slot.published(5), slot.published(6)), (Some(&origin), None));
        let slot = ClientSlot { word: Word::new(5, Stage::Claimed).0, origin };
        assert_eq!(slot.published(5), None);
    }
}
