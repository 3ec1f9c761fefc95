//! Answers from the resolver that the application addressed: from the cache or over the network.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::super::ServerContext;
use super::super::cache::Key;
use super::super::forward;
use super::decide::ForwardedQuery;
use super::limits::{MAX_POD_QUERIES, MAX_WORKER_QUERIES, Permit, Usage};
use super::{Server, Transport};
use telemetry::DnsRefusal;

impl<C: ServerContext + 'static> Server<C> {
    /// The resolver's answer to a query, or a server failure. `resolver` is the one that the
    /// application addressed, if it is known.
    pub(super) async fn forward(
        &self,
        forwarded: &ForwardedQuery,
        resolver: Option<SocketAddr>,
    ) -> Option<Vec<u8>> {
        let metrics = self.telemetry.dns();
        let Some(resolver) = resolver else {
            metrics.refused(DnsRefusal::UnknownResolver);
            return forwarded.server_failure();
        };
        let key = forwarded
            .query
            .as_ref()
            .and_then(|query| Key::of(self.context.netns_cookie(), resolver, query));
        if let Some(answer) = key.as_ref().and_then(|key| self.cached(key, forwarded)) {
            return Some(answer);
        }
        let pod = Usage {
            count: &self.pending_queries,
            limit: MAX_POD_QUERIES,
        };
        let worker = Usage {
            count: &self.shared.pending_queries,
            limit: MAX_WORKER_QUERIES,
        };
        let Some(_permit) = Permit::take(pod, worker) else {
            metrics.refused(DnsRefusal::TooMany);
            return forwarded.server_failure();
        };
        metrics.forwarded(&forwarded.labels);
        let start = Instant::now();
        let answer = self.exchange(forwarded, resolver).await;
        metrics.answered(&forwarded.labels, start.elapsed(), answer.is_ok());
        match answer {
            Ok(answer) => {
                if let Some(key) = key {
                    let mut cache = self.shared.cache.borrow_mut();
                    cache.put(key, &answer, Instant::now());
                }
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(%error, %resolver, "cannot forward a DNS query to the resolver");
                forwarded.server_failure()
            }
        }
    }

    fn cached(&self, key: &Key, forwarded: &ForwardedQuery) -> Option<Vec<u8>> {
        let query = forwarded.query.as_ref()?;
        let max_length = forwarded.transport.max_answer(query);
        let cache = self.shared.cache.borrow();
        cache.get(key, query, max_length, Instant::now())
    }

    /// Sends the query to the resolver over the transport that the application used.
    async fn exchange(
        &self,
        forwarded: &ForwardedQuery,
        resolver: SocketAddr,
    ) -> io::Result<Vec<u8>> {
        let timeout = self.config.timeout;
        match forwarded.transport {
            Transport::Datagram => {
                let socket = self.context.resolver_socket(resolver)?;
                let buffer = &self.shared.receive_buffer;
                forward::by_datagram(socket, &forwarded.bytes, timeout, buffer).await
            }
            Transport::Stream => {
                let connect = self.context.connect_to_resolver(resolver);
                forward::by_stream(connect, &forwarded.bytes, timeout).await
            }
        }
    }
}
