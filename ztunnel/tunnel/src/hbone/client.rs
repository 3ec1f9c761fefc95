//! One pooled connection: its handshake, its slots for tunnels, and the task that drives it.
//!
//! The pool and every tunnel on the connection share a [`Connection`]; only the driver task owns
//! the byte stream and h2's state machine. When the last handle to h2's request side is dropped
//! ([`Connection::retire`]), h2 sends GOAWAY after the last tunnel and closes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::config::{Config, UNSETTLED_STREAMS};
use super::deferred_flush::DeferredFlush;
use super::keepalive::{Alarm, Watchdog, Watched};

/// Resolves when the certificate that the peer of a connection presented is revoked.
pub type Revoking = Pin<Box<dyn Future<Output = ()>>>;

/// The result of a dial: the byte stream of a connection, and a future that ends its use.
pub struct Dialled<IO> {
    pub(crate) stream: IO,
    pub(crate) revoking: Option<Revoking>,
}

impl<IO> Dialled<IO> {
    /// A byte stream that may be used until it closes.
    pub const fn new(stream: IO) -> Self {
        Self {
            stream,
            revoking: None,
        }
    }

    /// The same byte stream, used until `revoking` resolves: then this connection ends, and its
    /// tunnels break.
    #[must_use]
    pub fn until(self, revoking: Revoking) -> Self {
        Self {
            revoking: Some(revoking),
            ..self
        }
    }
}

impl<IO> std::fmt::Debug for Dialled<IO> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialled")
            .field("revocable", &self.revoking.is_some())
            .finish_non_exhaustive()
    }
}

/// Whether a connection was ended because its peer's certificate was revoked.
#[derive(Debug, Clone, Default)]
pub struct RevokedMark(Rc<Cell<bool>>);

impl RevokedMark {
    /// Sets the mark. The caller does this before it ends the connection.
    pub fn set(&self) {
        self.0.set(true);
    }

    /// Whether the mark is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.get()
    }
}

/// Receives the events of a connection: its group in the pool.
pub(crate) trait Owner {
    /// A tunnel ended, so another one may be opened.
    fn released(&self);
    /// The connection ended.
    fn ended(&self, connection: &Connection);
}

/// A connection as the pool and its tunnels see it.
pub(crate) struct Connection {
    /// `None` when no further tunnel may be opened.
    requests: RefCell<Option<SendRequest<Bytes>>>,
    /// The number of tunnels that are open or being opened.
    active: Cell<usize>,
    limit: usize,
    idle_since: Cell<Instant>,
    /// Whether the peer has answered a CONNECT on this connection: if so, it accepted our
    /// certificate.
    proven: Cell<bool>,
    /// Whether the peer's SETTINGS have arrived.
    settled: Cell<bool>,
    /// The reason for which the driver ended.
    cause: RefCell<Option<String>>,
    driver: RefCell<Option<AbortHandle>>,
    revoked: RevokedMark,
    /// The task that waits for the revocation while the connection exists.
    revoking: RefCell<Option<AbortHandle>>,
    owner: Weak<dyn Owner>,
}

impl Connection {
    /// Whether a tunnel may still be opened, according to the frames received so far.
    pub(crate) fn is_open(&self) -> bool {
        let mut requests = self.requests.borrow_mut();
        let Some(handle) = requests.as_mut() else {
            return false;
        };
        // h2 answers at once: it only waits for requests queued through this handle, and there are
        // none. An error is a GOAWAY or the end of the connection.
        let mut no_wake = Context::from_waker(Waker::noop());
        let open = matches!(handle.poll_ready(&mut no_wake), Poll::Ready(Ok(())));
        if !open {
            *requests = None;
        }
        open
    }

    /// Whether the peer's SETTINGS, which hold its stream limit, have not arrived yet.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.settled.get()
    }

    /// The number of tunnels allowed. It is one until the peer has announced its limit: a peer that
    /// allows few streams would refuse a burst, or leave it waiting inside h2.
    fn limit(&self) -> usize {
        if self.is_unsettled() {
            1
        } else {
            self.limit.min(self.peer_limit())
        }
    }

    /// Checks whether the SETTINGS have arrived, and wakes the opens that wait for them.
    fn settle(&self) {
        if self.is_unsettled() && self.peer_limit() != UNSETTLED_STREAMS {
            self.settled.set(true);
            if let Some(owner) = self.owner.upgrade() {
                owner.released();
            }
        }
    }

    /// The reason why no tunnel can be opened.
    pub(crate) fn cause(&self) -> String {
        self.cause
            .borrow()
            .clone()
            .unwrap_or_else(|| "it was being closed".to_owned())
    }

    fn peer_limit(&self) -> usize {
        self.requests
            .borrow()
            .as_ref()
            .map_or(0, SendRequest::current_max_send_streams)
    }

    /// A slot for a tunnel, if one is free.
    pub(crate) fn take(self: &Rc<Self>) -> Option<Slot> {
        let free = self.is_open() && self.active.get() < self.limit();
        free.then(|| {
            self.active.set(self.active.get() + 1);
            Slot {
                connection: Rc::clone(self),
            }
        })
    }

    /// A handle to send one request with. Each request needs its own: h2 blocks a handle until its
    /// last request is sent.
    pub(crate) fn request_handle(&self) -> Option<SendRequest<Bytes>> {
        self.requests.borrow().clone()
    }

    /// Records that the peer answered a CONNECT.
    pub(crate) fn prove(&self) {
        self.proven.set(true);
    }

    /// Whether the peer has answered a CONNECT.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven.get()
    }

    /// Opens no further tunnels. Open tunnels may finish, then the connection closes.
    pub(crate) fn retire(&self) {
        // The handle is taken out first: dropping it wakes the driver.
        let handle = self.requests.borrow_mut().take();
        drop(handle);
    }

    /// Ends the connection at once; its tunnels break.
    pub(crate) fn abort(&self) {
        self.retire();
        if let Some(driver) = self.driver.borrow().as_ref() {
            driver.abort();
        }
    }

    /// Ends the connection when its peer's certificate is revoked. Other connections to the same
    /// peer, which may have presented another certificate, stay open.
    pub(crate) fn end_when(self: &Rc<Self>, revoking: Revoking) {
        let this = Rc::downgrade(self);
        let task = tokio::task::spawn_local(async move {
            revoking.await;
            if let Some(connection) = this.upgrade() {
                connection.revoked.set();
                connection.abort();
            }
        });
        *self.revoking.borrow_mut() = Some(task.abort_handle());
    }

    /// The mark that is set when the connection ends by revocation.
    pub(crate) const fn revoked(&self) -> &RevokedMark {
        &self.revoked
    }

    /// The number of tunnels that are open or being opened.
    pub(crate) fn active(&self) -> usize {
        self.active.get()
    }
}

/// A slot on a connection. A tunnel holds it from before its CONNECT until it is dropped.
pub(crate) struct Slot {
    connection: Rc<Connection>,
}

impl Slot {
    pub(crate) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("active", &self.connection.active.get())
            .finish()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.active.set(connection.active.get() - 1);
        if connection.active.get() == 0 {
            connection.idle_since.set(Instant::now());
        }
        if let Some(owner) = connection.owner.upgrade() {
            owner.released();
        }
    }
}

/// Starts HTTP/2 on a byte stream and spawns its driver. It does not wait for the peer's SETTINGS:
/// the first CONNECT travels with our own SETTINGS.
pub(crate) async fn handshake<IO>(
    io: IO,
    config: &Config,
    owner: Weak<dyn Owner>,
) -> Result<Rc<Connection>, h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let line = DeferredFlush::new(io);
    // This only writes the preface; it waits for space in the socket.
    let (requests, mut h2) = config.client().handshake(line.clone()).await?;
    let connection = Rc::new(Connection {
        requests: RefCell::new(Some(requests)),
        active: Cell::new(0),
        limit: config.max_streams_per_connection.max(1),
        idle_since: Cell::new(Instant::now()),
        proven: Cell::new(false),
        settled: Cell::new(false),
        cause: RefCell::new(None),
        driver: RefCell::new(None),
        revoked: RevokedMark::default(),
        revoking: RefCell::new(None),
        owner,
    });
    let keepalive = config
        .keepalive
        .and_then(|keepalive| Some((keepalive, h2.ping_pong()?)));
    let watchdog = Watchdog::new(keepalive, config.idle_release, config.handshake_timeout);
    let driver = Driver {
        h2,
        watchdog,
        closing_limit: config.handshake_timeout,
        watch: Watch {
            line,
            connection: Rc::clone(&connection),
        },
    };
    let task = tokio::task::spawn_local(driver.run());
    *connection.driver.borrow_mut() = Some(task.abort_handle());
    Ok(connection)
}

struct Watch<IO> {
    line: DeferredFlush<IO>,
    connection: Rc<Connection>,
}

impl<IO> Watched for Watch<IO> {
    fn take_heard(&mut self) -> bool {
        self.line.take_heard()
    }

    fn idle_since(&mut self) -> Option<Instant> {
        (self.connection.active.get() == 0).then(|| self.connection.idle_since.get())
    }

    fn is_settled(&self) -> bool {
        !self.connection.is_unsettled()
    }
}

/// Reports the end of the driver to the pool, also when the task is aborted.
impl<IO> Drop for Watch<IO> {
    fn drop(&mut self) {
        self.connection.retire();
        if let Some(revoking) = self.connection.revoking.take() {
            revoking.abort();
        }
        if let Some(owner) = self.connection.owner.upgrade() {
            owner.ended(&self.connection);
        }
    }
}

/// The state that the task of a connection owns.
struct Driver<IO> {
    h2: h2::client::Connection<DeferredFlush<IO>>,
    watchdog: Watchdog,
    closing_limit: std::time::Duration,
    watch: Watch<IO>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    async fn run(mut self) {
        let cause = poll_fn(|cx| self.poll(cx)).await;
        tracing::debug!(cause, "connection to a peer ended");
        *self.watch.connection.cause.borrow_mut() = Some(cause);
    }

    /// Ready with the reason for which the connection ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        if let Poll::Ready(result) = Pin::new(&mut self.h2).poll(cx) {
            return Poll::Ready(result.map_or_else(|error| error.to_string(), |()| closed()));
        }
        if let Poll::Ready(Err(error)) = self.watch.line.poll_flush_now(cx) {
            return Poll::Ready(error.to_string());
        }
        self.watch.connection.settle();
        while let Poll::Ready(alarm) = self.watchdog.poll(cx, &mut self.watch) {
            match alarm {
                Alarm::Dead(silence) => {
                    return Poll::Ready(format!("no answer for {silence:?}"));
                }
                // The close took too long, or only the driver still used the connection.
                Alarm::Idle if self.watch.connection.requests.borrow().is_none() => {
                    return Poll::Ready(closed());
                }
                Alarm::Idle => {
                    self.watch.connection.retire();
                    self.watch.connection.idle_since.set(Instant::now());
                    self.watchdog.hurry(self.closing_limit);
                }
            }
        }
        Poll::Pending
    }
}

fn closed() -> String {
    "closed".to_owned()
}
