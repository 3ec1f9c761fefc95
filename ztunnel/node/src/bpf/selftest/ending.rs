//! How a connection ends, and what a blocked reader is told of it.
//!
//! A reader of a joined socket sleeps in a loop of its own kind, which on some kernels takes any
//! wake-up without data for the end of its patience. What wakes it so: the peer's reset, and the
//! acknowledgement of the own end when another thread has shut the socket down.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::unistd::Pid;
use socket2::SockRef;

use super::Fault;
use super::pair::{Ground, MOMENT, Pair, asleep, call, tell_who, wait, wrong};

/// How often an end is tried: what goes wrong by chance only has its chances too.
const ROUNDS: usize = 10;
/// Bytes before the end, so many times.
const MESSAGES: usize = 4;
const MESSAGE: usize = 3000;
const ALL: usize = MESSAGES * MESSAGE;

/// The peer writes, and closes when its reader waits for more; in every other round at once.
pub(super) fn blocking_close(ground: &Ground) -> Result<(), Fault> {
    (0..ROUNDS).try_for_each(|round| {
        let Pair { client, server } = ground.pair()?;
        let write = |reader| {
            write_some(&client)?;
            if round % 2 == 0 {
                asleep(reader);
            }
            drop(client);
            Ok(())
        };
        while_read(&server, write)?.end(ALL)
    })
}

/// One thread of the client reads while another one says that all is sent; then the server
/// answers.
pub(super) fn blocking_half_close(ground: &Ground) -> Result<(), Fault> {
    (0..ROUNDS).try_for_each(|_| {
        let Pair { client, server } = ground.pair()?;
        let write = |reader| {
            write_some(&client)?;
            asleep(reader);
            client.shutdown(Shutdown::Write).map_err(call("shutdown"))?;
            while_read(&server, |_| Ok(()))?.end(ALL)?;
            asleep(reader);
            write_some(&server)?;
            drop(server);
            Ok(())
        };
        while_read(&client, write)?.end(ALL)
    })
}

/// The peer resets the connection under a reader that waits.
pub(super) fn blocking_reset(ground: &Ground) -> Result<(), Fault> {
    (0..ROUNDS).try_for_each(|_| {
        let Pair { client, server } = ground.pair()?;
        let write = |reader| {
            write_some(&server)?;
            asleep(reader);
            let linger = SockRef::from(&server).set_linger(Some(Duration::ZERO));
            linger.map_err(call("SO_LINGER"))?;
            drop(server);
            Ok(())
        };
        while_read(&client, write)?.reset(ALL)
    })
}

fn write_some(mut socket: &TcpStream) -> Result<(), Fault> {
    (0..MESSAGES).try_for_each(|_| socket.write_all(&[7; MESSAGE]).map_err(call("write")))
}

/// What a reader has got.
struct Got {
    bytes: usize,
    end: Result<(), std::io::Error>,
}

impl Got {
    /// It should have got so many bytes and then the end.
    fn end(self, expected: usize) -> Result<(), Fault> {
        match self.end {
            Ok(()) if self.bytes == expected => Ok(()),
            Ok(()) => Err(wrong(format!(
                "the end after {} of {expected} bytes",
                self.bytes
            ))),
            Err(error) => Err(call("a blocking read that waited for the end")(error)),
        }
    }

    /// It should have got so many bytes and then learnt of the reset.
    fn reset(self, expected: usize) -> Result<(), Fault> {
        match self.end {
            Err(error)
                if error.raw_os_error() == Some(libc::ECONNRESET) && self.bytes == expected =>
            {
                Ok(())
            }
            Err(error) => Err(call("instead of telling a reset, a blocking read")(error)),
            Ok(()) => Err(wrong("a blocking read takes a reset for the end")),
        }
    }
}

/// Does the work, which is told who reads, while a thread reads to the end with blocking calls.
fn while_read(
    socket: &TcpStream,
    work: impl FnOnce(Pid) -> Result<(), Fault>,
) -> Result<Got, Fault> {
    let (tell, told) = channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || read_to_end(socket, &tell));
        let reads = told.recv().map_err(|_gone| wrong("a panic"))?;
        let worked = work(reads);
        let got = reader.join().map_err(|_panic| wrong("a panic"))?;
        worked.map(|()| got)
    })
}

/// Its patience is longer than any writer takes here, so an EAGAIN is wrong.
fn read_to_end(mut socket: &TcpStream, tell: &Sender<Pid>) -> Got {
    let mut buffer = [0; 8192];
    let mut bytes = 0;
    tell_who(tell);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Got { bytes, end: Ok(()) },
            Ok(read) => bytes += read,
            Err(error) => {
                return Got {
                    bytes,
                    end: Err(error),
                };
            }
        }
    }
}

/// The server closes and has not read what is there for it.
pub(super) fn reset(ground: &Ground) -> Result<(), Fault> {
    let Pair { mut client, server } = ground.pair()?;
    client.write_all(&[7; 1000]).map_err(call("write"))?;
    drop(server);
    let began = Instant::now();
    while began.elapsed() < MOMENT {
        let found = wait(&client, PollFlags::POLLERR, Duration::from_millis(5))?;
        if found.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            return match client.write(&[7]) {
                Err(_reset) => Ok(()),
                Ok(_) => Err(wrong("a write succeeds after the connection was reset")),
            };
        }
    }
    Err(wrong("no reset though the peer closed with unread data"))
}
