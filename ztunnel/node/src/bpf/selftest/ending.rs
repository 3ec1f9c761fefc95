//! The end of a connection, and what a blocked reader sees of it.
//!
//! A reader of a joined socket sleeps in a loop of the sockmap code. On some kernels, a wake-up
//! without data ends that loop with an error. Such wake-ups are the peer's reset, and the
//! acknowledgement of the socket's own FIN after another thread has shut it down.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::unistd::Pid;
use socket2::SockRef;

use super::Fault;
use super::pair::{
    Pair, PairKind, SHORT_WAIT, call, misbehaved, send_thread_id, wait, wait_until_asleep,
};

/// How often each end is tried, because some faults depend on timing.
const ROUNDS: usize = 10;
/// The number of messages before the end.
const MESSAGES: usize = 4;
const MESSAGE: usize = 3000;
const TOTAL: usize = MESSAGES * MESSAGE;

/// The peer writes, and closes when its reader waits for more; in every second round it closes at
/// once.
pub(super) fn blocking_close(kind: &PairKind) -> Result<(), Fault> {
    (0..ROUNDS).try_for_each(|round| {
        let Pair { client, server } = kind.pair()?;
        let write = |reader| {
            write_some(&client)?;
            if round % 2 == 0 {
                wait_until_asleep(reader);
            }
            drop(client);
            Ok(())
        };
        while_read(&server, write)?.expect_end(TOTAL)
    })
}

/// One thread of the client reads while another shuts down the sending side; then the server
/// answers.
pub(super) fn blocking_half_close(kind: &PairKind) -> Result<(), Fault> {
    (0..ROUNDS).try_for_each(|_| {
        let Pair { client, server } = kind.pair()?;
        let write = |reader| {
            write_some(&client)?;
            wait_until_asleep(reader);
            client.shutdown(Shutdown::Write).map_err(call("shutdown"))?;
            while_read(&server, |_| Ok(()))?.expect_end(TOTAL)?;
            wait_until_asleep(reader);
            write_some(&server)?;
            drop(server);
            Ok(())
        };
        while_read(&client, write)?.expect_end(TOTAL)
    })
}

/// The peer resets the connection while a reader waits.
pub(super) fn blocking_reset(kind: &PairKind) -> Result<(), Fault> {
    (0..ROUNDS).try_for_each(|_| {
        let Pair { client, server } = kind.pair()?;
        let write = |reader| {
            write_some(&server)?;
            wait_until_asleep(reader);
            let linger = SockRef::from(&server).set_linger(Some(Duration::ZERO));
            linger.map_err(call("SO_LINGER"))?;
            drop(server);
            Ok(())
        };
        while_read(&client, write)?.expect_reset(TOTAL)
    })
}

fn write_some(mut socket: &TcpStream) -> Result<(), Fault> {
    (0..MESSAGES).try_for_each(|_| socket.write_all(&[7; MESSAGE]).map_err(call("write")))
}

/// What a reader has received.
struct Received {
    bytes: usize,
    end: Result<(), std::io::Error>,
}

impl Received {
    /// Fails unless the reader has received this many bytes and then the end.
    fn expect_end(self, expected: usize) -> Result<(), Fault> {
        match self.end {
            Ok(()) if self.bytes == expected => Ok(()),
            Ok(()) => Err(misbehaved(format!(
                "a blocking read got the end after {} of {expected} bytes",
                self.bytes
            ))),
            Err(error) => Err(call("a blocking read that waited for the end")(error)),
        }
    }

    /// Fails unless the reader has received this many bytes and then the reset.
    fn expect_reset(self, expected: usize) -> Result<(), Fault> {
        match self.end {
            Err(error)
                if error.raw_os_error() == Some(libc::ECONNRESET) && self.bytes == expected =>
            {
                Ok(())
            }
            Err(error) => Err(call("a blocking read that waited for the reset")(error)),
            Ok(()) => Err(misbehaved(
                "a blocking read reports the end instead of a reset",
            )),
        }
    }
}

/// Runs the work while a thread reads to the end with blocking calls. The work gets the id of that
/// thread.
fn while_read(
    socket: &TcpStream,
    work: impl FnOnce(Pid) -> Result<(), Fault>,
) -> Result<Received, Fault> {
    let (sender, receiver) = channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || read_to_end(socket, &sender));
        let thread = receiver.recv().map_err(|_gone| misbehaved("a panic"))?;
        let worked = work(thread);
        let received = reader.join().map_err(|_panic| misbehaved("a panic"))?;
        worked.map(|()| received)
    })
}

/// The socket's timeout is longer than any writer takes here, so an EAGAIN is a fault.
fn read_to_end(mut socket: &TcpStream, thread: &Sender<Pid>) -> Received {
    let mut buffer = [0; 8192];
    let mut bytes = 0;
    send_thread_id(thread);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Received { bytes, end: Ok(()) },
            Ok(read) => bytes += read,
            Err(error) => {
                return Received {
                    bytes,
                    end: Err(error),
                };
            }
        }
    }
}

/// The server closes with unread data.
pub(super) fn reset(kind: &PairKind) -> Result<(), Fault> {
    let Pair { mut client, server } = kind.pair()?;
    client.write_all(&[7; 1000]).map_err(call("write"))?;
    drop(server);
    let began = Instant::now();
    while began.elapsed() < SHORT_WAIT {
        let found = wait(&client, PollFlags::POLLERR, Duration::from_millis(5))?;
        if found.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            return match client.write(&[7]) {
                Err(_reset) => Ok(()),
                Ok(_) => Err(misbehaved(
                    "a write succeeds after the connection was reset",
                )),
            };
        }
    }
    Err(misbehaved(
        "no reset though the peer closed with unread data",
    ))
}
