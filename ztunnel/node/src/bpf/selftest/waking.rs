//! Wake-ups by `epoll`.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::Fault;
use super::pair::{LIMIT, Pair, PairKind, call, misbehaved};

/// How often a message goes back and forth.
const ROUNDS: usize = 100;

/// An epoll instance for one socket.
struct Watch {
    epoll: Epoll,
}

impl Watch {
    fn new(socket: &TcpStream, trigger: EpollFlags) -> Result<Self, Fault> {
        socket.set_nonblocking(true).map_err(call("O_NONBLOCK"))?;
        let make = || {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | trigger;
            epoll.add(socket, EpollEvent::new(wanted, 0))?;
            Ok(epoll)
        };
        let epoll = make().map_err(|errno: nix::Error| call("epoll_ctl")(errno.into()))?;
        Ok(Self { epoll })
    }

    /// The reported events; none after the timeout.
    fn next(&self, timeout: EpollTimeout) -> Result<EpollFlags, Fault> {
        let mut events = [EpollEvent::empty()];
        let waited = self.epoll.wait(&mut events, timeout);
        let count = waited.map_err(|errno| call("epoll_wait")(errno.into()))?;
        Ok(if count == 0 {
            EpollFlags::empty()
        } else {
            events[0].events()
        })
    }

    fn await_event(&self, wanted: EpollFlags, when: &str) -> Result<(), Fault> {
        let timeout = EpollTimeout::try_from(LIMIT).unwrap_or(EpollTimeout::ZERO);
        if self.next(timeout)?.contains(wanted) {
            Ok(())
        } else {
            Err(misbehaved(format!("epoll does not report {when}")))
        }
    }

    fn await_silence(&self, when: &str) -> Result<(), Fault> {
        if self.next(EpollTimeout::ZERO)?.is_empty() {
            Ok(())
        } else {
            Err(misbehaved(format!("epoll reports data {when}")))
        }
    }
}

/// Data is reported until it is read.
pub(super) fn epoll_level(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    ping_pong(&pair, EpollFlags::empty())?;
    let watch = Watch::new(&pair.server, EpollFlags::empty())?;
    send(&pair.client, 8)?;
    watch.await_event(EpollFlags::EPOLLIN, "new data")?;
    receive(&pair.server, 4)?;
    watch.await_event(EpollFlags::EPOLLIN, "the data that was left")?;
    receive(&pair.server, 4)?;
    watch.await_silence("after all of it was read")?;
    await_end(&pair, &watch)
}

/// Data is reported once for each arrival.
pub(super) fn epoll_edge(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    ping_pong(&pair, EpollFlags::EPOLLET)?;
    let watch = Watch::new(&pair.server, EpollFlags::EPOLLET)?;
    send(&pair.client, 8)?;
    watch.await_event(EpollFlags::EPOLLIN, "new data")?;
    receive(&pair.server, 4)?;
    watch.await_silence("a second time (EPOLLET)")?;
    send(&pair.client, 4)?;
    watch.await_event(EpollFlags::EPOLLIN, "more data behind unread data")?;
    receive(&pair.server, 8)?;
    await_end(&pair, &watch)
}

/// The end of the peer's stream is reported.
fn await_end(pair: &Pair, watch: &Watch) -> Result<(), Fault> {
    let shut = pair.client.shutdown(Shutdown::Write);
    shut.map_err(call("shutdown"))?;
    watch.await_event(EpollFlags::EPOLLRDHUP, "the peer's end")?;
    let mut server = &pair.server;
    match server.read(&mut [0; 8]) {
        Ok(0) => Ok(()),
        other => Err(misbehaved(format!(
            "a read at the end of the stream returned {other:?}"
        ))),
    }
}

/// Both sides sleep in `epoll_wait` between messages: a lost wake-up stops them.
fn ping_pong(pair: &Pair, trigger: EpollFlags) -> Result<(), Fault> {
    let echo = || {
        let watch = Watch::new(&pair.server, trigger)?;
        (0..ROUNDS).try_for_each(|_| {
            watch.await_event(EpollFlags::EPOLLIN, "a message")?;
            receive(&pair.server, 4)?;
            send(&pair.server, 4)
        })
    };
    thread::scope(|scope| {
        let echo = scope.spawn(echo);
        let watch = Watch::new(&pair.client, trigger)?;
        let requested = (0..ROUNDS).try_for_each(|_| {
            send(&pair.client, 4)?;
            watch.await_event(EpollFlags::EPOLLIN, "an answer")?;
            receive(&pair.client, 4)
        });
        let echoed = echo.join().unwrap_or_else(|_| Err(misbehaved("a panic")));
        requested.and(echoed)
    })
}

fn send(mut socket: &TcpStream, count: usize) -> Result<(), Fault> {
    socket.write_all(&vec![7; count]).map_err(call("write"))
}

/// Reads a message, of which either all bytes or none have arrived.
fn receive(mut socket: &TcpStream, count: usize) -> Result<(), Fault> {
    match socket.read(&mut vec![0; count]) {
        Ok(read) if read == count => Ok(()),
        Ok(read) => Err(misbehaved(format!(
            "a read returned {read} bytes instead of {count}"
        ))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(misbehaved("epoll reports data although there is none"))
        }
        Err(error) => Err(call("read")(error)),
    }
}
