//! Fast-path entries and connections in the kernel's maps. Storage only: `mesh` decides what is
//! authorized, `fastpath` writes and removes entries through these functions.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ztunnel_ebpf_types as shared;
use ztunnel_ebpf_types::{
    CONNECTION_BY_PROXY, CONNECTION_INBOUND, CONNECTION_JOIN, COUNTER_LOST_EVENTS,
    COUNTER_OPEN_CONNECTIONS, POD_JOIN, SOCKET_FAST_PATH, SOCKET_LISTENER,
    SOCKET_OUTBOUND_LISTENER, SocketState,
};

use mesh::NetnsCookie;
use mesh::fastpath::{
    Backend, FastPathConnection, FastPathEntry, FastPathKey, InboundEntry, JoinMode, MAX_BACKENDS,
    Opener,
};

use super::maps::{Maps, failed};
use super::{Error, Kernel};

/// What a listener of the proxy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerRole {
    /// Connections into the pod.
    Inbound,
    /// The pod's captured connections.
    Captured,
}

/// A fast-path entry in the kernel's map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// The pod and the destination.
    pub key: FastPathKey,
    /// What the proxy has authorized.
    pub entry: FastPathEntry,
    /// Whether it leads no new connection: see [`Kernel::retire_entry`].
    pub is_retired: bool,
}

// An entry has room for as many backends as the kernel programs read.
const _: () = assert!(MAX_BACKENDS == shared::MAX_BACKENDS);

/// The flags of a connection whose ends are joined or not.
fn join_flags(join_mode: JoinMode) -> u32 {
    match join_mode {
        JoinMode::Apart => 0,
        JoinMode::Joined => CONNECTION_JOIN,
    }
}

fn join_mode_of(flags: u32) -> JoinMode {
    if flags & CONNECTION_JOIN == 0 {
        JoinMode::Apart
    } else {
        JoinMode::Joined
    }
}

fn socket_address(address: shared::Address, port: u32) -> SocketAddr {
    SocketAddr::new(address.into(), u16::try_from(port).unwrap_or_default())
}

fn connection_key(connection: &FastPathConnection) -> shared::ConnectionKey {
    shared::ConnectionKey {
        client: connection.client.ip().into(),
        server: connection.server.ip().into(),
        client_port: connection.client.port().into(),
        server_port: connection.server.port().into(),
    }
}

/// Decodes a connection of the kernel's maps and events.
pub(super) fn connection(
    key: &shared::ConnectionKey,
    state: &shared::ConnectionState,
) -> FastPathConnection {
    FastPathConnection {
        pod: NetnsCookie(state.pod),
        server_pod: pod(state.server_pod),
        opener: if state.flags & CONNECTION_INBOUND != 0 {
            Opener::Outside
        } else if state.flags & CONNECTION_BY_PROXY != 0 {
            Opener::Proxy
        } else {
            Opener::Pod
        },
        client: socket_address(key.client, key.client_port),
        server: socket_address(key.server, key.server_port),
        dialled: socket_address(state.dialled_address, state.dialled_port),
        socket: state.socket_cookie,
        opened: state.opened_at,
    }
}

fn pod(cookie: u64) -> Option<NetnsCookie> {
    (cookie != 0).then_some(NetnsCookie(cookie))
}

fn cookie(pod: Option<NetnsCookie>) -> u64 {
    pod.map_or(0, |cookie| cookie.0)
}

fn entry_key(key: &FastPathKey) -> shared::FastPathKey {
    shared::FastPathKey {
        pod: key.pod.0,
        address: key.destination.ip().into(),
        port: key.destination.port().into(),
        zero: 0,
    }
}

fn inbound_key(entry: &InboundEntry) -> shared::InboundKey {
    shared::InboundKey {
        destination: entry.to.ip().into(),
        source: entry.from.into(),
        port: entry.to.port().into(),
    }
}

impl Kernel {
    /// Lets the kernel carry new connections of a pod to a destination. If the map is full, the
    /// least recently used entries are evicted.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn insert_entry(&self, key: &FastPathKey, entry: &FastPathEntry) -> Result<(), Error> {
        self.write_entry(key, entry, 0)
    }

    /// Sends new connections of a pod to a destination to the proxy again. One that has been routed by
    /// the entry, and has not sent its SYN, goes on. Remove the entry a moment later.
    ///
    /// # Errors
    /// As [`Self::remove_entry`].
    pub fn retire_entry(&self, key: &FastPathKey, entry: &FastPathEntry) -> Result<(), Error> {
        self.write_entry(key, entry, shared::ENTRY_RETIRED)
    }

    fn write_entry(
        &self,
        key: &FastPathKey,
        entry: &FastPathEntry,
        flags: u32,
    ) -> Result<(), Error> {
        let maps = &self.maps;
        let mut value = shared::FastPathEntry {
            epoch: maps.epoch(),
            total_weight: entry.total,
            flags,
            ..shared::FastPathEntry::default()
        };
        for (listed, backend) in value.backends.iter_mut().zip(&entry.backends) {
            *listed = shared::Backend {
                address: backend.to.ip().into(),
                server_pod: cookie(backend.server),
                port: backend.to.port(),
                // Every bit is below 16.
                flags: u16::try_from(join_flags(backend.join_mode)).unwrap_or_default(),
                weight: backend.weight,
            };
            value.backend_count += 1;
        }
        maps.fast_path
            .insert(&entry_key(key), &value)
            .map_err(failed(&maps.fast_path, "written"))
    }

    /// Sends new connections of a pod to a destination to the proxy again.
    ///
    /// # Errors
    /// When the map cannot be written; call [`Self::invalidate_entries`] then.
    pub fn remove_entry(&self, key: &FastPathKey) -> Result<(), Error> {
        let fast_path = &self.maps.fast_path;
        fast_path
            .remove(&entry_key(key))
            .map_err(failed(fast_path, "written"))
    }

    /// Removes an entry if it is retired.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn remove_retired_entry(&self, key: &FastPathKey) -> Result<(), Error> {
        let fast_path = &self.maps.fast_path;
        let stored = fast_path.get(&entry_key(key));
        let stored = stored.map_err(failed(fast_path, "read"))?;
        match stored {
            Some(stored) if stored.flags & shared::ENTRY_RETIRED != 0 => self.remove_entry(key),
            _ => Ok(()),
        }
    }

    /// All fast-path entries.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<Vec<StoredEntry>, Error> {
        let entries = self.maps.fast_path.entries();
        let entries = entries.map_err(failed(&self.maps.fast_path, "read"))?;
        let stored = entries.iter().map(|(key, value)| {
            let is_retired = value.flags & shared::ENTRY_RETIRED != 0;
            let (key, entry) = entry(key, value);
            StoredEntry {
                key,
                entry,
                is_retired,
            }
        });
        Ok(stored.collect())
    }

    /// Lets the kernel carry new plaintext connections from a source into a pod.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn insert_inbound_entry(&self, entry: &InboundEntry) -> Result<(), Error> {
        let maps = &self.maps;
        let value = shared::InboundEntry {
            pod: entry.pod.0,
            epoch: maps.epoch(),
            zero: 0,
        };
        maps.inbound_entries
            .insert(&inbound_key(entry), &value)
            .map_err(failed(&maps.inbound_entries, "written"))
    }

    /// Sends new plaintext connections from this source to the proxy again.
    ///
    /// # Errors
    /// As [`Self::remove_entry`].
    pub fn remove_inbound_entry(&self, entry: &InboundEntry) -> Result<(), Error> {
        let inbound_entries = &self.maps.inbound_entries;
        inbound_entries
            .remove(&inbound_key(entry))
            .map_err(failed(inbound_entries, "written"))
    }

    /// All inbound entries.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn inbound_entries(&self) -> Result<Vec<InboundEntry>, Error> {
        let entries = self.maps.inbound_entries.entries();
        let entries = entries.map_err(failed(&self.maps.inbound_entries, "read"))?;
        let entry = |(key, value): &(shared::InboundKey, shared::InboundEntry)| InboundEntry {
            pod: NetnsCookie(value.pod),
            to: socket_address(key.destination, key.port),
            from: key.source.into(),
        };
        Ok(entries.iter().map(entry).collect())
    }

    /// Invalidates all entries at once, by one write.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn invalidate_entries(&self) -> Result<(), Error> {
        self.maps.next_epoch()
    }

    /// All open fast-path connections.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn fast_path_connections(&self) -> Result<Vec<FastPathConnection>, Error> {
        let entries = self.maps.connections.entries();
        let entries = entries.map_err(failed(&self.maps.connections, "read"))?;
        Ok(entries
            .iter()
            .map(|(key, state)| connection(key, state))
            .collect())
    }

    /// Removes a connection whose socket has gone without an event.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn remove_connection(&self, connection: &FastPathConnection) -> Result<(), Error> {
        let connections = &self.maps.connections;
        let key = connection_key(connection);
        let recorded = connections.get(&key).map_err(failed(connections, "read"))?;
        if recorded.is_some_and(|state| state.socket_cookie == connection.socket) {
            connections
                .remove(&key)
                .map_err(failed(connections, "written"))?;
            let left = connections
                .entries()
                .map_err(failed(connections, "read"))?
                .len();
            self.maps
                .set_counter(COUNTER_OPEN_CONNECTIONS, left as u64)?;
        }
        Ok(())
    }

    /// How many events of fast-path connections were lost since the maps were created, because the
    /// ring buffer was full.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.maps.counter(COUNTER_LOST_EVENTS)
    }

    /// Puts a socket of the proxy on the fast path: the connection that it is about to open is let
    /// into the server's pod, if that is on this node, and is found when policy changes.
    ///
    /// # Errors
    /// When the socket's storage cannot be written.
    pub fn mark_fast_path_socket(
        &self,
        socket: BorrowedFd<'_>,
        dialled: SocketAddr,
        to: SocketAddr,
        server: Option<NetnsCookie>,
    ) -> io::Result<()> {
        let state = SocketState {
            dialled_address: dialled.ip().into(),
            dialled_port: dialled.port().into(),
            kind: SOCKET_FAST_PATH,
            peer_address: to.ip().into(),
            peer_port: to.port().into(),
            flags: CONNECTION_BY_PROXY,
            server_pod: cookie(server),
            ..SocketState::default()
        };
        self.maps.set_socket_state(socket, &state)
    }

    /// Sets whether new connections of a pod with the proxy are joined. A pod that is not captured
    /// has no such connections.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn set_join_mode(&self, pod: NetnsCookie, join_mode: JoinMode) -> Result<(), Error> {
        let pods = &self.maps.pods;
        let enrolled = pods.get(&pod.0).map_err(failed(pods, "read"))?;
        let Some(mut entry) = enrolled else {
            return Ok(());
        };
        let before = entry.flags;
        entry.flags &= !POD_JOIN;
        if join_mode == JoinMode::Joined {
            entry.flags |= POD_JOIN;
        }
        if entry.flags == before {
            return Ok(());
        }
        pods.insert(&pod.0, &entry).map_err(failed(pods, "written"))
    }

    /// Marks a listener as the proxy's own: connections that it accepts are not on the fast path. To be
    /// called before it listens.
    ///
    /// # Errors
    /// When the socket's storage cannot be written.
    pub fn mark_listener(&self, listener: BorrowedFd<'_>, role: ListenerRole) -> io::Result<()> {
        let kind = match role {
            ListenerRole::Inbound => SOCKET_LISTENER,
            ListenerRole::Captured => SOCKET_OUTBOUND_LISTENER,
        };
        let state = SocketState {
            kind,
            ..SocketState::default()
        };
        self.maps.set_socket_state(listener, &state)
    }
}

impl Maps {
    fn set_socket_state(&self, socket: BorrowedFd<'_>, state: &SocketState) -> io::Result<()> {
        self.socket_states
            .insert(&socket.as_raw_fd().cast_unsigned(), state)
    }
}

fn entry(key: &shared::FastPathKey, value: &shared::FastPathEntry) -> (FastPathKey, FastPathEntry) {
    let backend = |backend: &shared::Backend| Backend {
        to: SocketAddr::new(backend.address.into(), backend.port),
        server: pod(backend.server_pod),
        weight: backend.weight,
        join_mode: join_mode_of(backend.flags.into()),
    };
    let key = FastPathKey {
        pod: NetnsCookie(key.pod),
        destination: socket_address(key.address, key.port),
    };
    let listed = value.backends.iter().take(value.backend_count as usize);
    let entry = FastPathEntry {
        backends: listed.map(backend).collect(),
        total: value.total_weight,
    };
    (key, entry)
}
