//! Hardware addresses.

/// An Ethernet address as it lies in a frame, in three words: programs read and compare those.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mac(pub [u16; 3]);

impl Mac {
    /// From its bytes.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self([
            u16::from_ne_bytes([a, b]),
            u16::from_ne_bytes([c, d]),
            u16::from_ne_bytes([e, f]),
        ])
    }
}
