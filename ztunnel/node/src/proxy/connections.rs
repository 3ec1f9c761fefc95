//! The open connections of one pod on one worker, to be reset when the pod has left and its drain
//! deadline has passed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;

use futures::FutureExt;
use tokio::task::AbortHandle;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: RefCell<HashMap<u64, AbortHandle>>,
    next: Cell<u64>,
}

impl Connections {
    /// Runs a connection as a task of its own; `held` is dropped when the task ends or is aborted.
    pub(super) fn spawn<H: 'static>(
        self: &Rc<Self>,
        held: H,
        connection: impl Future<Output = ()> + 'static,
    ) {
        let number = self.next.get();
        self.next.set(number + 1);
        let entry = Entry {
            connections: self.clone(),
            number,
        };
        // Not an async block: its future would hold the connection's future twice.
        let task = tokio::task::spawn_local(connection.map(move |()| drop((entry, held))));
        // The task has not started: no other task runs on this thread before the return.
        self.open.borrow_mut().insert(number, task.abort_handle());
    }

    /// Aborts the open connections; their sockets are closed as if the process had ended.
    pub(super) fn reset(&self) {
        // Each task removes itself from the table when it is dropped.
        let open: Vec<AbortHandle> = self.open.borrow().values().cloned().collect();
        for task in open {
            task.abort();
        }
    }

    /// The number of open connections.
    pub(super) fn count(&self) -> usize {
        self.open.borrow().len()
    }
}

/// A connection's entry in the table; removed when it is dropped.
struct Entry {
    connections: Rc<Connections>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    /// Records its drop.
    struct Held(Rc<Cell<u32>>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[tokio::test(flavor = "local")]
    async fn ended_connections_leave_the_table_and_open_ones_are_reset() {
        let connections = Rc::<Connections>::default();
        let dropped = Rc::<Cell<u32>>::default();
        let held = || Held(dropped.clone());
        connections.spawn(held(), async {});
        for _ in 0..3 {
            connections.spawn(held(), pending());
        }
        assert_eq!((connections.count(), dropped.get()), (4, 0));
        tokio::task::yield_now().await;
        assert_eq!((connections.count(), dropped.get()), (3, 1));
        connections.reset();
        tokio::task::yield_now().await;
        assert_eq!((connections.count(), dropped.get()), (0, 4));
        // The table is empty and accepts new connections.
        connections.reset();
        connections.spawn(held(), async {});
        assert_eq!(connections.count(), 1);
    }
}
