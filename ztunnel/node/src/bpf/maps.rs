//! The programs' maps for user space: typed, named, and usable from any thread.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_ebpf_types as shared;
use ztunnel_ebpf_types::{
    Address, CONFIG_EXEMPT_NETWORKS, CONFIG_EXEMPT_PORTS, CapturedKey, CapturedSocket, ClientKey,
    Config, EXEMPT_INBOUND, EXEMPT_OUTBOUND, ListenerKey, Network, OriginalDestination,
    POD_HANDSHAKE, Pod, SOCKET_HANDSHAKE, SocketState,
};

use super::object::Object;
use super::process_locks::ProcessLocks;
use super::sys::{self, Map};
use super::{Error, Exemptions};
use mesh::NetnsCookie;

/// Every map that user space reads or writes.
#[derive(Debug)]
pub(super) struct Maps {
    config: Map<u32, Config>,
    /// Earlier active processes that may be alive; the values increase in the order in which the
    /// processes became active.
    previous_proxies: Map<u32, u32>,
    pub(super) pods: Map<u64, Pod>,
    pub(super) addresses: Map<Address, u64>,
    /// The value is the listener's descriptor.
    pub(super) listeners: Map<ListenerKey, u32>,
    pub(super) captured_sockets: Map<CapturedKey, CapturedSocket>,
    pub(super) original_destinations: Map<ClientKey, OriginalDestination>,
    pub(super) resolvers: Map<ClientKey, OriginalDestination>,
    pub(super) fast_path: Map<shared::FastPathKey, shared::FastPathEntry>,
    pub(super) inbound_entries: Map<shared::InboundKey, shared::InboundEntry>,
    pub(super) connections: Map<shared::ConnectionKey, shared::ConnectionState>,
    counters: Map<u32, u64>,
    exempt_ports: Map<u32, u32>,
    exempt_networks: Map<Network, u32>,
    /// The key is a socket's descriptor.
    pub(super) socket_states: Map<u32, SocketState>,
    /// A copy of the epoch in CONFIG, so that writing an entry does not read CONFIG.
    epoch: AtomicU32,
    /// Held while CONFIG is read, changed and written back.
    writing: Mutex<()>,
}

impl Maps {
    /// The maps of a loaded object.
    pub(super) fn open(object: &mut Object) -> Result<Self, Error> {
        Ok(Self {
            config: Map::new(object.map("CONFIG")?, "CONFIG"),
            previous_proxies: Map::new(object.map("PREVIOUS_PROXIES")?, "PREVIOUS_PROXIES"),
            pods: Map::new(object.map("PODS")?, "PODS"),
            addresses: Map::new(object.map("ADDRESSES")?, "ADDRESSES"),
            listeners: Map::new(object.map("POD_LISTENERS")?, "POD_LISTENERS"),
            captured_sockets: Map::new(object.map("CAPTURED_SOCKETS")?, "CAPTURED_SOCKETS"),
            original_destinations: Map::new(
                object.map("ORIGINAL_DESTINATIONS")?,
                "ORIGINAL_DESTINATIONS",
            ),
            resolvers: Map::new(object.map("RESOLVERS")?, "RESOLVERS"),
            fast_path: Map::new(object.map("FAST_PATH")?, "FAST_PATH"),
            inbound_entries: Map::new(object.map("INBOUND_ENTRIES")?, "INBOUND_ENTRIES"),
            connections: Map::new(object.map("CONNECTIONS")?, "CONNECTIONS"),
            counters: Map::new(object.map("COUNTERS")?, "COUNTERS"),
            exempt_ports: Map::new(object.map("EXEMPT_PORTS")?, "EXEMPT_PORTS"),
            exempt_networks: Map::new(object.map("EXEMPT_NETWORKS")?, "EXEMPT_NETWORKS"),
            socket_states: Map::new(object.map("SOCKET_STATES")?, "SOCKET_STATES"),
            epoch: AtomicU32::new(0),
            writing: Mutex::new(()),
        })
    }

    /// Continues from the state of the previous proxy: keeps its epoch, and if it is alive, keeps
    /// its sockets out of capture.
    pub(super) fn adopt_previous_proxy(&self, locks: &ProcessLocks) -> Result<(), Error> {
        let config = self.config()?;
        self.epoch.store(config.epoch, Ordering::Relaxed);
        if config.process != 0 && locks.is_alive(config.process) {
            let previous_proxies = self.previous_proxies.entries();
            let previous_proxies =
                previous_proxies.map_err(failed(&self.previous_proxies, "read"))?;
            let last = previous_proxies.iter().map(|(_, order)| *order).max();
            let order = last.unwrap_or_default().saturating_add(1);
            self.previous_proxies
                .insert(&config.process, &order)
                .map_err(failed(&self.previous_proxies, "written"))?;
        }
        Ok(())
    }

    /// Whether this process was active after all other earlier processes that are alive.
    pub(super) fn was_active_last(&self, own: u32, locks: &ProcessLocks) -> Result<bool, Error> {
        let previous_proxies = self.previous_proxies.entries();
        let previous_proxies = previous_proxies.map_err(failed(&self.previous_proxies, "read"))?;
        let Some((_, order)) = previous_proxies
            .iter()
            .find(|(previous_proxy, _)| *previous_proxy == own)
        else {
            return Ok(true);
        };
        let mut later = previous_proxies.iter().filter(|(_, other)| other > order);
        Ok(!later.any(|(previous_proxy, _)| locks.is_alive(*previous_proxy)))
    }

    /// The id of the process that completed the handshake last.
    pub(super) fn process(&self) -> Result<u32, Error> {
        Ok(self.config()?.process)
    }

    /// Removes `own` and processes that have ended from the list of previous proxies. Returns
    /// whether others are alive.
    pub(super) fn forget_ended_proxies(
        &self,
        own: u32,
        locks: &ProcessLocks,
    ) -> Result<bool, Error> {
        let previous_proxies = &self.previous_proxies;
        let mut left = false;
        for previous_proxy in previous_proxies
            .keys()
            .map_err(failed(previous_proxies, "read"))?
        {
            if previous_proxy != own && locks.is_alive(previous_proxy) {
                left = true;
            } else {
                previous_proxies
                    .remove(&previous_proxy)
                    .map_err(failed(previous_proxies, "written"))?;
            }
        }
        Ok(left)
    }

    /// The epoch of new entries.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Invalidates all entries.
    pub(super) fn next_epoch(&self) -> Result<(), Error> {
        self.configure(|config| {
            config.epoch = config.epoch.wrapping_add(1);
            self.epoch.store(config.epoch, Ordering::Relaxed);
        })
    }

    /// One of the programs' counters; 0 if it cannot be read.
    pub(super) fn counter(&self, index: u32) -> u64 {
        self.counters.get(&index).ok().flatten().unwrap_or_default()
    }

    /// Changes CONFIG.
    pub(super) fn configure(&self, change: impl FnOnce(&mut Config)) -> Result<(), Error> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut config = self.config()?;
        change(&mut config);
        self.config
            .insert(&0, &config)
            .map_err(failed(&self.config, "written"))
    }

    fn config(&self) -> Result<Config, Error> {
        let found = self.config.get(&0);
        Ok(found
            .map_err(failed(&self.config, "read"))?
            .unwrap_or_default())
    }

    /// Replaces the exemptions. New ones are written before old ones are removed: a connection that
    /// is exempt before and after is exempt all the time.
    pub(super) fn set_exemptions(&self, exemptions: &Exemptions) -> Result<(), Error> {
        let ports = |ports: &[u16]| ports.iter().copied().map(u32::from).collect::<Vec<_>>();
        let ports = directions(
            &ports(&exemptions.outbound_ports),
            &ports(&exemptions.inbound_ports),
            |port, wanted| port == wanted,
        );
        let networks = |networks: &[IpNet]| networks.iter().map(net).collect::<Vec<_>>();
        let networks = directions(
            &networks(&exemptions.outbound_cidrs),
            &networks(&exemptions.inbound_cidrs),
            contains,
        );
        replace(&self.exempt_ports, &ports, |_| 0)?;
        replace(&self.exempt_networks, &networks, |network| {
            network.prefix_length
        })?;
        self.configure(|config| {
            let mut set = |flag: u32, used: bool| {
                config.flags = if used {
                    config.flags | flag
                } else {
                    config.flags & !flag
                };
            };
            set(CONFIG_EXEMPT_PORTS, !ports.is_empty());
            set(CONFIG_EXEMPT_NETWORKS, !networks.is_empty());
        })
    }

    /// Identifies this process to the programs as the proxy. It connects a socket whose storage
    /// only a process with access to the maps can write; the connect hook records the process id
    /// and refuses the connection. This works across pid namespaces, where the process does not
    /// know its own id in the initial one.
    pub(super) fn handshake(&self) -> Result<(), Error> {
        let io_failed = |source| Error::Handshake { source };
        let (socket, address) = any_socket().map_err(io_failed)?;
        let cookie = sys::netns_cookie(socket.as_fd()).map_err(io_failed)?;
        let state = SocketState {
            kind: SOCKET_HANDSHAKE,
            ..SocketState::default()
        };
        self.socket_states
            .insert(&socket.as_raw_fd().cast_unsigned(), &state)
            .map_err(failed(&self.socket_states, "written"))?;
        // This namespace may be enrolled itself and must stay enrolled during the handshake.
        let enrolled = self.pods.get(&cookie).map_err(failed(&self.pods, "read"))?;
        let mut pod = enrolled.unwrap_or_default();
        pod.flags |= POD_HANDSHAKE;
        self.pods
            .insert(&cookie, &pod)
            .map_err(failed(&self.pods, "written"))?;
        let connected = socket.connect(&address);
        match enrolled {
            Some(pod) => self.pods.insert(&cookie, &pod),
            None => self.pods.remove(&cookie),
        }
        .map_err(failed(&self.pods, "written"))?;
        if self.config()?.process != 0 {
            return Ok(());
        }
        let unseen = "the connect hook did not run for this process: check that it is in a cgroup \
                      below the one that the programs are attached to";
        Err(io_failed(match connected {
            Ok(()) => io::Error::other(unseen),
            Err(error) => io::Error::new(error.kind(), format!("{unseen} ({error})")),
        }))
    }

    /// Corrects one of the programs' counters.
    pub(super) fn set_counter(&self, index: u32, value: u64) -> Result<(), Error> {
        let counters = &self.counters;
        counters
            .insert(&index, &value)
            .map_err(failed(counters, "written"))
    }

    /// Whether any enrolled pod satisfies the predicate.
    pub(super) fn any_pod(&self, is_match: impl Fn(&Pod) -> bool) -> Result<bool, Error> {
        let pods = self.pods.entries().map_err(failed(&self.pods, "read"))?;
        Ok(pods.iter().any(|(_, pod)| is_match(pod)))
    }

    /// Removes the addresses of a pod, except those to keep.
    pub(super) fn remove_addresses(
        &self,
        cookie: NetnsCookie,
        keep: &[Address],
    ) -> Result<(), Error> {
        let addresses = self.addresses.keys();
        for address in addresses.map_err(failed(&self.addresses, "read"))? {
            let owner = self.addresses.get(&address);
            let owner = owner.map_err(failed(&self.addresses, "read"))?;
            if owner != Some(cookie.0) || keep.contains(&address) {
                continue;
            }
            self.addresses
                .remove(&address)
                .map_err(failed(&self.addresses, "written"))?;
        }
        Ok(())
    }
}

/// A socket of a family that this machine has, and a loopback address for it.
fn any_socket() -> io::Result<(Socket, socket2::SockAddr)> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let make = |domain| Socket::new(domain, Type::STREAM, Some(Protocol::TCP));
    match make(Domain::IPV4) {
        Ok(socket) => Ok((socket, SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into())),
        Err(_) => Ok((
            make(Domain::IPV6)?,
            SocketAddr::from((Ipv6Addr::LOCALHOST, 9)).into(),
        )),
    }
}

/// The key of a client's end, as `accept()` or `recvfrom()` returns it.
pub(super) fn client_key(pod: NetnsCookie, client: SocketAddr) -> ClientKey {
    ClientKey {
        cookie: pod.0,
        address: client.ip().into(),
        port: client.port().into(),
        zero: 0,
    }
}

/// Makes an error that names the map.
pub(super) fn failed<K, V>(
    map: &Map<K, V>,
    action: &'static str,
) -> impl Fn(io::Error) -> Error + use<K, V>
where
    K: aya::Pod + Default,
    V: aya::Pod + Default,
{
    let map = map.name();
    move |source| Error::Map {
        map: map.to_owned(),
        action,
        source,
    }
}

/// The keys of both directions, each with all directions in which it is exempt. A lookup finds one
/// entry only, so an entry has the directions of all keys that cover it.
fn directions<K: Copy + PartialEq>(
    outbound: &[K],
    inbound: &[K],
    covers: impl Fn(&K, &K) -> bool,
) -> Vec<(K, u32)> {
    let mut found: Vec<(K, u32)> = Vec::new();
    for key in outbound.iter().chain(inbound) {
        if found.iter().any(|(known, _)| known == key) {
            continue;
        }
        let mut bits = 0;
        for (keys, bit) in [(outbound, EXEMPT_OUTBOUND), (inbound, EXEMPT_INBOUND)] {
            if keys.iter().any(|wide| covers(wide, key)) {
                bits |= bit;
            }
        }
        found.push((*key, bits));
    }
    found
}

/// Makes a map contain exactly these entries. A lookup finds the deepest entry that covers an
/// address. The deepest entries are written first and removed last, so that a lookup finds a
/// correct value at any time.
fn replace<K>(
    map: &Map<K, u32>,
    wanted: &[(K, u32)],
    depth: impl Fn(&K) -> u32,
) -> Result<(), Error>
where
    K: aya::Pod + Default + PartialEq,
{
    let mut wanted = wanted.to_vec();
    wanted.sort_by_key(|(key, _)| std::cmp::Reverse(depth(key)));
    for (key, bits) in &wanted {
        map.insert(key, bits).map_err(failed(map, "written"))?;
    }
    let mut present = map.keys().map_err(failed(map, "read"))?;
    present.sort_by_key(depth);
    for key in present {
        if !wanted.iter().any(|(kept, _)| *kept == key) {
            map.remove(&key).map_err(failed(map, "written"))?;
        }
    }
    Ok(())
}

/// Whether a network contains another one, or equals it.
fn contains(wide: &Network, narrow: &Network) -> bool {
    let differ = |(a, b): (&u32, &u32)| u32::from_be(a ^ b);
    let words = wide.address.words.iter().zip(&narrow.address.words);
    let common = words.map(differ).try_fold(0, |bits, word| match word {
        0 => Ok(bits + 32),
        _ => Err(bits + word.leading_zeros()),
    });
    let (Ok(common) | Err(common)) = common;
    wide.prefix_length <= narrow.prefix_length && wide.prefix_length <= common
}

/// A network in the form of the trie, where IPv4 has a depth of 96 bits.
fn net(network: &IpNet) -> Network {
    let bits = u32::from(network.prefix_len());
    Network {
        prefix_length: match network {
            IpNet::V4(_) => 96 + bits,
            IpNet::V6(_) => bits,
        },
        address: network.network().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_network_is_a_prefix_of_mapped_addresses() {
        let v4 = net(&"10.1.2.3/8".parse().unwrap());
        assert_eq!(v4.prefix_length, 104);
        assert_eq!(IpAddr::from(v4.address).to_string(), "10.0.0.0");
        let v6 = net(&"fd00::1/16".parse().unwrap());
        assert_eq!(v6.prefix_length, 16);
        assert_eq!(IpAddr::from(v6.address).to_string(), "fd00::");
    }

    #[test]
    fn an_entry_has_the_directions_of_the_networks_around_it() {
        let nets = |texts: &[&str]| -> Vec<Network> {
            texts
                .iter()
                .map(|text| net(&text.parse().unwrap()))
                .collect()
        };
        let both = EXEMPT_OUTBOUND | EXEMPT_INBOUND;
        let outbound = nets(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "10.1.0.0/16"]);
        let inbound = nets(&["10.1.2.0/24", "11.0.0.0/8", "fd00::/8", "10.0.0.0/7"]);
        let found = directions(&outbound, &inbound, contains);
        let expected: Vec<(Network, u32)> = nets(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "fd00::/8",
            "10.1.2.0/24",
            "11.0.0.0/8",
            "10.0.0.0/7",
        ])
        .into_iter()
        .zip([both, both, both, both, EXEMPT_INBOUND, EXEMPT_INBOUND])
        .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_network_contains_itself_and_narrower_ones() {
        let contains = |wide: &str, narrow: &str| {
            contains(&net(&wide.parse().unwrap()), &net(&narrow.parse().unwrap()))
        };
        for (wide, narrow) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8", "10.255.0.1/32"),
            ("0.0.0.0/0", "10.0.0.0/8"),
            ("::/0", "fd00::/8"),
            ("fd00::/65", "fd00::1/128"),
        ] {
            assert!(contains(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("10.0.0.0/8", "0.0.0.0/0"),
            ("10.0.0.0/8", "11.0.0.0/16"),
            ("0.0.0.0/0", "fd00::/8"),
            ("fd00::/65", "fd00:0:0:0:8000::/128"),
        ] {
            assert!(!contains(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["10.0.0.1", "255.255.255.255", "::1", "fd00::1:2", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(IpAddr::from(Address::from(mapped)).to_string(), "10.0.0.1");
    }

    #[test]
    fn the_machine_itself_is_recognised() {
        let is = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        for text in ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"] {
            assert!(is(text).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1", "10.127.0.1", "::2", "::7f00:1"] {
            assert!(!is(text).is_loopback(), "{text}");
        }
        for text in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
            assert!(is(text).is_unspecified(), "{text}");
        }
        assert_eq!(is("127.0.0.1"), Address::LOOPBACK4);
        assert_eq!(is("::1"), Address::LOOPBACK6);
    }
}
