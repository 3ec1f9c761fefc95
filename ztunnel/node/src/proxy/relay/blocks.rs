//! Read buffers. Each worker splits the chunks that it reads off a few blocks, and reuses a block
//! when all of its chunks are dropped. Small reads use small blocks of their own, so that a worker
//! which only sees small messages never touches the large blocks.

use std::cell::RefCell;

use bytes::BytesMut;

/// The smallest and the largest read, in bytes.
pub(super) const SMALLEST_READ: usize = 16 << 10;
pub(super) const LARGEST_READ: usize = 256 << 10;

thread_local! {
    static SMALL: RefCell<Blocks> = const { RefCell::new(Blocks::of(64 << 10)) };
    static LARGE: RefCell<Blocks> = const { RefCell::new(Blocks::of(2 * LARGEST_READ)) };
}

/// Blocks of one size.
struct Blocks {
    size: usize,
    kept: Vec<BytesMut>,
}

impl Blocks {
    /// The number of blocks kept for reuse.
    const KEPT: usize = 4;

    const fn of(size: usize) -> Self {
        Self {
            size,
            kept: Vec::new(),
        }
    }

    /// A block with space for `want` more bytes.
    fn with_room(&mut self, want: usize) -> &mut BytesMut {
        let roomy = self
            .kept
            .iter_mut()
            .position(|block| block.capacity() >= want || block.try_reclaim(want));
        let index = roomy.unwrap_or_else(|| {
            if self.kept.len() >= Self::KEPT {
                // The block is freed when its last chunk is dropped.
                self.kept.remove(0);
            }
            self.kept.push(BytesMut::with_capacity(self.size));
            self.kept.len() - 1
        });
        &mut self.kept[index]
    }
}

/// Runs `read` with a block that has space for `want` bytes.
pub(super) fn with_room<T>(want: usize, read: impl FnOnce(&mut BytesMut) -> T) -> T {
    let blocks = if want <= SMALLEST_READ {
        &SMALL
    } else {
        &LARGE
    };
    blocks.with_borrow_mut(|blocks| read(blocks.with_room(want)))
}
