//! Two ends of a connection over loopback, plain or joined, and the waiting that cases share.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, gettid};
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_ebpf_types::{Address, End, JOIN_PAST, Join};

use super::Fault;
use crate::bpf::join::{self, Joints};
use crate::bpf::object::{Object, Owner, Settled, Speech};
use crate::bpf::programs::PAST;
use crate::bpf::{Error, sys};

/// How long a socket may keep a case waiting for what must happen at once.
pub(super) const LIMIT: Duration = Duration::from_secs(1);

/// How long a case waits for what a faulty kernel never does.
pub(super) const MOMENT: Duration = Duration::from_millis(50);

/// What the sockets of a case are.
#[derive(Debug)]
pub(super) enum Ground {
    /// As they come: every case must pass.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests' control"))]
    Plain,
    /// Joined.
    Joined(Joints),
}

/// The addresses and sockets of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// An IPv6 socket that calls an IPv4 one.
    Mapped,
}

impl Ground {
    /// Joined sockets, by a program and maps of this object's own.
    pub(super) fn joined() -> Result<Self, Error> {
        let settled = Settled::default();
        let mut object = Object::load(Owner::Private, &[PAST], Speech::Silent, settled)?;
        join::attach(&mut object).map(Self::Joined)
    }

    /// A connection of the first family that there is.
    pub(super) fn pair(&self) -> Result<Pair, Fault> {
        match self.pair_of(Family::V4) {
            Ok(pair) => Ok(pair),
            Err(error) => self.pair_of(Family::V6).map_err(|_no_ipv6| error),
        }
    }

    /// A connection of a family.
    pub(super) fn pair_of(&self, family: Family) -> Result<Pair, Fault> {
        let pair = Pair::open(family).map_err(call("a connection over loopback"))?;
        if let Self::Joined(joints) = self {
            pair.join(joints).map_err(call("joining two sockets"))?;
        }
        Ok(pair)
    }

    /// Whether what this socket has sent went the way that the case is about.
    pub(super) fn went_its_way(&self, sender: &TcpStream) -> Result<(), Fault> {
        let Self::Joined(joints) = self else {
            return Ok(());
        };
        let way = joints.joins.get(&sender.as_raw_fd().cast_unsigned());
        match way.map_err(call("reading JOINS"))? {
            Some(Join { way: JOIN_PAST, .. }) => Ok(()),
            _ => Err(wrong("what a joined socket sent went through TCP")),
        }
    }
}

/// A connection. Its sockets block, but give up after [`LIMIT`].
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

    /// Nothing was sent yet, so that nothing can be overtaken.
    fn join(&self, joints: &Joints) -> io::Result<()> {
        for socket in [&self.client, &self.server] {
            let number = socket.as_raw_fd().cast_unsigned();
            let end = end(socket)?;
            let join = Join {
                cookie: end.cookie,
                ..Join::default()
            };
            joints.joins.insert(&number, &join)?;
            joints.joined.insert(&end, &number)?;
        }
        Ok(())
    }
}

/// Whoever else calls our port is turned away.
fn accept(listener: &TcpListener, client: SocketAddr) -> io::Result<TcpStream> {
    let same = |peer: SocketAddr| {
        peer.port() == client.port() && peer.ip().to_canonical() == client.ip().to_canonical()
    };
    loop {
        let (socket, peer) = listener.accept()?;
        if same(peer) {
            return Ok(socket);
        }
    }
}

fn end(socket: &TcpStream) -> io::Result<End> {
    let (local, remote) = (socket.local_addr()?, socket.peer_addr()?);
    Ok(End {
        local: Address::from(local.ip()),
        remote: Address::from(remote.ip()),
        local_port: local.port().into(),
        remote_port: remote.port().into(),
        cookie: sys::netns_cookie(socket.as_fd())?,
    })
}

/// Names the call in a fault.
pub(super) fn call(call: &'static str) -> impl Fn(io::Error) -> Fault {
    move |source| Fault::Call { call, source }
}

/// A socket did what no TCP socket does.
pub(super) fn wrong(found: impl Into<String>) -> Fault {
    Fault::Behaviour {
        found: found.into(),
    }
}

/// Waits until one of the events is there, and says which; none after the time is up.
pub(super) fn wait(
    socket: &TcpStream,
    events: PollFlags,
    patience: Duration,
) -> Result<PollFlags, Fault> {
    let mut places = [PollFd::new(socket.as_fd(), events)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    poll(&mut places, patience).map_err(|errno| call("poll")(errno.into()))?;
    Ok(places[0].revents().unwrap_or(PollFlags::empty()))
}

/// Waits for data.
pub(super) fn readable(socket: &TcpStream) -> Result<(), Fault> {
    if wait(socket, PollFlags::POLLIN, LIMIT)?.contains(PollFlags::POLLIN) {
        Ok(())
    } else {
        Err(wrong("poll does not report data that was sent"))
    }
}

/// Tells the main thread of a case who is about to make a blocking call.
pub(super) fn tell_who(tell: &Sender<Pid>) {
    // It waits for that and for nothing else: it is there.
    let _told = tell.send(gettid()).is_ok();
}

/// Waits until a thread sleeps, or a moment if that cannot be seen.
pub(super) fn asleep(thread: Pid) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(10) {
        thread::sleep(Duration::from_micros(50));
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
        // The state follows the name, which is in brackets and may hold any other sign.
        if stat.is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" S"))
        }) {
            return;
        }
    }
}

/// Numbers that look random and are the same each time.
#[derive(Debug, Clone)]
pub(super) struct Pattern(u64);

impl Pattern {
    /// The pattern of a seed, which is not zero.
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

    /// A number from 1 to `most`.
    pub(super) fn size(&mut self, most: usize) -> usize {
        let number = usize::try_from(self.next() >> 33).unwrap_or(0);
        number % most.max(1) + 1
    }

    /// So many bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_ne_bytes());
        words.flatten().take(count).collect()
    }
}
