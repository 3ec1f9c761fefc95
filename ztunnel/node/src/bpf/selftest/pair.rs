//! The two ends of a connection over loopback, plain or joined, and waiting with a timeout.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, gettid};
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_ebpf_types::{Address, ConnectionEnd, JOIN_REDIRECTED, JoinState};

use super::Fault;
use crate::bpf::join::{self, JoinMaps};
use crate::bpf::object::{LoadOptions, MapSource, Object, ProgramLogging};
use crate::bpf::programs::REDIRECT;
use crate::bpf::{Error, sys};

/// The timeout of an operation that should complete at once.
pub(super) const LIMIT: Duration = Duration::from_secs(1);

/// The timeout of an operation that never completes on a faulty kernel.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(50);

/// The kind of sockets that a case uses.
#[derive(Debug)]
pub(super) enum PairKind {
    /// Plain TCP sockets: every case must pass.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "only the tests compare with plain sockets")
    )]
    Plain,
    /// Joined sockets.
    Joined(JoinMaps),
}

/// The address family of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// An IPv6 socket that connects to an IPv4 address.
    Mapped,
}

impl PairKind {
    /// Joined sockets, with private maps and a program of their own.
    pub(super) fn joined() -> Result<Self, Error> {
        let options = LoadOptions::default();
        let mut object = Object::load(
            MapSource::Private,
            &[REDIRECT],
            ProgramLogging::Off,
            options,
        )?;
        join::attach(&mut object).map(Self::Joined)
    }

    /// A connection over IPv4, or over IPv6 if there is no IPv4.
    pub(super) fn pair(&self) -> Result<Pair, Fault> {
        match self.pair_of(Family::V4) {
            Ok(pair) => Ok(pair),
            Err(error) => self.pair_of(Family::V6).map_err(|_no_ipv6| error),
        }
    }

    /// A connection of a family.
    pub(super) fn pair_of(&self, family: Family) -> Result<Pair, Fault> {
        let pair = Pair::open(family).map_err(call("a connection over loopback"))?;
        if let Self::Joined(maps) = self {
            pair.join(maps).map_err(call("joining two sockets"))?;
        }
        Ok(pair)
    }

    /// Fails if the bytes of a joined socket went through TCP.
    pub(super) fn expect_redirected(&self, sender: &TcpStream) -> Result<(), Fault> {
        let Self::Joined(maps) = self else {
            return Ok(());
        };
        let state = maps.states.get(&sender.as_raw_fd().cast_unsigned());
        match state.map_err(call("reading JOIN_STATES"))? {
            Some(JoinState {
                mode: JOIN_REDIRECTED,
                ..
            }) => Ok(()),
            _ => Err(misbehaved("the bytes of a joined socket went through TCP")),
        }
    }
}

/// A connection. Its sockets block, with the timeout [`LIMIT`].
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl Pair {
    fn open(family: Family) -> io::Result<Self> {
        let loopback: IpAddr = match family {
            Family::V4 | Family::Mapped => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let listener = TcpListener::bind((loopback, 0))?;
        let mut address = listener.local_addr()?;
        if family == Family::Mapped {
            let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
            address = SocketAddr::from((mapped, address.port()));
        }
        let domain = Domain::for_address(address);
        let client = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        client.connect_timeout(&address.into(), LIMIT)?;
        let client = TcpStream::from(client);
        let server = accept(&listener, client.local_addr()?)?;
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.set_write_timeout(Some(LIMIT))?;
        }
        Ok(Self { client, server })
    }

    /// Joins the sockets before they have sent any bytes, which could be overtaken.
    fn join(&self, maps: &JoinMaps) -> io::Result<()> {
        for socket in [&self.client, &self.server] {
            let number = socket.as_raw_fd().cast_unsigned();
            let end = end(socket)?;
            let state = JoinState {
                cookie: end.cookie,
                ..JoinState::default()
            };
            maps.states.insert(&number, &state)?;
            maps.sockets.insert(&end, &number)?;
        }
        Ok(())
    }
}

/// Accepts the client's connection and closes any other.
fn accept(listener: &TcpListener, client: SocketAddr) -> io::Result<TcpStream> {
    let is_client = |peer: SocketAddr| {
        peer.port() == client.port() && peer.ip().to_canonical() == client.ip().to_canonical()
    };
    loop {
        let (socket, peer) = listener.accept()?;
        if is_client(peer) {
            return Ok(socket);
        }
    }
}

fn end(socket: &TcpStream) -> io::Result<ConnectionEnd> {
    let (local, remote) = (socket.local_addr()?, socket.peer_addr()?);
    Ok(ConnectionEnd {
        local: Address::from(local.ip()),
        remote: Address::from(remote.ip()),
        local_port: local.port().into(),
        remote_port: remote.port().into(),
        cookie: sys::netns_cookie(socket.as_fd())?,
    })
}

/// Makes a fault of a failed call.
pub(super) fn call(call: &'static str) -> impl Fn(io::Error) -> Fault {
    move |source| Fault::Call { call, source }
}

/// Makes a fault of behaviour that no TCP socket shows.
pub(super) fn misbehaved(found: impl Into<String>) -> Fault {
    Fault::Behaviour {
        found: found.into(),
    }
}

/// Waits until one of the events is reported, and returns it; none after the timeout.
pub(super) fn wait(
    socket: &TcpStream,
    events: PollFlags,
    timeout: Duration,
) -> Result<PollFlags, Fault> {
    let mut entries = [PollFd::new(socket.as_fd(), events)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
    poll(&mut entries, timeout).map_err(|errno| call("poll")(errno.into()))?;
    Ok(entries[0].revents().unwrap_or(PollFlags::empty()))
}

/// Waits for data.
pub(super) fn readable(socket: &TcpStream) -> Result<(), Fault> {
    if wait(socket, PollFlags::POLLIN, LIMIT)?.contains(PollFlags::POLLIN) {
        Ok(())
    } else {
        Err(misbehaved("poll does not report data that was sent"))
    }
}

/// Sends the id of this thread, which is about to make a blocking call, to the main thread.
pub(super) fn send_thread_id(to: &Sender<Pid>) {
    // The main thread waits for it, so the channel is open.
    let _is_sent = to.send(gettid()).is_ok();
}

/// Waits until a thread sleeps, or 10 ms if /proc does not show that.
pub(super) fn wait_until_asleep(thread: Pid) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(10) {
        thread::sleep(Duration::from_micros(50));
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
        // The state follows the name, which is in parentheses and may contain any other character.
        if stat.is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" S"))
        }) {
            return;
        }
    }
}

/// A reproducible sequence of pseudo-random numbers.
#[derive(Debug, Clone)]
pub(super) struct Pattern(u64);

impl Pattern {
    /// The sequence of a seed that is not zero.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// xorshift64*, by Vigna.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 1 to `max`.
    pub(super) fn size(&mut self, max: usize) -> usize {
        let number = usize::try_from(self.next() >> 33).unwrap_or(0);
        number % max.max(1) + 1
    }

    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_ne_bytes());
        words.flatten().take(count).collect()
    }
}
