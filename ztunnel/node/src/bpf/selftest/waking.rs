//! Whether `epoll` wakes whom it should, when it should.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::Fault;
use super::pair::{Ground, LIMIT, Pair, call, wrong};

/// How often a message goes to and fro.
const ROUNDS: usize = 100;

/// Waits for one socket.
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

    /// What is reported; nothing after the time is up.
    fn next(&self, patience: EpollTimeout) -> Result<EpollFlags, Fault> {
        let mut events = [EpollEvent::empty()];
        let waited = self.epoll.wait(&mut events, patience);
        let count = waited.map_err(|errno| call("epoll_wait")(errno.into()))?;
        Ok(if count == 0 {
            EpollFlags::empty()
        } else {
            events[0].events()
        })
    }

    fn reports(&self, wanted: EpollFlags, when: &str) -> Result<(), Fault> {
        let patience = EpollTimeout::try_from(LIMIT).unwrap_or(EpollTimeout::ZERO);
        if self.next(patience)?.contains(wanted) {
            Ok(())
        } else {
            Err(wrong(format!("epoll does not report {when}")))
        }
    }

    fn expect_nothing(&self, when: &str) -> Result<(), Fault> {
        if self.next(EpollTimeout::ZERO)?.is_empty() {
            Ok(())
        } else {
            Err(wrong(format!("epoll reports data {when}")))
        }
    }
}

/// Reported while there is something to read.
pub(super) fn epoll_level(ground: &Ground) -> Result<(), Fault> {
    let pair = ground.pair()?;
    ping_pong(&pair, EpollFlags::empty())?;
    let watch = Watch::new(&pair.server, EpollFlags::empty())?;
    send(&pair.client, 8)?;
    watch.reports(EpollFlags::EPOLLIN, "new data")?;
    receive(&pair.server, 4)?;
    watch.reports(EpollFlags::EPOLLIN, "the data that was left")?;
    receive(&pair.server, 4)?;
    watch.expect_nothing("though all of it was read")?;
    ends(&pair, &watch)
}

/// Reported once for each arrival.
pub(super) fn epoll_edge(ground: &Ground) -> Result<(), Fault> {
    let pair = ground.pair()?;
    ping_pong(&pair, EpollFlags::EPOLLET)?;
    let watch = Watch::new(&pair.server, EpollFlags::EPOLLET)?;
    send(&pair.client, 8)?;
    watch.reports(EpollFlags::EPOLLIN, "new data")?;
    receive(&pair.server, 4)?;
    watch.expect_nothing("a second time (EPOLLET)")?;
    send(&pair.client, 4)?;
    watch.reports(EpollFlags::EPOLLIN, "more data behind unread data")?;
    receive(&pair.server, 8)?;
    ends(&pair, &watch)
}

/// The peer's end is an event of its own.
fn ends(pair: &Pair, watch: &Watch) -> Result<(), Fault> {
    let shut = pair.client.shutdown(Shutdown::Write);
    shut.map_err(call("shutdown"))?;
    watch.reports(EpollFlags::EPOLLRDHUP, "the peer's end")?;
    let mut server = &pair.server;
    match server.read(&mut [0; 8]) {
        Ok(0) => Ok(()),
        other => Err(wrong(format!("a read at the end says {other:?}"))),
    }
}

/// Both sides sleep in `epoll_wait` between messages: one lost wake-up stops them.
fn ping_pong(pair: &Pair, trigger: EpollFlags) -> Result<(), Fault> {
    let echo = || {
        let watch = Watch::new(&pair.server, trigger)?;
        (0..ROUNDS).try_for_each(|_| {
            watch.reports(EpollFlags::EPOLLIN, "a message")?;
            receive(&pair.server, 4)?;
            send(&pair.server, 4)
        })
    };
    thread::scope(|scope| {
        let echo = scope.spawn(echo);
        let watch = Watch::new(&pair.client, trigger)?;
        let asked = (0..ROUNDS).try_for_each(|_| {
            send(&pair.client, 4)?;
            watch.reports(EpollFlags::EPOLLIN, "an answer")?;
            receive(&pair.client, 4)
        });
        let echoed = echo.join().unwrap_or_else(|_| Err(wrong("a panic")));
        asked.and(echoed)
    })
}

fn send(mut socket: &TcpStream, count: usize) -> Result<(), Fault> {
    socket.write_all(&vec![7; count]).map_err(call("write"))
}

/// Reads what a message has; of a message, either all or nothing is there.
fn receive(mut socket: &TcpStream, count: usize) -> Result<(), Fault> {
    match socket.read(&mut vec![0; count]) {
        Ok(read) if read == count => Ok(()),
        Ok(read) => Err(wrong(format!(
            "a read says {read} bytes instead of {count}"
        ))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(wrong("epoll reports data where there is none"))
        }
        Err(error) => Err(call("read")(error)),
    }
}
