//! The connections that the proxy carries now, for the admin API. Each worker has its own shard, so
//! opening and closing a connection can wait only for a reader.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::connection::ConnectionId;
use super::connection_info::ConnectionInfo;
use mesh::Uid;
use telemetry::Reporter;

/// The connections that the proxy carries now, including those in set-up.
#[derive(Debug, Default)]
pub struct ConnectionTable {
    shards: Mutex<Vec<Shard>>,
}

/// One connection as the admin API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Its number. The two ends of a connection between pods of this node have the same one.
    pub id: ConnectionId,
    /// The pod of the connection: the client's pod for outbound, the server's for inbound.
    pub pod: Uid,
    /// Whether the connection is inbound.
    pub inbound: bool,
    /// The client's address; port 0 if the peer connects on behalf of the client.
    pub client: SocketAddr,
    /// The address that the client dialled; for an inbound tunnel its authority.
    pub dialled: String,
    /// The address of the tunnel's far end; without a tunnel and for inbound the server's address.
    pub to: SocketAddr,
    /// Whether the connection uses a tunnel.
    pub tunnelled: bool,
}

impl ConnectionTable {
    /// Creates the shard of one more worker.
    pub(super) fn shard(&self) -> Shard {
        let shard = Shard::default();
        locked(&self.shards).push(shard.clone());
        shard
    }

    /// Every connection, in no particular order. A connection whose pod is unknown to the mesh is
    /// left out; it is about to be refused.
    #[must_use]
    pub fn carried(&self) -> Vec<Carried> {
        let shards = locked(&self.shards).clone();
        // The strings are formatted without the lock.
        let copy = |shard: Shard| {
            let entries = locked(&shard.0);
            entries
                .iter()
                .map(|(_, row)| row.clone())
                .collect::<Vec<_>>()
        };
        let all = shards.into_iter().flat_map(copy);
        all.filter_map(|row| carried(&row)).collect()
    }
}

/// A row of the table.
#[derive(Debug, Clone)]
struct Row {
    id: ConnectionId,
    info: Arc<ConnectionInfo>,
}

/// One worker's connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Shard(Arc<Mutex<Slab<Row>>>);

impl Shard {
    /// Adds a connection until the returned value is dropped.
    pub(super) fn add(&self, id: ConnectionId, info: Arc<ConnectionInfo>) -> Entry {
        let key = locked(&self.0).insert(Row { id, info });
        Entry {
            shard: self.clone(),
            key,
        }
    }
}

/// A connection's entry in its shard.
#[derive(Debug)]
pub(super) struct Entry {
    shard: Shard,
    key: usize,
}

impl Drop for Entry {
    fn drop(&mut self) {
        drop(locked(&self.shard.0).try_remove(self.key));
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn carried(row: &Row) -> Option<Carried> {
    let info = &row.info;
    let inbound = info.reporter == Reporter::Destination;
    let pod = if inbound {
        &info.workload
    } else {
        &info.source
    };
    let tunnel = info.hbone.as_ref();
    let authority = tunnel.filter(|_| inbound);
    Some(Carried {
        id: row.id,
        pod: pod.as_ref()?.uid.clone(),
        inbound,
        client: info.client,
        dialled: authority.map_or_else(
            || info.dialled.to_string(),
            |tunnel| tunnel.authority.to_string(),
        ),
        to: tunnel
            .filter(|_| !inbound)
            .map_or(info.destination, |tunnel| tunnel.at),
        tunnelled: tunnel.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::connection_info::Tunnelled;
    use super::*;
    use mesh::Workload;

    fn info(reporter: Reporter) -> ConnectionInfo {
        let workload = |uid| Arc::new(Workload::new(uid, uid, "default", "default").unwrap());
        ConnectionInfo {
            reporter,
            began: Instant::now(),
            client: "10.0.0.1:4000".parse().unwrap(),
            dialled: "10.9.0.1:80".parse().unwrap(),
            source: Some(workload("client")),
            source_identity: None,
            destination: "10.0.0.2:8080".parse().unwrap(),
            hbone: Some(Tunnelled {
                at: "10.0.0.2:15008".parse().unwrap(),
                authority: "web.default:80".parse().unwrap(),
            }),
            workload: Some(workload("server")),
            destination_identity: None,
            service: None,
        }
    }

    #[test]
    fn the_table_holds_a_connection_until_it_ends() {
        let connection_table = ConnectionTable::default();
        let (one, other) = (connection_table.shard(), connection_table.shard());
        let outbound = one.add(ConnectionId(1), Arc::new(info(Reporter::Source)));
        let inbound = other.add(ConnectionId(2), Arc::new(info(Reporter::Destination)));
        let shown = |carried: &Carried| {
            let (dialled, to) = (carried.dialled.clone(), carried.to.to_string());
            (carried.pod.to_string(), carried.inbound, dialled, to)
        };
        let texts = |pod: &str, inbound, dialled: &str, to: &str| {
            (pod.to_owned(), inbound, dialled.to_owned(), to.to_owned())
        };
        let all: Vec<_> = connection_table.carried().iter().map(shown).collect();
        let expected = [
            texts("client", false, "10.9.0.1:80", "10.0.0.2:15008"),
            texts("server", true, "web.default:80", "10.0.0.2:8080"),
        ];
        assert_eq!(all, expected);
        drop(outbound);
        assert_eq!(connection_table.carried().len(), 1);
        drop(inbound);
        let info = ConnectionInfo {
            source: None,
            ..info(Reporter::Source)
        };
        let unknown = one.add(ConnectionId(3), Arc::new(info));
        assert!(connection_table.carried().is_empty());
        drop(unknown);
    }
}
