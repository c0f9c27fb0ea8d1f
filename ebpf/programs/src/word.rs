//! Words in packets: one load or store each, at any address.
//!
//! Headers begin behind fourteen bytes of Ethernet, so their words are not where the compiler wants words to be, and it would put
//! them together byte by byte. The machines that skiff runs on load them in one step, and there the
//! verifier lets programs do so.

use core::{arch::asm, array};

use skiff_ebpf_common::{Addr, Mac};

/// What can lie in a packet.
pub(crate) trait Word: Copy {
    /// Reads it.
    ///
    /// # Safety
    /// All of it lies in a packet or is otherwise the caller's to read.
    unsafe fn load(at: usize) -> Self;

    /// Writes it.
    ///
    /// # Safety
    /// All of it lies in a packet or is otherwise the caller's to write.
    unsafe fn store(self, at: usize);
}

macro_rules! word {
    ($($word:ty: $name:literal),*) => {$(
        impl Word for $word {
            #[inline(always)]
            unsafe fn load(at: usize) -> Self {
                let word: u64;
                // SAFETY: as the caller says. The upper part of the register is zero.
                unsafe {
                    asm!(concat!("{word} = *(", $name, " *)({at} + 0)"), at = in(reg) at, word = lateout(reg) word,
                        options(readonly, nostack, preserves_flags));
                }
                word as Self
            }

            #[inline(always)]
            unsafe fn store(self, at: usize) {
                // SAFETY: as the caller says.
                unsafe {
                    asm!(concat!("*(", $name, " *)({at} + 0) = {word}"), at = in(reg) at, word = in(reg) u64::from(self),
                        options(nostack, preserves_flags));
                }
            }
        }
    )*};
}

word!(u8: "u8", u16: "u16", u32: "u32", u64: "u64");

impl<W: Word, const N: usize> Word for [W; N] {
    #[inline(always)]
    unsafe fn load(at: usize) -> Self {
        // SAFETY: each lies within the whole.
        array::from_fn(|index| unsafe { W::load(at + index * size_of::<W>()) })
    }

    #[inline(always)]
    unsafe fn store(self, at: usize) {
        for (index, word) in self.into_iter().enumerate() {
            // SAFETY: each lies within the whole.
            unsafe { word.store(at + index * size_of::<W>()) };
        }
    }
}

impl Word for Mac {
    #[inline(always)]
    unsafe fn load(at: usize) -> Self {
        // SAFETY: as the caller says.
        Self(unsafe { Word::load(at) })
    }

    #[inline(always)]
    unsafe fn store(self, at: usize) {
        // SAFETY: as the caller says.
        unsafe { self.0.store(at) };
    }
}

impl Word for Addr {
    #[inline(always)]
    unsafe fn load(at: usize) -> Self {
        // SAFETY: as the caller says.
        Self(unsafe { Word::load(at) })
    }

    #[inline(always)]
    unsafe fn store(self, at: usize) {
        // SAFETY: as the caller says.
        unsafe { self.0.store(at) };
    }
}
