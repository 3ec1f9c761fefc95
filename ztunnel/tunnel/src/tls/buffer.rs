//! Buffers for records, kept in a free list of each thread. A stream borrows one only while it
//! holds bytes, so an idle stream costs nothing, and because the list is last-in first-out the
//! streams of a thread keep working in memory that is warm in the cache.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use super::record::{FULL_RECORD, LARGEST_RECORD};

/// Kept free behind the application's records for alerts and key updates.
pub(super) const CONTROL_RESERVE: usize = 512;
/// Bytes of a large buffer: an HTTP/2 frame of 256 KiB with its header leaves in one write, which
/// takes sixteen full records and a short one.
pub(super) const LARGE: usize = 17 * FULL_RECORD + CONTROL_RESERVE;
/// Bytes of a small buffer: any one record and the reserve. The rest of a large buffer moves here
/// when the stream has to wait for the peer.
pub(super) const SMALL: usize = LARGEST_RECORD + CONTROL_RESERVE;

/// How many unused large buffers a thread keeps (about 1 MiB).
const KEEP_LARGE: usize = 4;
/// How many unused small buffers a thread keeps (about 270 KiB).
const KEEP_SMALL: usize = 16;

thread_local! {
    static FREE: RefCell<Free> = const { RefCell::new(Free { large: Vec::new(), small: Vec::new() }) };
}

struct Free {
    large: Vec<Vec<u8>>,
    small: Vec<Vec<u8>>,
}

/// Initialised bytes of one of the two sizes; returned to the thread's free list when dropped. A
/// buffer may hold bytes of an earlier stream: only bytes that were written since are read.
pub(super) struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// A buffer of [`LARGE`] bytes.
    pub(super) fn large() -> Self {
        let kept = FREE
            .try_with(|free| free.borrow_mut().large.pop())
            .ok()
            .flatten();
        Self {
            bytes: kept.unwrap_or_else(|| vec![0; LARGE]),
        }
    }

    /// A buffer of [`SMALL`] bytes.
    pub(super) fn small() -> Self {
        let kept = FREE
            .try_with(|free| free.borrow_mut().small.pop())
            .ok()
            .flatten();
        Self {
            bytes: kept.unwrap_or_else(|| vec![0; SMALL]),
        }
    }

    /// Moves the `kept` bytes to the start of a small buffer if they fit. Returns whether it did.
    pub(super) fn park(&mut self, kept: std::ops::Range<usize>) -> bool {
        if self.bytes.len() <= SMALL || kept.len() > SMALL - CONTROL_RESERVE {
            return false;
        }
        let mut small = Self::small();
        small[..kept.len()].copy_from_slice(&self.bytes[kept]);
        *self = small;
        true
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // While the thread ends, its list no longer exists; then the buffer is freed.
        let _gone = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            let (list, keep) = if bytes.len() == LARGE {
                (&mut free.large, KEEP_LARGE)
            } else {
                (&mut free.small, KEEP_SMALL)
            };
            if list.len() < keep {
                list.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_to_the_next_who_asks() {
        let mut first = Buffer::large();
        first[0] = 77;
        let address = first.as_ptr();
        drop(first);
        let second = Buffer::large();
        assert_eq!((second.as_ptr(), second.len()), (address, LARGE));
    }

    #[test]
    fn the_free_list_is_bounded() {
        let many: Vec<_> = (0..50)
            .map(|_| (Buffer::large(), Buffer::small()))
            .collect();
        drop(many);
        FREE.with(|free| {
            assert_eq!(free.borrow().large.len(), KEEP_LARGE);
            assert_eq!(free.borrow().small.len(), KEEP_SMALL);
        });
    }

    #[test]
    fn a_remainder_moves_to_a_small_buffer() {
        let mut buffer = Buffer::large();
        buffer[100..105].copy_from_slice(b"hello");
        assert!(!buffer.park(0..SMALL), "too much for a small one");
        assert!(buffer.park(100..105));
        assert_eq!((&buffer[..5], buffer.len()), (&b"hello"[..], SMALL));
        assert!(!buffer.park(0..5), "already small");
    }
}
