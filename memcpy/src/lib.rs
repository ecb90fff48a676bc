//! `memcpy` and `memmove` for static binaries on x86-64, where musl's are slow.
//!
//! musl copies every length by `rep movsq` and, when source and destination overlap the wrong way, by `rep movsb` backwards
//! (`src/string/x86_64/`). Starting a `rep` costs tens of cycles, more than a whole copy of the usual length, and backwards it
//! moves a byte at a time. What the compiler does not copy in place goes through these two functions: fields of futures,
//! headers, packets. A program that names this crate (`use tp_memcpy as _;`) has them replaced, since the linker takes the first
//! definition that it finds and libc's archive comes last. On other targets the crate is empty: there libc's are good.
//!
//! Up to two blocks of 64 bytes all of the source is loaded before anything is stored, so overlaps need no care. Beyond it, blocks of
//! that size are copied to aligned addresses, from the end that an overlap allows; the unaligned bytes at both ends are
//! loaded first and stored last.

#![no_std]
// A loop that copies is what compilers turn into a call of memcpy.
#![no_builtins]
#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "these are the functions that copying is made of")]

use core::arch::x86_64::__m128i;

/// A vector register that every x86-64 has.
type Vector = __m128i;
/// Registers, and not an array, which would pass through the stack.
type Block = (Vector, Vector, Vector, Vector);

const VECTOR_BYTES: usize = size_of::<Vector>();
const BLOCK_BYTES: usize = 4 * VECTOR_BYTES;

/// Longest copy that is loaded whole before it is stored.
const SHORT_BYTES: usize = 2 * BLOCK_BYTES;

/// Copies `len` bytes; the ranges must not overlap, and do no harm if they do.
///
/// # Safety
/// As for [`core::ptr::copy`].
#[cfg(target_env = "musl")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { copy(to, from, len) };
    to
}

/// Copies `len` bytes; the ranges may overlap.
///
/// # Safety
/// As for [`core::ptr::copy`].
#[cfg(target_env = "musl")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { copy(to, from, len) };
    to
}

/// # Safety
/// As for [`core::ptr::copy`].
#[cfg_attr(not(any(test, target_env = "musl")), expect(dead_code, reason = "libc's is good there"))]
#[inline(always)]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: every part lies within the `len` bytes that may be read and written.
    unsafe {
        if len > SHORT_BYTES {
            // Where the destination begins before the source, its distance as an unsigned number is large.
            if to.addr().wrapping_sub(from.addr()) >= len {
                forwards(to, from, len);
            } else {
                backwards(to, from, len);
            }
        } else if len >= BLOCK_BYTES {
            let (head, tail) = (load_block(from), load_block(from.add(len - BLOCK_BYTES)));
            store_block(to, head);
            store_block(to.add(len - BLOCK_BYTES), tail);
        } else if len >= 2 * VECTOR_BYTES {
            let last = len - 2 * VECTOR_BYTES;
            let head = (load::<Vector>(from), load::<Vector>(from.add(VECTOR_BYTES)));
            both_ends::<Vector>(to.add(last), from.add(last), 2 * VECTOR_BYTES);
            store(to, head.0);
            store(to.add(VECTOR_BYTES), head.1);
        } else if len >= VECTOR_BYTES {
            both_ends::<Vector>(to, from, len);
        } else if len >= 8 {
            both_ends::<u64>(to, from, len);
        } else if len >= 4 {
            both_ends::<u32>(to, from, len);
        } else if len >= 2 {
            both_ends::<u16>(to, from, len);
        } else if len == 1 {
            *to = *from;
        }
    }
}

/// Copies from one to two `T`, which overlap in the middle.
#[inline(always)]
unsafe fn both_ends<T: Copy>(to: *mut u8, from: *const u8, len: usize) {
    let last = len - size_of::<T>();
    // SAFETY: `len` is at least the size of a `T`.
    unsafe {
        let (head, tail) = (load::<T>(from), load::<T>(from.add(last)));
        store(to, head);
        store(to.add(last), tail);
    }
}

/// Copies more than two blocks, the first bytes first.
#[inline(always)]
unsafe fn forwards(to: *mut u8, from: *const u8, len: usize) {
    let last = len - BLOCK_BYTES;
    // SAFETY: `at` stays below `last`, so that no block ends behind the ranges.
    unsafe {
        let (head, tail) = (load::<Vector>(from), load_block(from.add(last)));
        let mut at = VECTOR_BYTES - to.addr() % VECTOR_BYTES;
        while at < last {
            store_block(to.add(at), load_block(from.add(at)));
            at += BLOCK_BYTES;
        }
        store(to, head);
        store_block(to.add(last), tail);
    }
}

/// Copies more than two blocks, the last bytes first.
#[inline(always)]
unsafe fn backwards(to: *mut u8, from: *const u8, len: usize) {
    let last = len - VECTOR_BYTES;
    // SAFETY: `end` stays above a block, so that none begins before the ranges.
    unsafe {
        let (head, tail) = (load_block(from), load::<Vector>(from.add(last)));
        let mut end = len - to.addr().wrapping_add(len) % VECTOR_BYTES;
        while end > BLOCK_BYTES {
            end -= BLOCK_BYTES;
            store_block(to.add(end), load_block(from.add(end)));
        }
        store(to.add(last), tail);
        store_block(to, head);
    }
}

#[inline(always)]
unsafe fn load<T: Copy>(from: *const u8) -> T {
    // SAFETY: the caller's promise, that a `T` may be read there.
    unsafe { from.cast::<T>().read_unaligned() }
}

#[inline(always)]
unsafe fn store<T: Copy>(to: *mut u8, value: T) {
    // SAFETY: the caller's promise, that a `T` may be written there.
    unsafe { to.cast::<T>().write_unaligned(value) }
}

#[inline(always)]
unsafe fn load_block(from: *const u8) -> Block {
    let vectors = from.cast::<Vector>();
    // SAFETY: the caller's promise, that a block may be read there.
    unsafe {
        (
            vectors.read_unaligned(),
            vectors.add(1).read_unaligned(),
            vectors.add(2).read_unaligned(),
            vectors.add(3).read_unaligned(),
        )
    }
}

#[inline(always)]
unsafe fn store_block(to: *mut u8, block: Block) {
    let vectors = to.cast::<Vector>();
    // SAFETY: the caller's promise, that a block may be written there.
    unsafe {
        vectors.write_unaligned(block.0);
        vectors.add(1).write_unaligned(block.1);
        vectors.add(2).write_unaligned(block.2);
        vectors.add(3).write_unaligned(block.3);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const AREA_BYTES: usize = 2048;

    /// What `copy` makes of an area of different bytes.
    fn copied(to: usize, from: usize, len: usize) -> (Vec<u8>, Vec<u8>) {
        let mut area: Vec<_> = (0..AREA_BYTES).map(|at| (at % 251) as u8).collect();
        let mut expected = area.clone();
        expected.copy_within(from..from + len, to);
        assert!(to.max(from) + len <= AREA_BYTES);
        let start = area.as_mut_ptr();
        // SAFETY: both ranges are inside the area.
        unsafe { copy(start.add(to), start.add(from), len) };
        (area, expected)
    }

    #[test]
    fn every_short_length_is_copied_at_every_alignment() {
        for len in 0..4 * BLOCK_BYTES {
            for offset in 0..VECTOR_BYTES {
                for (to, from) in [(offset, 1024), (1024, offset), (1024 + offset, 0)] {
                    let (area, expected) = copied(to, from, len);
                    assert!(area == expected, "{len} bytes from {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn every_overlap_is_copied_as_if_there_were_none() {
        for len in [15, 31, 63, 64, 128, 129, 130, 191, 192, 193, 500] {
            for distance in 0..=len {
                for (to, from) in [(distance, 0), (0, distance), (distance + 3, 3), (3, distance + 3)] {
                    let (area, expected) = copied(to, from, len);
                    assert!(area == expected, "{len} bytes from {from} to {to}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_else_is_touched(to in 0..AREA_BYTES, from in 0..AREA_BYTES, len in 0..AREA_BYTES) {
            let len = len.min(AREA_BYTES - to.max(from));
            let (area, expected) = copied(to, from, len);
            prop_assert!(area == expected);
        }
    }
}
