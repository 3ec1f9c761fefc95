//! One end of a connection, held by an application that blocks or by one that waits for events.
//!
//! Both look the same to the code that uses them. The difference is what the kernel sees: a
//! blocking end sleeps in `recv` and `send`, an event-driven one never does: its socket is
//! non-blocking, and it sleeps in epoll. `acceleration: on` is a promise of the operator that
//! applications are of the second kind.
#![allow(
    unsafe_code,
    reason = "the counters of a TCP socket have no safe binding among the dependencies"
)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::epoll::{Epoll, Interest};

/// How an application waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Manner {
    /// In the call itself.
    #[default]
    Blocking,
    /// In epoll; its calls never block.
    EventDriven,
}

/// One end of a connection. It derefs to its stream for what does not wait: names, shutdown.
#[derive(Debug)]
pub struct End {
    stream: TcpStream,
    manner: Manner,
    limits: Mutex<Limits>,
    input: OnceLock<Mutex<Epoll>>,
    output: OnceLock<Mutex<Epoll>>,
}

/// How long an event-driven end waits; none is for ever.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    read: Option<Duration>,
    write: Option<Duration>,
}

/// So long one call of epoll waits at most.
const SLICE: Duration = Duration::from_secs(1);

impl End {
    /// Makes an end of a connected stream.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(stream: TcpStream, manner: Manner) -> io::Result<Self> {
        stream.set_nonblocking(manner == Manner::EventDriven)?;
        Ok(Self {
            stream,
            manner,
            limits: Mutex::default(),
            input: OnceLock::new(),
            output: OnceLock::new(),
        })
    }

    /// Connects within `limit`, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When that fails.
    pub fn connect(to: SocketAddr, manner: Manner, limit: Duration) -> io::Result<Self> {
        Self::new(TcpStream::connect_timeout(&to, limit)?, manner)
    }

    /// Limits how long a read waits.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.limits().read = limit;
        self.stream.set_read_timeout(limit)
    }

    /// Limits how long a write waits.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.limits().write = limit;
        self.stream.set_write_timeout(limit)
    }

    /// How many bytes of its payload have come over TCP. Where two ends are joined, payload goes
    /// from socket to socket, and TCP has seen next to none of it.
    ///
    /// # Errors
    /// When the socket is no TCP socket.
    pub fn received_over_tcp(&self) -> io::Result<u64> {
        /// `tcpi_bytes_received` in `struct tcp_info` (include/uapi/linux/tcp.h): behind 8 bytes,
        /// 24 32-bit counters, and three 64-bit ones.
        const AT: u8 = 8 + 24 * 4 + 3 * 8;
        let mut info = [0u8; AT as usize + 8];
        let mut length = libc::socklen_t::from(AT) + 8;
        // SAFETY: the kernel writes at most `length` bytes into a buffer of that length.
        let result = unsafe {
            libc::getsockopt(
                self.stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut counter = [0; 8];
        counter.copy_from_slice(&info[usize::from(AT)..]);
        Ok(u64::from_ne_bytes(counter))
    }

    fn limits(&self) -> std::sync::MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the kernel says that a call will not block; an error of the kind that a
    /// blocking call gives when the limit is reached first.
    fn wait(&self, interest: Interest) -> io::Result<()> {
        let (cell, limit) = match interest {
            Interest::Input => (&self.input, self.limits().read),
            Interest::Output => (&self.output, self.limits().write),
        };
        let epoll = match cell.get() {
            Some(epoll) => epoll,
            None => {
                let epoll = Epoll::new()?;
                epoll.add(&self.stream, 0, interest)?;
                cell.get_or_init(|| Mutex::new(epoll))
            }
        };
        let mut epoll = epoll.lock().unwrap_or_else(PoisonError::into_inner);
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            let left = end.map_or(SLICE, |end| {
                end.saturating_duration_since(Instant::now()).min(SLICE)
            });
            if epoll.wait(left)?.next().is_some() {
                return Ok(());
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }
}

impl Deref for End {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for &End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.manner == Manner::Blocking {
            return (&self.stream).read(buffer);
        }
        loop {
            self.wait(Interest::Input)?;
            match (&self.stream).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
        }
    }
}

impl Write for &End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.manner == Manner::Blocking {
            return (&self.stream).write(bytes);
        }
        loop {
            match (&self.stream).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Interest::Output)?;
                }
                outcome => return outcome,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Shutdown, TcpListener};

    fn pair(manner: Manner) -> (End, End) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let near = End::connect(to, manner, SLICE).unwrap();
        (
            near,
            End::new(listener.accept().unwrap().0, manner).unwrap(),
        )
    }

    #[test]
    fn both_manners_carry_more_than_buffers_hold_and_see_the_end() {
        for manner in [Manner::Blocking, Manner::EventDriven] {
            let (near, far) = pair(manner);
            let sent = vec![7; 32 << 20];
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    (&near).write_all(&sent).unwrap();
                    near.shutdown(Shutdown::Write).unwrap();
                });
                let mut heard = Vec::new();
                (&far).read_to_end(&mut heard).unwrap();
                assert!(heard == sent, "{manner:?}");
            });
            // The end of the stream counts as one.
            assert_eq!(far.received_over_tcp().unwrap(), (32 << 20) + 1);
        }
    }

    #[test]
    fn both_manners_give_up_in_the_same_way() {
        let limit = Some(Duration::from_millis(20));
        for manner in [Manner::Blocking, Manner::EventDriven] {
            let (mut near, _far) = pair(manner);
            near.set_read_timeout(limit).unwrap();
            near.set_write_timeout(limit).unwrap();
            let read = near.read(&mut [0]).unwrap_err().kind();
            assert_eq!(read, io::ErrorKind::WouldBlock, "{manner:?}");
            let chunk = vec![0; 1 << 20];
            let wrote = (0..1000).find_map(|_| near.write_all(&chunk).err());
            let wrote = wrote.unwrap().kind();
            assert_eq!(wrote, io::ErrorKind::WouldBlock, "{manner:?}");
        }
    }
}
