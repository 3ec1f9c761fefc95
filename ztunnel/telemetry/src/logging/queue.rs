//! The queue of lines between the threads that log and the writer thread. A line is appended under
//! a lock that is held for one copy; the writer writes batches. Memory is bounded: lines that do
//! not fit are dropped and counted.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

/// The most bytes in the queue; further lines are dropped.
const LIMIT: usize = 1 << 20;
/// The size of a batch that is written at once.
const BATCH: usize = 32 << 10;
/// How long the writer waits for further lines of a batch.
const LINGER: Duration = Duration::from_millis(10);
/// How long the process waits at its end for the queue to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    writer: Writer,
    closing: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Busy,
    Asleep,
    Gone,
}

/// The queue, shared by all threads that log and the writer thread.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    dropped: Counter,
}

/// Keeps the log running. Dropping it waits until the queue is written, for at most a second.
#[derive(Debug)]
#[must_use = "dropping it ends the log"]
pub struct LogGuard(Arc<Queue>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closing = true;
        self.0.changed.notify_all();
        // After the time limit the process ends, whether the queue is written or not.
        let _written_or_late = self
            .0
            .changed
            .wait_timeout_while(state, CLOSE_TIMEOUT, |state| state.writer != Writer::Gone);
    }
}

impl Queue {
    pub(super) fn start(
        out: impl Write + Send + 'static,
        dropped: Counter,
    ) -> std::io::Result<(Arc<Self>, LogGuard)> {
        let queue = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            dropped,
        });
        let writer = queue.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || writer.write(out))?;
        Ok((queue.clone(), LogGuard(queue)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line (with its line feed), or drops it if the queue is full.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.state();
        let before = state.pending.len();
        if before + line.len() > LIMIT || state.writer == Writer::Gone {
            drop(state);
            self.dropped.inc();
            return;
        }
        state.pending.extend_from_slice(line);
        // Only the first line and a full batch wake the writer.
        let full = before < BATCH && before + line.len() >= BATCH;
        let wake = full || state.writer == Writer::Asleep;
        if state.writer == Writer::Asleep {
            state.writer = Writer::Busy;
        }
        drop(state);
        if wake {
            self.changed.notify_all();
        }
    }

    fn write(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        while self.next(&mut batch) {
            let written = out.write_all(&batch).and_then(|()| out.flush());
            if written.is_err() {
                let lines = batch.iter().filter(|&&byte| byte == b'\n').count();
                self.dropped.inc_by(lines as u64);
            }
            batch.clear();
            // The memory of a burst is freed.
            batch.shrink_to(BATCH);
        }
        self.state().writer = Writer::Gone;
        self.changed.notify_all();
    }

    /// Waits for lines and swaps them into `batch`; false after the last one.
    fn next(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.state();
        while state.pending.is_empty() {
            if state.closing {
                return false;
            }
            state.writer = Writer::Asleep;
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.writer = Writer::Busy;
        }
        let (mut state, _timeout) = self
            .changed
            .wait_timeout_while(state, LINGER, |s| !s.closing && s.pending.len() < BATCH)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.pending, batch);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Passes every write to a test, which checks how lines were batched.
    struct Pipe(mpsc::SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0
                .send(bytes.to_vec())
                .map_err(|_gone| std::io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// How long a test waits for the writer on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn many_lines_are_written_with_few_writes() {
        let (sender, writes) = mpsc::sync_channel(1000);
        let (queue, guard) = Queue::start(Pipe(sender), Counter::default()).unwrap();
        (0..1000).for_each(|_| queue.push(b"a line\n"));
        drop(guard);
        // Until the writer has ended.
        let writes: Vec<_> = std::iter::from_fn(|| writes.recv_timeout(PATIENCE).ok()).collect();
        assert_eq!(writes.concat(), b"a line\n".repeat(1000));
        assert!(writes.len() < 50, "{} writes", writes.len());
    }

    #[test]
    fn a_reader_that_does_not_read_loses_lines_and_blocks_no_thread() {
        let (sender, writes) = mpsc::sync_channel(0);
        let dropped = Counter::default();
        let (queue, guard) = Queue::start(Pipe(sender), dropped.clone()).unwrap();
        let line = vec![b'x'; 1024];
        (0..5000).for_each(|_| queue.push(&line));
        assert!(dropped.get() > 2000, "{}", dropped.get());
        assert!(queue.state().pending.len() <= LIMIT);
        drop(writes);
        drop(guard);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (sender, writes) = mpsc::sync_channel(0);
        drop(writes);
        let dropped = Counter::default();
        let (queue, guard) = Queue::start(Pipe(sender), dropped.clone()).unwrap();
        queue.push(b"one\n");
        queue.push(b"two\n");
        drop(guard);
        let until = Instant::now() + PATIENCE;
        while queue.state().writer != Writer::Gone && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(dropped.get(), 2);
    }

    #[test]
    fn a_single_line_is_written_without_a_full_batch() {
        let (sender, writes) = mpsc::sync_channel(1);
        let (queue, _guard) = Queue::start(Pipe(sender), Counter::default()).unwrap();
        queue.push(b"hello\n");
        assert_eq!(
            writes.recv_timeout(Duration::from_secs(5)).unwrap(),
            b"hello\n"
        );
    }
}
