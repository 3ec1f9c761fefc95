//! The maps as the proxy sees them: typed, named, and usable from any thread.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_ebpf_types::{
    Address, Admission, Arrival, CONFIG_NETS, CONFIG_PORTS, Call, Client, Config, Destination,
    EXEMPT_INBOUND, EXEMPT_OUTBOUND, Flow, FlowState, Net, POD_HANDSHAKE, Pod, SAVED_HANDSHAKE,
    Saved, Verdict,
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
    /// Processes that were in charge and may live, and whose turn was after whose.
    previous_proxies: Map<u32, u32>,
    pub(super) pods: Map<u64, Pod>,
    pub(super) addresses: Map<Address, u64>,
    /// The value is the listener's descriptor.
    pub(super) listeners: Map<Address, u32>,
    pub(super) origins: Map<Client, Destination>,
    pub(super) resolvers: Map<Client, Destination>,
    pub(super) verdicts: Map<Call, Verdict>,
    pub(super) inbound_entries: Map<Arrival, Admission>,
    pub(super) fast_path_connections: Map<Flow, FlowState>,
    counts: Map<u32, u64>,
    exempt_ports: Map<u32, u32>,
    exempt_nets: Map<Net, u32>,
    /// The key is a socket's descriptor.
    pub(super) sockets: Map<u32, Saved>,
    /// As in CONFIG, which every verdict would have to read otherwise.
    epoch: AtomicU32,
    /// The settings are read, changed and written back.
    writing: Mutex<()>,
}

impl Maps {
    /// The maps of a loaded object.
    pub(super) fn open(object: &mut Object) -> Result<Self, Error> {
        Ok(Self {
            config: Map::new(object.map("CONFIG")?, "CONFIG"),
            previous_proxies: Map::new(object.map("FORMERS")?, "FORMERS"),
            pods: Map::new(object.map("PODS")?, "PODS"),
            addresses: Map::new(object.map("ADDRESSES")?, "ADDRESSES"),
            listeners: Map::new(object.map("LISTENERS")?, "LISTENERS"),
            origins: Map::new(object.map("ORIGINS")?, "ORIGINS"),
            resolvers: Map::new(object.map("RESOLVERS")?, "RESOLVERS"),
            verdicts: Map::new(object.map("VERDICTS")?, "VERDICTS"),
            inbound_entries: Map::new(object.map("ARRIVALS")?, "ARRIVALS"),
            fast_path_connections: Map::new(object.map("FLOWS")?, "FLOWS"),
            counts: Map::new(object.map("COUNTS")?, "COUNTS"),
            exempt_ports: Map::new(object.map("EXEMPT_PORTS")?, "EXEMPT_PORTS"),
            exempt_nets: Map::new(object.map("EXEMPT_NETS")?, "EXEMPT_NETS"),
            sockets: Map::new(object.map("SOCKETS")?, "SOCKETS"),
            epoch: AtomicU32::new(0),
            writing: Mutex::new(()),
        })
    }

    /// Goes on from what the process before has left: its epoch counts, and where it lives yet, so
    /// do its own sockets.
    pub(super) fn succeed(&self, lives: &ProcessLocks) -> Result<(), Error> {
        let config = self.config()?;
        self.epoch.store(config.epoch, Ordering::Relaxed);
        if config.process != 0 && lives.is_alive(config.process) {
            let previous_proxies = self.previous_proxies.entries();
            let previous_proxies =
                previous_proxies.map_err(failed(&self.previous_proxies, "read"))?;
            let youngest = previous_proxies.iter().map(|(_, turn)| *turn).max();
            let turn = youngest.unwrap_or_default().saturating_add(1);
            self.previous_proxies
                .insert(&config.process, &turn)
                .map_err(failed(&self.previous_proxies, "written"))?;
        }
        Ok(())
    }

    /// Whether, of all processes that have been in charge and live, this one was it last.
    pub(super) fn is_youngest(&self, own: u32, lives: &ProcessLocks) -> Result<bool, Error> {
        let previous_proxies = self.previous_proxies.entries();
        let previous_proxies = previous_proxies.map_err(failed(&self.previous_proxies, "read"))?;
        let Some((_, turn)) = previous_proxies
            .iter()
            .find(|(previous_proxy, _)| *previous_proxy == own)
        else {
            return Ok(true);
        };
        let mut younger = previous_proxies.iter().filter(|(_, other)| other > turn);
        Ok(!younger.any(|(previous_proxy, _)| lives.is_alive(*previous_proxy)))
    }

    /// The number of the process that made itself known last.
    pub(super) fn process(&self) -> Result<u32, Error> {
        Ok(self.config()?.process)
    }

    /// Takes from those that are dead, and from `own`, what they have as former proxies. Says
    /// whether there are others.
    pub(super) fn forget_ended_proxies(
        &self,
        own: u32,
        lives: &ProcessLocks,
    ) -> Result<bool, Error> {
        let previous_proxies = &self.previous_proxies;
        let mut left = false;
        for previous_proxy in previous_proxies
            .keys()
            .map_err(failed(previous_proxies, "read"))?
        {
            if previous_proxy != own && lives.is_alive(previous_proxy) {
                left = true;
            } else {
                previous_proxies
                    .remove(&previous_proxy)
                    .map_err(failed(previous_proxies, "written"))?;
            }
        }
        Ok(left)
    }

    /// What verdicts are stamped with.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Makes all verdicts void.
    pub(super) fn next_epoch(&self) -> Result<(), Error> {
        self.configure(|config| {
            config.epoch = config.epoch.wrapping_add(1);
            self.epoch.store(config.epoch, Ordering::Relaxed);
        })
    }

    /// One of the programs' counters. One that cannot be read counts nothing.
    pub(super) fn count(&self, index: u32) -> u64 {
        self.counts.get(&index).ok().flatten().unwrap_or_default()
    }

    /// Changes the settings.
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

    /// Makes the exemptions these and no others. New ones count before old ones go, so what is
    /// exempt before and after is exempt all the time.
    pub(super) fn exempt(&self, exemptions: &Exemptions) -> Result<(), Error> {
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
        replace(&self.exempt_nets, &networks, |network| network.bits)?;
        self.configure(|config| {
            let mut set = |flag: u32, used: bool| {
                config.flags = if used {
                    config.flags | flag
                } else {
                    config.flags & !flag
                };
            };
            set(CONFIG_PORTS, !ports.is_empty());
            set(CONFIG_NETS, !networks.is_empty());
        })
    }

    /// Makes this process known to the programs as the proxy. It connects a socket whose storage
    /// bears a sign that only a holder of the maps can write; the connect hook records who did so
    /// and refuses the call. This works across pid namespaces, where the process does not know
    /// its own number.
    pub(super) fn introduce(&self) -> Result<(), Error> {
        let io_failed = |source| Error::Handshake { source };
        let (socket, address) = any_socket().map_err(io_failed)?;
        let cookie = sys::netns_cookie(socket.as_fd()).map_err(io_failed)?;
        let sign = Saved {
            kind: SAVED_HANDSHAKE,
            ..Saved::default()
        };
        self.sockets
            .insert(&socket.as_raw_fd().cast_unsigned(), &sign)
            .map_err(failed(&self.sockets, "written"))?;
        // This namespace may itself be enrolled, and stays so meanwhile.
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
        let unseen = "the connect hook did not see this process: is it in a cgroup below the one \
                      that the programs are attached to?";
        Err(io_failed(match connected {
            Ok(()) => io::Error::other(unseen),
            Err(error) => io::Error::new(error.kind(), format!("{unseen} ({error})")),
        }))
    }

    /// Sets one of the programs' counters right.
    pub(super) fn set_count(&self, index: u32, value: u64) -> Result<(), Error> {
        let counts = &self.counts;
        counts
            .insert(&index, &value)
            .map_err(failed(counts, "written"))
    }

    /// Whether any pod is like this.
    pub(super) fn any_pod(&self, like: impl Fn(&Pod) -> bool) -> Result<bool, Error> {
        let pods = self.pods.entries().map_err(failed(&self.pods, "read"))?;
        Ok(pods.iter().any(|(_, pod)| like(pod)))
    }

    /// Forgets the addresses of a pod that are not among those to keep.
    pub(super) fn forget_addresses(
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
            self.listeners
                .remove(&address)
                .map_err(failed(&self.listeners, "written"))?;
            self.addresses
                .remove(&address)
                .map_err(failed(&self.addresses, "written"))?;
        }
        Ok(())
    }
}

/// A socket of whichever family this machine has, and a loopback address for it.
fn any_socket() -> io::Result<(Socket, socket2::SockAddr)> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    let make = |domain| Socket::new(domain, Type::STREAM, Some(Protocol::TCP));
    match make(Domain::IPV4) {
        Ok(socket) => Ok((socket, SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into())),
        Err(_) => Ok((
            make(Domain::IPV6)?,
            SocketAddr::from((Ipv6Addr::LOCALHOST, 9)).into(),
        )),
    }
}

/// Names the map in an error.
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

/// The keys of both directions with the directions in which each is exempt: those of every key
/// that covers it, because a look-up finds one entry only.
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

/// Makes a map hold these entries and no others. A look-up finds the deepest entry that covers
/// it: the deepest are written first and removed last, so that at any time it finds what holds
/// before or what holds after.
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

/// Whether a network contains another, or is the same.
fn contains(wide: &Net, narrow: &Net) -> bool {
    let differ = |(a, b): (&u32, &u32)| u32::from_be(a ^ b);
    let words = wide.address.words.iter().zip(&narrow.address.words);
    let common = words.map(differ).try_fold(0, |bits, word| match word {
        0 => Ok(bits + 32),
        _ => Err(bits + word.leading_zeros()),
    });
    let (Ok(common) | Err(common)) = common;
    wide.bits <= narrow.bits && wide.bits <= common
}

/// A network as the trie has it: IPv4 lies 96 bits deep.
fn net(network: &IpNet) -> Net {
    let bits = u32::from(network.prefix_len());
    Net {
        bits: match network {
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
        assert_eq!(v4.bits, 104);
        assert_eq!(IpAddr::from(v4.address).to_string(), "10.0.0.0");
        let v6 = net(&"fd00::1/16".parse().unwrap());
        assert_eq!(v6.bits, 16);
        assert_eq!(IpAddr::from(v6.address).to_string(), "fd00::");
    }

    #[test]
    fn an_entry_has_the_directions_of_the_networks_around_it() {
        let nets = |texts: &[&str]| -> Vec<Net> {
            texts
                .iter()
                .map(|text| net(&text.parse().unwrap()))
                .collect()
        };
        let both = EXEMPT_OUTBOUND | EXEMPT_INBOUND;
        let outbound = nets(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "10.1.0.0/16"]);
        let inbound = nets(&["10.1.2.0/24", "11.0.0.0/8", "fd00::/8", "10.0.0.0/7"]);
        let found = directions(&outbound, &inbound, contains);
        let expected: Vec<(Net, u32)> = nets(&[
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
