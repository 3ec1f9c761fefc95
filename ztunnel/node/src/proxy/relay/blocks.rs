//! Memory for bytes on their way: each worker cuts the chunks it reads out of a few blocks, and
//! uses a block again once all its chunks are gone. Small reads have small blocks of their own,
//! so that a worker which only sees requests never touches the large ones.

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
    /// How many are kept for another use.
    const KEPT: usize = 4;

    const fn of(size: usize) -> Self {
        Self {
            size,
            kept: Vec::new(),
        }
    }

    /// A block with room for `want` more bytes.
    fn with_room(&mut self, want: usize) -> &mut BytesMut {
        let roomy = self
            .kept
            .iter_mut()
            .position(|block| block.capacity() >= want || block.try_reclaim(want));
        let index = roomy.unwrap_or_else(|| {
            if self.kept.len() >= Self::KEPT {
                // Its chunks keep it alive until the last of them is gone.
                self.kept.remove(0);
            }
            self.kept.push(BytesMut::with_capacity(self.size));
            self.kept.len() - 1
        });
        &mut self.kept[index]
    }
}

/// Runs `read` with a block that has room for `want` bytes.
pub(super) fn with_room<T>(want: usize, read: impl FnOnce(&mut BytesMut) -> T) -> T {
    let blocks = if want <= SMALLEST_READ {
        &SMALL
    } else {
        &LARGE
    };
    blocks.with_borrow_mut(|blocks| read(blocks.with_room(want)))
}
