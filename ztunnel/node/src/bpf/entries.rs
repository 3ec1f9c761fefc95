//! What the kernel may decide by itself: the verdicts of the direct lane, and the connections that
//! are on it. Plain storage: `path` judges, this room writes down.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ztunnel_ebpf_types as shared;
use ztunnel_ebpf_types::{
    COUNT_LOST, COUNT_OPEN, FLOW_INBOUND, FLOW_JOIN, FLOW_PROXY, POD_JOIN, SAVED_DIRECT,
    SAVED_LISTENER, Saved,
};

use mesh::NetnsCookie;
use mesh::fastpath::{
    Backend, Ends, FastPathConnection, FastPathEntry, FastPathKey, InboundEntry, MAX_BACKENDS,
    Opener,
};

use super::maps::{Maps, failed};
use super::{Error, Kernel};

// An entry has room for as many backends as the kernel programs read.
const _: () = assert!(MAX_BACKENDS == shared::BACKENDS);

/// The flags of a connection whose ends are joined or not.
fn join_flags(ends: Ends) -> u32 {
    match ends {
        Ends::Apart => 0,
        Ends::Joined => FLOW_JOIN,
    }
}

fn ends_of(flags: u32) -> Ends {
    if flags & FLOW_JOIN == 0 {
        Ends::Apart
    } else {
        Ends::Joined
    }
}

fn flow_key(connection: &FastPathConnection) -> shared::Flow {
    shared::Flow {
        client: connection.client.ip().into(),
        server: connection.server.ip().into(),
        client_port: connection.client.port().into(),
        server_port: connection.server.port().into(),
    }
}

/// A connection as the kernel's maps and events describe it.
pub(super) fn connection(flow: &shared::Flow, state: &shared::FlowState) -> FastPathConnection {
    let end = |address: shared::Address, port: u32| {
        SocketAddr::new(address.into(), u16::try_from(port).unwrap_or_default())
    };
    FastPathConnection {
        pod: NetnsCookie(state.pod),
        server_pod: pod(state.server),
        opener: if state.flags & FLOW_INBOUND != 0 {
            Opener::Outside
        } else if state.flags & FLOW_PROXY != 0 {
            Opener::Proxy
        } else {
            Opener::Pod
        },
        client: end(flow.client, flow.client_port),
        server: end(flow.server, flow.server_port),
        dialled: end(state.dialled, state.dialled_port),
        socket: state.socket,
        opened: state.opened,
    }
}

fn pod(cookie: u64) -> Option<NetnsCookie> {
    (cookie != 0).then_some(NetnsCookie(cookie))
}

fn cookie(pod: Option<NetnsCookie>) -> u64 {
    pod.map_or(0, |cookie| cookie.0)
}

fn call_key(call: &FastPathKey) -> shared::Call {
    shared::Call {
        cookie: call.pod.0,
        address: call.destination.ip().into(),
        port: call.destination.port().into(),
        zero: 0,
    }
}

fn arrival_key(arrival: &InboundEntry) -> shared::Arrival {
    shared::Arrival {
        to: arrival.to.ip().into(),
        from: arrival.from.into(),
        port: arrival.to.port().into(),
    }
}

impl Kernel {
    /// Lets a call go by itself from now on. The maps forget what was not used for the longest
    /// time when they are full.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn insert_entry(&self, call: &FastPathKey, verdict: &FastPathEntry) -> Result<(), Error> {
        let maps = &self.maps;
        let mut value = shared::Verdict {
            epoch: maps.epoch(),
            total: verdict.total,
            ..shared::Verdict::default()
        };
        for (place, backend) in value.backends.iter_mut().zip(&verdict.backends) {
            *place = shared::Backend {
                address: backend.to.ip().into(),
                server: cookie(backend.server),
                port: backend.to.port(),
                // Every bit is below 16.
                flags: u16::try_from(join_flags(backend.ends)).unwrap_or_default(),
                weight: backend.weight,
            };
            value.count += 1;
        }
        maps.verdicts
            .insert(&call_key(call), &value)
            .map_err(failed(&maps.verdicts, "written"))
    }

    /// Sends a call to the proxy again.
    ///
    /// # Errors
    /// When the map cannot be written; then [`Self::invalidate_entries`] is the way.
    pub fn remove_entry(&self, call: &FastPathKey) -> Result<(), Error> {
        let verdicts = &self.maps.verdicts;
        verdicts
            .remove(&call_key(call))
            .map_err(failed(verdicts, "written"))
    }

    /// Every call that goes by itself, and where to.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn entries(&self) -> Result<Vec<(FastPathKey, FastPathEntry)>, Error> {
        let entries = self.maps.verdicts.entries();
        let entries = entries.map_err(failed(&self.maps.verdicts, "read"))?;
        Ok(entries
            .iter()
            .map(|(key, value)| call(key, value))
            .collect())
    }

    /// Lets plaintext from a source into a pod, past the proxy, from now on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn insert_inbound_entry(&self, arrival: &InboundEntry) -> Result<(), Error> {
        let maps = &self.maps;
        let value = shared::Admission {
            server: arrival.pod.0,
            epoch: maps.epoch(),
            zero: 0,
        };
        maps.inbound_entries
            .insert(&arrival_key(arrival), &value)
            .map_err(failed(&maps.inbound_entries, "written"))
    }

    /// Sends plaintext from this source to the proxy again.
    ///
    /// # Errors
    /// As [`Self::remove_entry`].
    pub fn remove_inbound_entry(&self, arrival: &InboundEntry) -> Result<(), Error> {
        let inbound_entries = &self.maps.inbound_entries;
        inbound_entries
            .remove(&arrival_key(arrival))
            .map_err(failed(inbound_entries, "written"))
    }

    /// Every source of plaintext that goes past the proxy.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn inbound_entries(&self) -> Result<Vec<InboundEntry>, Error> {
        let entries = self.maps.inbound_entries.entries();
        let entries = entries.map_err(failed(&self.maps.inbound_entries, "read"))?;
        let arrival = |(key, value): &(shared::Arrival, shared::Admission)| InboundEntry {
            pod: NetnsCookie(value.server),
            to: SocketAddr::new(key.to.into(), u16::try_from(key.port).unwrap_or_default()),
            from: key.from.into(),
        };
        Ok(entries.iter().map(arrival).collect())
    }

    /// Makes every verdict void at once, by one write.
    ///
    /// # Errors
    /// When not even that is possible.
    pub fn invalidate_entries(&self) -> Result<(), Error> {
        self.maps.next_epoch()
    }

    /// Every open connection of the direct lane.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn fast_path_connections(&self) -> Result<Vec<FastPathConnection>, Error> {
        let entries = self.maps.fast_path_connections.entries();
        let entries = entries.map_err(failed(&self.maps.fast_path_connections, "read"))?;
        Ok(entries
            .iter()
            .map(|(flow, state)| connection(flow, state))
            .collect())
    }

    /// Forgets a connection whose socket is gone without a word.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn remove_connection(&self, flow: &FastPathConnection) -> Result<(), Error> {
        let fast_path_connections = &self.maps.fast_path_connections;
        let key = flow_key(flow);
        let known = fast_path_connections
            .get(&key)
            .map_err(failed(fast_path_connections, "read"))?;
        if known.is_some_and(|state| state.socket == flow.socket) {
            fast_path_connections
                .remove(&key)
                .map_err(failed(fast_path_connections, "written"))?;
            let left = fast_path_connections
                .entries()
                .map_err(failed(fast_path_connections, "read"))?
                .len();
            self.maps.set_count(COUNT_OPEN, left as u64)?;
        }
        Ok(())
    }

    /// How many events of the direct lane found no room since the maps were made.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.maps.count(COUNT_LOST)
    }

    /// Puts a socket of the proxy on the direct lane: the connection that it is about to make is
    /// let into the pod that it calls, if it calls one of this node, and found when policy changes.
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
        let saved = Saved {
            address: dialled.ip().into(),
            port: dialled.port().into(),
            kind: SAVED_DIRECT,
            peer: to.ip().into(),
            peer_port: to.port().into(),
            flags: FLOW_PROXY,
            server: cookie(server),
            ..Saved::default()
        };
        self.maps.remember_socket(socket, &saved)
    }

    /// Joins the connections of a pod with the proxy from now on, or leaves them apart. A pod that
    /// is not captured has none.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn set_ends(&self, pod: NetnsCookie, ends: Ends) -> Result<(), Error> {
        let pods = &self.maps.pods;
        let known = pods.get(&pod.0).map_err(failed(pods, "read"))?;
        let Some(mut entry) = known else {
            return Ok(());
        };
        let before = entry.flags;
        entry.flags &= !POD_JOIN;
        if ends == Ends::Joined {
            entry.flags |= POD_JOIN;
        }
        if entry.flags == before {
            return Ok(());
        }
        pods.insert(&pod.0, &entry).map_err(failed(pods, "written"))
    }

    /// Makes a listener known as the proxy's own: what it accepts is not on the direct lane.
    ///
    /// # Errors
    /// When the socket's storage cannot be written.
    pub fn mark_listener(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let saved = Saved {
            kind: SAVED_LISTENER,
            ..Saved::default()
        };
        self.maps.remember_socket(listener, &saved)
    }
}

impl Maps {
    fn remember_socket(&self, socket: BorrowedFd<'_>, saved: &Saved) -> io::Result<()> {
        self.sockets
            .insert(&socket.as_raw_fd().cast_unsigned(), saved)
    }
}

fn call(key: &shared::Call, value: &shared::Verdict) -> (FastPathKey, FastPathEntry) {
    let port = |port: u32| u16::try_from(port).unwrap_or_default();
    let backend = |backend: &shared::Backend| Backend {
        to: SocketAddr::new(backend.address.into(), backend.port),
        server: pod(backend.server),
        weight: backend.weight,
        ends: ends_of(backend.flags.into()),
    };
    let call = FastPathKey {
        pod: NetnsCookie(key.cookie),
        destination: SocketAddr::new(key.address.into(), port(key.port)),
    };
    let listed = value.backends.iter().take(value.count as usize);
    let verdict = FastPathEntry {
        backends: listed.map(backend).collect(),
        total: value.total,
    };
    (call, verdict)
}
