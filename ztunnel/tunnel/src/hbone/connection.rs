//! One HTTP/2 connection to a peer: its handshake, its stream slots, and the task that drives it.
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

use super::config::{Config, STREAM_LIMIT_BEFORE_SETTINGS};
use super::deferred_flush::DeferredFlush;
use super::keepalive::{Activity, Alarm, Watchdog};

/// Resolves when the certificate that the peer of a connection presented is revoked.
pub type RevocationFuture = Pin<Box<dyn Future<Output = ()>>>;

/// A dialled byte stream, and the future that ends its use.
pub struct Dialled<IO> {
    pub(crate) stream: IO,
    pub(crate) revoking: Option<RevocationFuture>,
}

impl<IO> Dialled<IO> {
    /// A byte stream that may be used until it closes.
    pub const fn new(stream: IO) -> Self {
        Self {
            stream,
            revoking: None,
        }
    }

    /// Aborts the connection, with its tunnels, as soon as `revoking` resolves.
    #[must_use]
    pub fn until(self, revoking: RevocationFuture) -> Self {
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

/// Receives the events of a connection. Implemented by the pool's group.
pub(crate) trait Owner {
    /// A stream slot became free, or the peer's SETTINGS arrived: another tunnel may be opened.
    fn slot_released(&self);
    /// The connection ended.
    fn connection_ended(&self, connection: &Connection);
}

/// The part of a connection that the pool and its tunnels share.
pub(crate) struct Connection {
    /// h2's request side; `None` when no further tunnel may be opened.
    requests: RefCell<Option<SendRequest<Bytes>>>,
    /// The number of tunnels that are open or being opened.
    active: Cell<usize>,
    /// Our own limit of tunnels on the connection.
    limit: usize,
    idle_since: Cell<Instant>,
    /// Whether the peer has answered a CONNECT on this connection: then it accepted our
    /// certificate.
    responded: Cell<bool>,
    /// Whether the peer's SETTINGS have arrived.
    settings_received: Cell<bool>,
    /// Why the driver ended.
    cause: RefCell<Option<String>>,
    driver: RefCell<Option<AbortHandle>>,
    revoked: RevokedMark,
    /// The task that waits for the revocation while the connection exists.
    revoking: RefCell<Option<AbortHandle>>,
    owner: Weak<dyn Owner>,
}

impl Connection {
    /// Whether a tunnel may still be opened: no GOAWAY was received and the connection is open.
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
    pub(crate) fn awaits_settings(&self) -> bool {
        !self.settings_received.get()
    }

    /// The limit of tunnels. It is one until the peer's SETTINGS arrive: a peer that allows few
    /// streams would refuse a burst, or h2 would queue it.
    fn limit(&self) -> usize {
        if self.awaits_settings() {
            1
        } else {
            self.limit.min(self.peer_limit())
        }
    }

    /// Checks whether the peer's SETTINGS have arrived, and wakes the requests that wait for them.
    fn check_settings(&self) {
        if self.awaits_settings() && self.peer_limit() != STREAM_LIMIT_BEFORE_SETTINGS {
            self.settings_received.set(true);
            if let Some(owner) = self.owner.upgrade() {
                owner.slot_released();
            }
        }
    }

    /// Why no tunnel can be opened.
    pub(crate) fn cause(&self) -> String {
        self.cause
            .borrow()
            .clone()
            .unwrap_or_else(|| "the connection is closing".to_owned())
    }

    fn peer_limit(&self) -> usize {
        self.requests
            .borrow()
            .as_ref()
            .map_or(0, SendRequest::current_max_send_streams)
    }

    /// Reserves a stream slot, if one is free.
    pub(crate) fn try_reserve(self: &Rc<Self>) -> Option<StreamSlot> {
        let free = self.is_open() && self.active.get() < self.limit();
        free.then(|| {
            self.active.set(self.active.get() + 1);
            StreamSlot {
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
    pub(crate) fn record_response(&self) {
        self.responded.set(true);
    }

    /// Whether the peer has answered a CONNECT.
    pub(crate) fn has_responded(&self) -> bool {
        self.responded.get()
    }

    /// Refuses new tunnels. Open tunnels may finish, then the connection closes.
    pub(crate) fn retire(&self) {
        // Taken out of the cell before it is dropped: the drop wakes the driver.
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

    /// Aborts the connection when `revoking` resolves. Other connections to the same
    /// peer, which may have presented another certificate, stay open.
    pub(crate) fn abort_on_revocation(self: &Rc<Self>, revoking: RevocationFuture) {
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

    /// The mark that is set when the connection is aborted because of a revocation.
    pub(crate) const fn revoked(&self) -> &RevokedMark {
        &self.revoked
    }

    /// The number of tunnels that are open or being opened.
    pub(crate) fn active(&self) -> usize {
        self.active.get()
    }
}

/// A reserved stream slot on a connection. A tunnel holds it from before its CONNECT until it is
/// dropped.
pub(crate) struct StreamSlot {
    connection: Rc<Connection>,
}

impl StreamSlot {
    pub(crate) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl std::fmt::Debug for StreamSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSlot")
            .field("active", &self.connection.active.get())
            .finish()
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.active.set(connection.active.get() - 1);
        if connection.active.get() == 0 {
            connection.idle_since.set(Instant::now());
        }
        if let Some(owner) = connection.owner.upgrade() {
            owner.slot_released();
        }
    }
}

/// Starts HTTP/2 on a byte stream and spawns its driver. Does not wait for the peer's SETTINGS: the
/// first CONNECT leaves together with our own.
pub(crate) async fn handshake<IO>(
    io: IO,
    config: &Config,
    owner: Weak<dyn Owner>,
) -> Result<Rc<Connection>, h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let transport = DeferredFlush::new(io);
    // This only writes the preface; it waits while the socket's buffer is full.
    let (requests, mut h2) = config.client().handshake(transport.clone()).await?;
    let connection = Rc::new(Connection {
        requests: RefCell::new(Some(requests)),
        active: Cell::new(0),
        limit: config.max_streams_per_connection.max(1),
        idle_since: Cell::new(Instant::now()),
        responded: Cell::new(false),
        settings_received: Cell::new(false),
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
        watched: WatchedConnection {
            transport,
            connection: Rc::clone(&connection),
        },
    };
    let task = tokio::task::spawn_local(driver.run());
    *connection.driver.borrow_mut() = Some(task.abort_handle());
    Ok(connection)
}

struct WatchedConnection<IO> {
    transport: DeferredFlush<IO>,
    connection: Rc<Connection>,
}

impl<IO> Activity for WatchedConnection<IO> {
    fn take_received(&mut self) -> bool {
        self.transport.take_received()
    }

    fn idle_since(&mut self) -> Option<Instant> {
        (self.connection.active.get() == 0).then(|| self.connection.idle_since.get())
    }

    fn has_settings(&self) -> bool {
        !self.connection.awaits_settings()
    }
}

/// Reports the end of the driver to the pool, even if the task is aborted.
impl<IO> Drop for WatchedConnection<IO> {
    fn drop(&mut self) {
        self.connection.retire();
        if let Some(revoking) = self.connection.revoking.take() {
            revoking.abort();
        }
        if let Some(owner) = self.connection.owner.upgrade() {
            owner.connection_ended(&self.connection);
        }
    }
}

/// The state that the task of a connection owns.
struct Driver<IO> {
    h2: h2::client::Connection<DeferredFlush<IO>>,
    watchdog: Watchdog,
    closing_limit: std::time::Duration,
    watched: WatchedConnection<IO>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    async fn run(mut self) {
        let cause = poll_fn(|cx| self.poll(cx)).await;
        tracing::debug!(cause, "HBONE connection to a peer ended");
        *self.watched.connection.cause.borrow_mut() = Some(cause);
    }

    /// Ready when the connection has ended, with the cause.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        if let Poll::Ready(result) = Pin::new(&mut self.h2).poll(cx) {
            return Poll::Ready(result.map_or_else(|error| error.to_string(), |()| closed()));
        }
        if let Poll::Ready(Err(error)) = self.watched.transport.poll_flush_now(cx) {
            return Poll::Ready(error.to_string());
        }
        self.watched.connection.check_settings();
        while let Poll::Ready(alarm) = self.watchdog.poll(cx, &mut self.watched) {
            match alarm {
                Alarm::Dead(silence) => {
                    return Poll::Ready(format!("the peer sent nothing for {silence:?}"));
                }
                // Already retired: the close took too long, or no tunnel used the connection.
                Alarm::Idle if self.watched.connection.requests.borrow().is_none() => {
                    return Poll::Ready(closed());
                }
                Alarm::Idle => {
                    self.watched.connection.retire();
                    self.watched.connection.idle_since.set(Instant::now());
                    self.watchdog.shorten_idle_limit(self.closing_limit);
                }
            }
        }
        Poll::Pending
    }
}

fn closed() -> String {
    "closed".to_owned()
}
