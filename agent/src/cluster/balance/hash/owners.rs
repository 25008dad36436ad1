//! Whose each place of a table is, in as few bytes as the number of endpoints needs.

/// Indexes of endpoints.
#[derive(Debug)]
pub enum Owners {
    /// Up to 256 endpoints.
    Few(Box<[u8]>),
    /// Up to 65,536.
    Many(Box<[u16]>),
    /// More.
    Most(Box<[u32]>),
}

impl Owners {
    /// Of places that belong to these, which are all below `endpoints`.
    pub fn new(owners: impl ExactSizeIterator<Item = usize>, endpoints: usize) -> Self {
        // Below `endpoints` means that none is cut short.
        match endpoints {
            0..=0x100 => Self::Few(owners.map(|owner| owner as u8).collect()),
            0x101..=0x1_0000 => Self::Many(owners.map(|owner| owner as u16).collect()),
            _ => Self::Most(owners.map(|owner| owner as u32).collect()),
        }
    }

    /// How many places there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Few(owners) => owners.len(),
            Self::Many(owners) => owners.len(),
            Self::Most(owners) => owners.len(),
        }
    }

    /// Whose the place is; it has to be below [`Self::len`].
    fn at(&self, place: usize) -> usize {
        match self {
            Self::Few(owners) => owners[place].into(),
            Self::Many(owners) => owners[place].into(),
            Self::Most(owners) => owners[place] as usize,
        }
    }

    /// Whose the places are from `start` on, once round.
    pub fn from(&self, start: usize) -> impl Iterator<Item = usize> {
        let length = self.len();
        (start..length).chain(0..start.min(length)).map(|place| self.at(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_endpoints_has_room() {
        for endpoints in [1, 0x100, 0x101, 0x1_0000, 0x1_0001] {
            let owners = Owners::new([0, endpoints - 1, endpoints / 2].into_iter(), endpoints);
            assert_eq!(owners.from(1).collect::<Vec<_>>(), [endpoints - 1, endpoints / 2, 0], "{endpoints}");
        }
        assert_eq!(Owners::new(std::iter::empty(), 0).from(0).count(), 0);
    }
}
