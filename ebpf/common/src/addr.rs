//! Addresses of both families.

/// An IP address as it lies in a packet: sixteen bytes in network byte order, IPv4 as `::ffff:a.b.c.d`.
///
/// One form for both families, so that one set of tables and one way through them serve both.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u32; 4]);

const MAPPED: u32 = 0xffff_u32.to_be();
const LOOPBACK_MASK: u32 = u32::from_ne_bytes([255, 0, 0, 0]);
const LOOPBACK_NET: u32 = u32::from_ne_bytes([127, 0, 0, 0]);

impl Addr {
    /// `::`, any IPv6 address.
    pub const ANY_V6: Self = Self([0; 4]);
    /// `0.0.0.0`, any IPv4 address.
    pub const ANY_V4: Self = Self::v4(0);

    /// An IPv4 address, given in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(addr: u32) -> Self {
        Self([0, 0, MAPPED, addr])
    }

    /// From the bytes of an IPv6 address.
    #[must_use]
    pub const fn from_octets(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The bytes of the IPv6 address.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let [one, two, three, four] = self.0;
        let [a, b, c, d] = one.to_ne_bytes();
        let [e, f, g, h] = two.to_ne_bytes();
        let [i, j, k, l] = three.to_ne_bytes();
        let [m, n, o, p] = four.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [one, two, three, _] = self.0;
        one == 0 && two == 0 && three == MAPPED
    }

    /// The IPv4 address in network byte order; of an IPv6 address the last four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(&self) -> u32 {
        let [_, _, _, last] = self.0;
        last
    }

    /// Any address of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn any(&self) -> Self {
        if self.is_v4() {
            Self::ANY_V4
        } else {
            Self::ANY_V6
        }
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        let [one, two, three, four] = self.0;
        if self.is_v4() {
            four & LOOPBACK_MASK == LOOPBACK_NET
        } else {
            one == 0 && two == 0 && three == 0 && four == 1_u32.to_be()
        }
    }
}
