//! Ones' complement sums (RFC 1071, RFC 1624), over words as they lie in memory: which order their bytes have does not matter.

use skiff_ebpf_common::Addr;

/// Brings a sum down to 16 bits.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "nothing is left above")]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What a change of words adds to a sum over them.
#[inline(always)]
#[must_use]
pub const fn change(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}

/// What a change of an address adds.
#[inline(always)]
#[must_use]
pub const fn addr_change(old: &Addr, new: &Addr) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (old.0, new.0);
    change(a, e) + change(b, f) + change(c, g) + change(d, h)
}

/// A checksum after what it covers has changed by `delta`.
#[inline(always)]
#[must_use]
pub const fn update(checksum: u16, delta: u16) -> u16 {
    !fold((!checksum) as u64 + delta as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checksum(words: &[u32]) -> u16 {
        !fold(words.iter().map(|word| u64::from(*word)).sum())
    }

    proptest! {
        /// Changing a checksum gives the same as computing it anew.
        #[test]
        fn prop_a_changed_checksum_is_that_of_the_changed_words(
            old in prop::collection::vec(any::<u32>(), 4), new in prop::array::uniform4(any::<u32>()), rest in 1_u32..
        ) {
            let before = Addr([old[0], old[1], old[2], old[3]]);
            let delta = fold(addr_change(&before, &Addr(new)));
            let (a, b) = ([&old[..], &[rest]].concat(), [&new[..], &[rest]].concat());
            prop_assert_eq!(update(checksum(&a), delta), checksum(&b));
        }
    }
}
