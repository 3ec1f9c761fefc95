//! One end of a TCP connection, of a blocking or an event-driven application.
//!
//! Both modes have the same interface. They differ for the kernel: a blocking stream sleeps in `recv` and
//! `send`; an event-driven stream has a non-blocking socket and sleeps in epoll. With `acceleration: on`
//! the operator guarantees that applications are event-driven.
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

/// The I/O mode of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum IoMode {
    /// Calls block.
    #[default]
    Blocking,
    /// Calls never block; the application waits in epoll.
    EventDriven,
}

/// One end of a TCP connection. Dereferences to its `TcpStream` for calls that do not block.
#[derive(Debug)]
pub struct Stream {
    stream: TcpStream,
    io_mode: IoMode,
    limits: Mutex<Limits>,
    input: OnceLock<Mutex<Epoll>>,
    output: OnceLock<Mutex<Epoll>>,
}

/// The time limits of an event-driven stream; `None` for no limit.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    read: Option<Duration>,
    write: Option<Duration>,
}

/// The longest wait of one epoll call.
const SLICE: Duration = Duration::from_secs(1);

impl Stream {
    /// Wraps a connected stream.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(stream: TcpStream, io_mode: IoMode) -> io::Result<Self> {
        stream.set_nonblocking(io_mode == IoMode::EventDriven)?;
        Ok(Self {
            stream,
            io_mode,
            limits: Mutex::default(),
            input: OnceLock::new(),
            output: OnceLock::new(),
        })
    }

    /// Connects within `limit`, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn connect(to: SocketAddr, io_mode: IoMode, limit: Duration) -> io::Result<Self> {
        Self::new(TcpStream::connect_timeout(&to, limit)?, io_mode)
    }

    /// Sets the time limit of a read.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.limits().read = limit;
        self.stream.set_read_timeout(limit)
    }

    /// Sets the time limit of a write.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.limits().write = limit;
        self.stream.set_write_timeout(limit)
    }

    /// The number of payload bytes that arrived over TCP. Between joined sockets almost no payload is
    /// transferred over TCP.
    ///
    /// # Errors
    /// When the socket is not a TCP socket.
    pub fn received_over_tcp(&self) -> io::Result<u64> {
        /// The offset of `tcpi_bytes_received` in `struct tcp_info` (include/uapi/linux/tcp.h): after
        /// 8 bytes, 24 32-bit counters, and three 64-bit ones.
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

    /// Waits until a call will not block. At the time limit, returns the same kind of error as a blocking
    /// call.
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

impl Deref for Stream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.io_mode == IoMode::Blocking {
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

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.io_mode == IoMode::Blocking {
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

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }
}

impl Write for Stream {
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

    fn pair(io_mode: IoMode) -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let near = Stream::connect(to, io_mode, SLICE).unwrap();
        (
            near,
            Stream::new(listener.accept().unwrap().0, io_mode).unwrap(),
        )
    }

    #[test]
    fn both_modes_transfer_more_than_the_buffers_hold_and_see_the_end() {
        for io_mode in [IoMode::Blocking, IoMode::EventDriven] {
            let (near, far) = pair(io_mode);
            let sent = vec![7; 32 << 20];
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    (&near).write_all(&sent).unwrap();
                    near.shutdown(Shutdown::Write).unwrap();
                });
                let mut received = Vec::new();
                (&far).read_to_end(&mut received).unwrap();
                assert!(received == sent, "{io_mode:?}");
            });
            // The count includes the FIN.
            assert_eq!(far.received_over_tcp().unwrap(), (32 << 20) + 1);
        }
    }

    #[test]
    fn both_modes_time_out_with_the_same_error() {
        let limit = Some(Duration::from_millis(20));
        for io_mode in [IoMode::Blocking, IoMode::EventDriven] {
            let (mut near, _far) = pair(io_mode);
            near.set_read_timeout(limit).unwrap();
            near.set_write_timeout(limit).unwrap();
            let read = near.read(&mut [0]).unwrap_err().kind();
            assert_eq!(read, io::ErrorKind::WouldBlock, "{io_mode:?}");
            let chunk = vec![0; 1 << 20];
            let wrote = (0..1000).find_map(|_| near.write_all(&chunk).err());
            let wrote = wrote.unwrap().kind();
            assert_eq!(wrote, io::ErrorKind::WouldBlock, "{io_mode:?}");
        }
    }
}
