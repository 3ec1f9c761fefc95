//! Buffers for records, from a free list of each thread. A stream has a buffer only while it holds
//! bytes, so an idle stream has none. The list is last-in first-out, so that the streams of a
//! thread reuse memory that is in the cache.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use super::record::{FULL_RECORD_LEN, MAX_RECORD_LEN};

/// Bytes of each buffer that are reserved for alerts and key updates.
pub(super) const CONTROL_RESERVE: usize = 512;
/// The size of a large buffer in bytes: an HTTP/2 frame of 256 KiB with its header, which is
/// sixteen full records and a short one, is sent in one write.
pub(super) const LARGE: usize = 17 * FULL_RECORD_LEN + CONTROL_RESERVE;
/// The size of a small buffer in bytes: any single record and the reserve. The last bytes of a
/// large buffer are moved to a small one while the stream waits for the peer.
pub(super) const SMALL: usize = MAX_RECORD_LEN + CONTROL_RESERVE;

/// The limit of unused large buffers of a thread (about 1 MiB).
const MAX_FREE_LARGE: usize = 4;
/// The limit of unused small buffers of a thread (about 270 KiB).
const MAX_FREE_SMALL: usize = 16;

thread_local! {
    static FREE_LIST: RefCell<FreeList> = const { RefCell::new(FreeList { large: Vec::new(), small: Vec::new() }) };
}

struct FreeList {
    large: Vec<Vec<u8>>,
    small: Vec<Vec<u8>>,
}

/// Initialised bytes of one of the two sizes; returned to the thread's free list when dropped. A
/// buffer may contain bytes of an earlier stream: read only bytes that were written since.
pub(super) struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    /// A buffer of [`LARGE`] bytes.
    pub(super) fn large() -> Self {
        let kept = FREE_LIST
            .try_with(|free| free.borrow_mut().large.pop())
            .ok()
            .flatten();
        Self {
            bytes: kept.unwrap_or_else(|| vec![0; LARGE]),
        }
    }

    /// A buffer of [`SMALL`] bytes.
    pub(super) fn small() -> Self {
        let kept = FREE_LIST
            .try_with(|free| free.borrow_mut().small.pop())
            .ok()
            .flatten();
        Self {
            bytes: kept.unwrap_or_else(|| vec![0; SMALL]),
        }
    }

    /// Moves the `kept` bytes to the start of a small buffer if they fit. Returns whether they did.
    pub(super) fn shrink(&mut self, kept: std::ops::Range<usize>) -> bool {
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
        // While the thread ends, its list no longer exists: the buffer is freed.
        let _gone = FREE_LIST.try_with(|free| {
            let mut free = free.borrow_mut();
            let (list, keep) = if bytes.len() == LARGE {
                (&mut free.large, MAX_FREE_LARGE)
            } else {
                (&mut free.small, MAX_FREE_SMALL)
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
    fn a_dropped_buffer_is_reused() {
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
        FREE_LIST.with(|free| {
            assert_eq!(free.borrow().large.len(), MAX_FREE_LARGE);
            assert_eq!(free.borrow().small.len(), MAX_FREE_SMALL);
        });
    }

    #[test]
    fn the_last_bytes_move_to_a_small_buffer() {
        let mut buffer = Buffer::large();
        buffer[100..105].copy_from_slice(b"hello");
        assert!(!buffer.shrink(0..SMALL), "too much for a small one");
        assert!(buffer.shrink(100..105));
        assert_eq!((&buffer[..5], buffer.len()), (&b"hello"[..], SMALL));
        assert!(!buffer.shrink(0..5), "already small");
    }
}
