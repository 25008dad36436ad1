//! The policies in the kernel: each distinct one once, however many network namespaces it holds in.
//!
//! Before it: `policy` has compiled them. After it: `namespaces` writes their numbers into the entries of network
//! namespaces. A policy that nobody holds any more stays until the next change: a hook may still be reading it.

use std::collections::BTreeMap;

use super::{
    KernelError, maps,
    policy::{Compiled, Node},
};

/// The trie, and who uses what of it.
pub(super) struct Policies {
    trie: maps::Trie,
    held: BTreeMap<u32, Held>,
    last: u32,
}

struct Held {
    policy: Compiled,
    users: usize,
}

impl Policies {
    /// `trie`: empty.
    pub(super) fn new(trie: maps::Trie) -> Self {
        Self { trie, held: BTreeMap::new(), last: 0 }
    }

    /// The number of `policy`, which is in the kernel from now on until it is released as often as it was acquired.
    ///
    /// # Errors
    /// There is no room for it; nothing of it stays.
    pub(super) fn acquire(&mut self, policy: &Compiled) -> Result<u32, KernelError> {
        if let Some((&id, held)) = self.held.iter_mut().find(|(_, held)| held.policy == *policy) {
            held.users += 1;
            return Ok(id);
        }
        self.remove_unused()?;
        let id = self.unused_id();
        if let Err(error) = maps::write_policy(&mut self.trie, id, policy.nodes()) {
            // What stays all the same is never found, and overwritten when the number comes round again.
            let _ = self.remove(id, policy.nodes());
            return Err(error);
        }
        self.held.insert(id, Held { policy: policy.clone(), users: 1 });
        self.last = id;
        Ok(id)
    }

    /// One user less; 0 is nobody's.
    pub(super) fn release(&mut self, id: u32) {
        if let Some(held) = self.held.get_mut(&id) {
            held.users = held.users.saturating_sub(1);
        }
    }

    fn remove_unused(&mut self) -> Result<(), KernelError> {
        let unused: Vec<_> = self.held.iter().filter(|(_, held)| held.users == 0).map(|(&id, _)| id).collect();
        for id in unused {
            if let Some(held) = self.held.remove(&id) {
                self.remove(id, held.policy.nodes())?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, id: u32, nodes: &[Node]) -> Result<(), KernelError> {
        nodes.iter().try_for_each(|node| maps::remove_node(&mut self.trie, id, node.prefix))
    }

    /// Numbers are given out in turn, so that a hook that is slow does not find another policy under an old one.
    fn unused_id(&self) -> u32 {
        let mut id = self.last;
        loop {
            id = id.wrapping_add(1).max(1);
            if !self.held.contains_key(&id) {
                return id;
            }
        }
    }
}
