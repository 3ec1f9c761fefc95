//! Limits the number of concurrent requests to the certificate authority. A node that starts needs
//! certificates for all of its pods at once; certificates that a connection waits for are requested
//! before those that are only prefetched.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// A semaphore with two priorities.
pub(super) struct RequestLimit {
    state: Mutex<State>,
}

struct State {
    /// The number of permits that no task holds.
    available: usize,
    /// Tasks for whose certificate a connection waits, in order of arrival.
    connections: VecDeque<oneshot::Sender<RequestPermit>>,
    /// All other tasks, in order of arrival.
    prefetches: VecDeque<oneshot::Sender<RequestPermit>>,
}

#[derive(Clone, Copy)]
enum Priority {
    /// A connection waits for the certificate.
    Connection,
    /// No connection waits for it yet.
    Prefetch,
}

/// The permission to send one request. Dropping it passes it to the next task in the queues.
pub(super) struct RequestPermit {
    /// `None` after the permit was passed on.
    limit: Option<Arc<RequestLimit>>,
}

impl RequestLimit {
    /// Allows `count` concurrent requests, at least one.
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                available: count.max(1),
                connections: VecDeque::new(),
                prefetches: VecDeque::new(),
            }),
        })
    }

    /// Waits for a permit. Once `urgent` resolves, the caller is queued before all prefetches.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        urgent: impl Future<Output = ()>,
    ) -> RequestPermit {
        let mut urgent = std::pin::pin!(urgent);
        let mut priority = Priority::Prefetch;
        loop {
            let mut granted = match self.acquire_or_queue(priority) {
                Ok(permit) => return permit,
                Err(granted) => granted,
            };
            tokio::select! {
                biased;
                // The sender is always used before it is dropped; if it were not, the loop would
                // queue again.
                permit = &mut granted => if let Ok(permit) = permit {
                    return permit;
                },
                () = &mut urgent, if matches!(priority, Priority::Prefetch) => {
                    priority = Priority::Connection;
                }
            }
            // If this receiver was granted a permit in the meantime, dropping it passes it on.
            drop(granted);
        }
    }

    /// A permit if one is available, else the receiver of a new queue entry.
    fn acquire_or_queue(
        self: &Arc<Self>,
        priority: Priority,
    ) -> Result<RequestPermit, oneshot::Receiver<RequestPermit>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.available > 0 {
            state.available -= 1;
            return Ok(RequestPermit {
                limit: Some(self.clone()),
            });
        }
        let (grant, granted) = oneshot::channel();
        match priority {
            Priority::Connection => state.connections.push_back(grant),
            Priority::Prefetch => state.prefetches.push_back(grant),
        }
        Err(granted)
    }

    /// Removes the next task from the queues. If they are empty, the permit becomes available.
    fn next_or_release(&self) -> Option<oneshot::Sender<RequestPermit>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.connections.pop_front();
        let next = next.or_else(|| state.prefetches.pop_front());
        if next.is_none() {
            state.available += 1;
        }
        next
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let mut limit = self.limit.take();
        // A task that no longer waits is skipped.
        while let Some(next) = limit.as_ref().and_then(|limit| limit.next_or_release()) {
            let sent = next.send(Self { limit });
            limit = sent
                .err()
                .and_then(|mut undelivered| undelivered.limit.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::Notify;

    /// Acquires a permit, logs the task's name, and releases the permit.
    fn spawn_task(
        limit: &Arc<RequestLimit>,
        log: &Arc<Mutex<Vec<&'static str>>>,
        name: &'static str,
        urgent: Arc<Notify>,
    ) -> tokio::task::JoinHandle<()> {
        let (limit, log) = (limit.clone(), log.clone());
        tokio::spawn(async move {
            let _permit = limit.acquire(urgent.notified()).await;
            log.lock().unwrap().push(name);
            tokio::task::yield_now().await;
        })
    }

    async fn run_other_tasks() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    #[tokio::test]
    async fn urgent_tasks_get_a_permit_before_earlier_prefetches() {
        let limit = RequestLimit::new(1);
        let log = Arc::default();
        let permit = limit.acquire(std::future::pending()).await;
        let never_urgent = || Arc::new(Notify::new());
        let later_urgent = Arc::new(Notify::new());
        let mut tasks = vec![
            spawn_task(&limit, &log, "first", never_urgent()),
            spawn_task(&limit, &log, "second", never_urgent()),
            spawn_task(&limit, &log, "third", later_urgent.clone()),
        ];
        run_other_tasks().await;
        let urgent = Arc::new(Notify::new());
        urgent.notify_one();
        tasks.push(spawn_task(&limit, &log, "fourth", urgent));
        run_other_tasks().await;
        later_urgent.notify_one();
        run_other_tasks().await;
        assert!(log.lock().unwrap().is_empty());
        drop(permit);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*log.lock().unwrap(), ["fourth", "third", "first", "second"]);
    }

    #[tokio::test]
    async fn cancelled_tasks_lose_no_permit() {
        let limit = RequestLimit::new(2);
        let permits = [
            limit.acquire(std::future::pending()).await,
            limit.acquire(std::future::pending()).await,
        ];
        let log = Arc::default();
        let cancelled = spawn_task(&limit, &log, "cancelled", Arc::new(Notify::new()));
        let granted = spawn_task(&limit, &log, "granted", Arc::new(Notify::new()));
        let running = spawn_task(&limit, &log, "running", Arc::new(Notify::new()));
        run_other_tasks().await;
        cancelled.abort();
        run_other_tasks().await;
        drop(permits);
        // This task was granted a permit, but is aborted before it runs.
        granted.abort();
        running.await.unwrap();
        run_other_tasks().await;
        assert_eq!(*log.lock().unwrap(), ["running"]);
        assert_eq!(limit.state.lock().unwrap().available, 2);
    }
}
