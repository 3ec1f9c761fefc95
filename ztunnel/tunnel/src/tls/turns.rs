//! The order of requests to the certificate authority. A node that starts needs certificates for
//! all of its pods at once. Only a few are requested at a time, and certificates that a connection
//! waits for go before certificates that will be needed later.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The turns, and two queues of tasks that wait for one.
pub(super) struct Turns {
    state: Mutex<State>,
}

struct State {
    free: usize,
    wanted: VecDeque<oneshot::Sender<Turn>>,
    ahead: VecDeque<oneshot::Sender<Turn>>,
}

/// One of the two queues.
#[derive(Clone, Copy)]
enum Queue {
    /// A connection waits for the certificate.
    Wanted,
    /// No connection waits for it yet.
    Ahead,
}

/// The permission to send a request; dropping it passes the turn on.
pub(super) struct Turn {
    /// `None`: it was passed on.
    turns: Option<Arc<Turns>>,
}

impl Turns {
    /// Allows `count` requests at a time, at least one.
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: count.max(1),
                wanted: VecDeque::new(),
                ahead: VecDeque::new(),
            }),
        })
    }

    /// Waits for a turn. Once `wanted` resolves, it goes before tasks that no connection waits for.
    pub(super) async fn take(self: &Arc<Self>, wanted: impl Future<Output = ()>) -> Turn {
        let mut wanted = std::pin::pin!(wanted);
        let mut queue = Queue::Ahead;
        loop {
            let mut place = match self.enter(queue) {
                Ok(turn) => return turn,
                Err(place) => place,
            };
            tokio::select! {
                biased;
                // The sender is never dropped without a turn; if it were, the loop would queue
                // again.
                turn = &mut place => if let Ok(turn) = turn {
                    return turn;
                },
                () = &mut wanted, if matches!(queue, Queue::Ahead) => queue = Queue::Wanted,
            }
            // If this receiver was just given a turn, dropping it passes the turn on.
            drop(place);
        }
    }

    fn enter(self: &Arc<Self>, queue: Queue) -> Result<Turn, oneshot::Receiver<Turn>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.free > 0 {
            state.free -= 1;
            return Ok(Turn {
                turns: Some(self.clone()),
            });
        }
        let (give, place) = oneshot::channel();
        match queue {
            Queue::Wanted => state.wanted.push_back(give),
            Queue::Ahead => state.ahead.push_back(give),
        }
        Err(place)
    }

    /// The next task in the queues; if there is none, the turn becomes free.
    fn next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.wanted.pop_front();
        let next = next.or_else(|| state.ahead.pop_front());
        if next.is_none() {
            state.free += 1;
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = self.turns.take();
        // A task that has left the queue is skipped.
        while let Some(next) = turns.as_ref().and_then(|turns| turns.next()) {
            let sent = next.send(Self { turns });
            turns = sent
                .err()
                .and_then(|mut undelivered| undelivered.turns.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::Notify;

    /// Takes a turn, logs its name, and returns the turn.
    fn visit(
        turns: &Arc<Turns>,
        log: &Arc<Mutex<Vec<&'static str>>>,
        name: &'static str,
        wanted: Arc<Notify>,
    ) -> tokio::task::JoinHandle<()> {
        let (turns, log) = (turns.clone(), log.clone());
        tokio::spawn(async move {
            let _turn = turns.take(wanted.notified()).await;
            log.lock().unwrap().push(name);
            tokio::task::yield_now().await;
        })
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    #[tokio::test]
    async fn who_is_waited_for_goes_before_those_who_came_earlier() {
        let turns = Turns::new(1);
        let log = Arc::default();
        let held = turns.take(std::future::pending()).await;
        let unused = || Arc::new(Notify::new());
        let becomes_wanted = unused();
        let mut visits = vec![
            visit(&turns, &log, "first", unused()),
            visit(&turns, &log, "second", unused()),
            visit(&turns, &log, "third", becomes_wanted.clone()),
        ];
        settle().await;
        let at_once = unused();
        at_once.notify_one();
        visits.push(visit(&turns, &log, "fourth", at_once));
        settle().await;
        becomes_wanted.notify_one();
        settle().await;
        assert!(log.lock().unwrap().is_empty());
        drop(held);
        for visit in visits {
            visit.await.unwrap();
        }
        assert_eq!(*log.lock().unwrap(), ["fourth", "third", "first", "second"]);
    }

    #[tokio::test]
    async fn no_turn_is_lost_with_those_who_leave() {
        let turns = Turns::new(2);
        let held = [
            turns.take(std::future::pending()).await,
            turns.take(std::future::pending()).await,
        ];
        let log = Arc::default();
        let leaving = visit(&turns, &log, "leaves", Arc::new(Notify::new()));
        let late = visit(&turns, &log, "leaves late", Arc::new(Notify::new()));
        let stays = visit(&turns, &log, "stays", Arc::new(Notify::new()));
        settle().await;
        leaving.abort();
        settle().await;
        drop(held);
        // The task has been given its turn, but is aborted before it runs.
        late.abort();
        stays.await.unwrap();
        settle().await;
        assert_eq!(*log.lock().unwrap(), ["stays"]);
        assert_eq!(turns.state.lock().unwrap().free, 2);
    }
}
