//! How a refused plaintext connection ends: the client's `connect()` succeeds, and then the
//! connection is reset. A reset that arrives while the client is still inside `connect()` makes
//! `connect()` fail, and the client cannot tell a denial from a server that is not there.

use std::cell::Cell;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::pods::abort_on_drop;

/// How long a client that sends nothing may take to return from `connect()`. The first byte of a
/// client shows that it has returned.
const CONNECT_TIME: Duration = Duration::from_millis(100);
/// The maximum number of connections of a pod that wait on a worker; more are refused at once.
const MAX_WAITING: usize = 256;

/// The places for connections of one pod that wait on a worker, up to a maximum.
#[derive(Debug, Default)]
pub(super) struct Places(Cell<usize>);

impl Places {
    /// Takes a place until the returned value is dropped; none if all are taken.
    pub(super) fn enter(&self) -> Option<Place<'_>> {
        let taken = self.0.get();
        (taken < MAX_WAITING).then(|| {
            self.0.set(taken + 1);
            Place(&self.0)
        })
    }
}

/// A taken place.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Cell<usize>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// The refused connections of one pod on one worker.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    places: Places,
}

impl Refusals {
    /// Resets a connection that is refused. An orderly end would look like an empty answer.
    pub(super) async fn reset(&self, stream: TcpStream) {
        abort_on_drop(&stream);
        let Some(_place) = self.places.enter() else {
            return;
        };
        // The connection is reset whether or not the client has sent something.
        drop(tokio::time::timeout(CONNECT_TIME, stream.peek(&mut [0])).await);
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    async fn assert_reset(client: &mut TcpStream) {
        let read = client.read(&mut [0]).await.map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::ConnectionReset));
    }

    #[tokio::test(flavor = "local")]
    async fn a_client_that_speaks_first_is_reset_at_once() {
        let (mut client, refused) = pair().await;
        client.write_all(b"request").await.unwrap();
        let began = Instant::now();
        Refusals::default().reset(refused).await;
        assert!(began.elapsed() < CONNECT_TIME);
        assert_reset(&mut client).await;
    }

    #[tokio::test(flavor = "local")]
    async fn a_silent_client_is_reset_after_the_time_that_connect_may_take() {
        let (mut client, refused) = pair().await;
        let began = Instant::now();
        let refusals = Refusals::default();
        tokio::join!(refusals.reset(refused), assert_reset(&mut client));
        let took = began.elapsed();
        assert!(took >= CONNECT_TIME, "{took:?}");
        assert_eq!(refusals.places.0.get(), 0);
    }

    #[tokio::test(flavor = "local")]
    async fn beyond_the_maximum_connections_are_reset_at_once() {
        let refusals = Refusals {
            places: Places(Cell::new(MAX_WAITING)),
        };
        let (mut client, refused) = pair().await;
        let began = Instant::now();
        refusals.reset(refused).await;
        assert_reset(&mut client).await;
        assert!(began.elapsed() < CONNECT_TIME);
        assert_eq!(refusals.places.0.get(), MAX_WAITING);
    }
}
