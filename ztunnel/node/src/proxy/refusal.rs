//! How a refused plaintext connection ends: the client's `connect()` succeeds, and then the
//! connection is reset. A reset that arrives while the client is still inside `connect()` would make
//! `connect()` fail, as it does for a port without a listener.

use std::cell::Cell;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::pods::abort_on_drop;

/// How long a client that sends nothing may take to return from `connect()`. The first byte of a
/// client shows that it has returned.
const CONNECT_TIME: Duration = Duration::from_millis(100);
/// The maximum number of refused connections of a pod on a worker that wait; more are reset at once.
const MAX_WAITING: usize = 256;

/// The refused connections of one pod on one worker.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    waiting: Cell<usize>,
}

impl Refusals {
    /// Resets a connection that is refused. An orderly end would look like an empty answer.
    pub(super) async fn reset(&self, stream: TcpStream) {
        abort_on_drop(&stream);
        let waiting = self.waiting.get();
        if waiting >= MAX_WAITING {
            return;
        }
        self.waiting.set(waiting + 1);
        // The connection is reset whether or not the client has sent something.
        drop(tokio::time::timeout(CONNECT_TIME, stream.readable()).await);
        self.waiting.set(self.waiting.get().saturating_sub(1));
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
        assert!(began.elapsed() >= CONNECT_TIME);
        assert_eq!(refusals.waiting.get(), 0);
    }

    #[tokio::test(flavor = "local")]
    async fn beyond_the_maximum_connections_are_reset_at_once() {
        let refusals = Refusals {
            waiting: Cell::new(MAX_WAITING),
        };
        let (mut client, refused) = pair().await;
        let began = Instant::now();
        refusals.reset(refused).await;
        assert_reset(&mut client).await;
        assert!(began.elapsed() < CONNECT_TIME);
        assert_eq!(refusals.waiting.get(), MAX_WAITING);
    }
}
