//! Upgrade from a proxy with map layout 2, with the kernel programs of that version, and the way back from
//! a later version.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use aya_obj::{EbpfSectionKind, Object as Parsed};
use mesh::fastpath::{Backend, FastPathEntry, FastPathKey, JoinMode};
use smallvec::smallvec;
use socket2::Socket;
use ztunnel_ebpf_types::{Address, LAYOUT};

use super::super::cgroup::Cgroup;
use super::super::object::kernel_has_process_id;
use super::super::sys::{self, AttachType, Map, Shape};
use super::super::{
    CaptureListeners, Kernel, PodCapture, captured_pods_below, is_captured, prepare_directory,
};
use super::world::{
    DELIVERY_MARK, MARK, OTHER4, POD4, POD6, Wire, accept, at, config, dial, in_namespace, listen,
    listen_captured, tcp, this_namespace,
};
use crate::pods::routing;

/// `fixtures/README.md` says how it was built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/bpf/tests/fixtures/ebpf-layout-v2.o"
));

const PINNED: [&str; 17] = [
    "CONFIG",
    "FORMERS",
    "PODS",
    "ADDRESSES",
    "LISTENERS",
    "ORIGINS",
    "RESOLVERS",
    "VERDICTS",
    "ARRIVALS",
    "FLOWS",
    "EVENTS",
    "COUNTS",
    "EXEMPT_PORTS",
    "EXEMPT_NETS",
    "SOCKETS",
    "JOINED",
    "JOINS",
];
const CGROUP: [(&str, AttachType); 7] = [
    ("peer4", AttachType::PeerName4),
    ("peer6", AttachType::PeerName6),
    ("name4", AttachType::SockName4),
    ("name6", AttachType::SockName6),
    ("established", AttachType::SockOps),
    ("capture4", AttachType::Connect4),
    ("capture6", AttachType::Connect6),
];
const INBOUND: &str = "inbound";
const OUTBOUND_PORT: u32 = 15001;
const HBONE_PORT: u32 = 15008;

/// The pins of a proxy with layout 2. Keys and values are those of that version's `ebpf/types`.
struct OldProxy {
    pins: PathBuf,
    maps: HashMap<String, OwnedFd>,
    inbound: OwnedFd,
}

impl OldProxy {
    /// Loads, pins and attaches the programs.
    fn open(directory: &Path) -> Self {
        let pins = directory.join("v2");
        for group in ["links", "netns", "lives"] {
            fs::create_dir_all(pins.join(group)).unwrap();
        }
        let mut parsed = Parsed::parse(OBJECT).unwrap();
        let has_process_id = [u8::from(kernel_has_process_id())];
        let dns_port = 15053_u32.to_ne_bytes();
        let globals = HashMap::from([
            ("KNOWS_PROCESS", (has_process_id.as_slice(), true)),
            ("DNS_PORT", (dns_port.as_slice(), true)),
            (aya_log::LEVEL, ([0].as_slice(), true)),
        ]);
        parsed.patch_map_data(globals).unwrap();
        let described: Vec<(String, aya_obj::Map)> = parsed.maps.drain().collect();
        let maps: HashMap<String, OwnedFd> = described
            .iter()
            .map(|(name, map)| (name.clone(), create_map(&pins, name, map)))
            .collect();
        let sections: HashSet<usize> = parsed.functions.keys().map(|(index, _)| *index).collect();
        let descriptors = described
            .iter()
            .map(|(name, map)| (name.as_str(), maps[name].as_raw_fd(), map));
        parsed.relocate_maps(descriptors, &sections).unwrap();
        parsed.relocate_calls(&sections).unwrap();
        let proxy = Self {
            inbound: load(&parsed, INBOUND, AttachType::SkLookup),
            pins,
            maps,
        };
        proxy.configure(0);
        let cgroup = Cgroup::open(None).unwrap();
        for (name, attach) in CGROUP {
            let program = load(&parsed, name, attach);
            let link = sys::attach(program.as_fd(), cgroup.directory(), attach).unwrap();
            sys::pin(link.as_fd(), &proxy.pins.join("links").join(name)).unwrap();
        }
        proxy
    }

    /// Writes the settings, with the process whose marked sockets are the proxy's own.
    fn configure(&self, process: u32) {
        // mark, process, outbound, hbone, flags, delivery, epoch
        let settings = [
            MARK,
            process,
            OUTBOUND_PORT,
            HBONE_PORT,
            0,
            DELIVERY_MARK,
            0,
        ];
        self.map("CONFIG").insert(&0_u32, &settings).unwrap();
    }

    fn map<K, V>(&self, name: &'static str) -> Map<K, V>
    where
        K: aya::Pod + Default,
        V: aya::Pod + Default,
    {
        Map::new(self.maps[name].try_clone().unwrap(), name)
    }

    /// Captures the pod of this thread's namespace.
    fn enroll(&self, inbound: &TcpListener) {
        const ENROLLED: u32 = 1;
        let cookie = this_namespace();
        let mut pod = [0_u32; 9];
        for (field, address) in pod.chunks_exact_mut(4).zip([POD4, POD6]) {
            field.copy_from_slice(&Address::from(address).words);
        }
        pod[8] = ENROLLED;
        for address in [POD4, POD6].map(Address::from) {
            let addresses = self.map("ADDRESSES");
            addresses.insert(&address, &cookie.0).unwrap();
            let listener = inbound.as_raw_fd().cast_unsigned();
            let listeners = self.map("LISTENERS");
            listeners.insert(&address, &listener).unwrap();
        }
        let netns = File::open("/proc/thread-self/ns/net").unwrap();
        let link = sys::attach(self.inbound.as_fd(), netns.as_fd(), AttachType::SkLookup);
        let pin = self.pins.join("netns").join(cookie.0.to_string());
        sys::pin(link.unwrap().as_fd(), &pin).unwrap();
        self.map("PODS").insert(&cookie.0, &pod).unwrap();
    }

    /// The original destination of a captured connection.
    fn original_destination(&self, client: SocketAddr) -> Option<SocketAddr> {
        let cookie = this_namespace().0.to_ne_bytes();
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        let [low, high] = [word(&cookie[..4]), word(&cookie[4..])];
        let [a, b, c, d] = Address::from(client.ip()).words;
        let key = [low, high, a, b, c, d, client.port().into(), 0];
        let found: Option<[u32; 6]> = self.map("ORIGINS").take(&key).unwrap();
        let [a, b, c, d, port, _] = found?;
        let address = Address {
            words: [a, b, c, d],
        };
        Some(SocketAddr::new(address.into(), port.try_into().unwrap()))
    }
}

fn create_map(pins: &Path, name: &str, map: &aya_obj::Map) -> OwnedFd {
    let shape = Shape {
        kind: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        entries: map.max_entries(),
        flags: map.map_flags(),
    };
    let fd = sys::create_map(name, shape).unwrap();
    if !map.data().is_empty() {
        sys::fill(fd.as_fd(), map.data()).unwrap();
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        sys::freeze(fd.as_fd()).unwrap();
    }
    if PINNED.contains(&name) {
        sys::pin(fd.as_fd(), &pins.join(name)).unwrap();
    }
    fd
}

fn load(parsed: &Parsed, name: &str, attach: AttachType) -> OwnedFd {
    let program = &parsed.programs[name];
    let function = &parsed.functions[&program.function_key()];
    sys::load_program(name, attach, &function.instructions).unwrap()
}

/// Connections that the test's threads open until it is dropped.
struct Load<'a> {
    stop: &'a AtomicBool,
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Opens connections of both families until `stop`, and counts them.
fn dial_repeatedly(stop: &AtomicBool, count: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        for dialled in ["192.0.2.1:80", "[2001:db8::1]:80"].map(at) {
            let socket = tcp(dialled.is_ipv4());
            socket.set_nonblocking(true).unwrap();
            // A captured connection is established or in progress; both are dropped here.
            drop(socket.connect(&dialled.into()));
        }
        count.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Accepts connections until `stop`, and sends their client addresses.
fn accept_repeatedly(stop: &AtomicBool, listener: &TcpListener, clients: &Sender<SocketAddr>) {
    while !stop.load(Ordering::Relaxed) {
        if let Some((_stream, client)) = accept(listener) {
            let client = SocketAddr::new(client.ip().to_canonical(), client.port());
            // The receiver may have ended with a failed assertion.
            let _is_sent = clients.send(client).is_ok();
        }
    }
}

/// Opens a connection and waits until the proxy's listener has accepted it; returns its client
/// address.
fn dial_captured(dialled: SocketAddr, accepted: &Receiver<SocketAddr>) -> SocketAddr {
    let app = dial(dialled).unwrap();
    let local = app.local_addr().unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let client = accepted.recv_timeout(left).expect("captured");
        if client == local {
            return client;
        }
    }
}

/// Opens a connection into the pod from another address.
fn dial_pod() -> Socket {
    let client = tcp(true);
    client.set_mark(MARK).unwrap();
    client.bind(&SocketAddr::new(OTHER4, 0).into()).unwrap();
    client.connect(&SocketAddr::new(POD4, 80).into()).unwrap();
    client
}

/// Captures this namespace.
fn enroll(kernel: &Kernel, netns: &File, inbound: &TcpListener, outbound: &TcpListener) {
    routing::prepare_delivery().unwrap();
    routing::prepare_capture(&[POD4, POD6], routing::Existing::Replace).unwrap();
    let pod = PodCapture {
        cookie: this_namespace(),
        netns: netns.as_fd(),
        addresses: &[POD4, POD6],
        listeners: CaptureListeners {
            inbound: inbound.as_fd(),
            outbound: outbound.as_fd(),
            dns: None,
        },
    };
    kernel.enroll(&pod).unwrap();
}

fn stored_entries(kernel: &Kernel) -> Vec<(FastPathKey, FastPathEntry)> {
    let stored = kernel.entries().unwrap();
    stored.into_iter().map(|one| (one.key, one.entry)).collect()
}

/// Writes a fast-path entry into the maps that both versions share, and checks that the old proxy
/// has it.
fn write_entry(kernel: &Kernel, old: &OldProxy, to: SocketAddr) -> (FastPathKey, FastPathEntry) {
    let entry = FastPathEntry {
        backends: smallvec![Backend {
            to,
            server: None,
            weight: 1,
            join_mode: JoinMode::Apart,
        }],
        total: 1,
    };
    let key = FastPathKey {
        pod: this_namespace(),
        destination: at("192.0.2.9:80"),
    };
    kernel.insert_entry(&key, &entry).unwrap();
    let seen_by_old: Map<[u32; 8], u32> = old.map("VERDICTS");
    assert_eq!(seen_by_old.keys().unwrap().len(), 1);
    (key, entry)
}

#[test]
#[ignore = "needs root"]
fn a_node_with_layout_2_is_taken_over_in_place() {
    in_namespace(|| {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("pins");
        prepare_directory(&directory).unwrap();
        let outbound = listen(at("127.0.0.1:15001"));
        let outbound6 = listen(at("[::1]:15001"));
        let old_inbound = listen(at("[::]:16006"));
        let old = OldProxy::open(&directory);
        old.enroll(&old_inbound);
        let dialled = at("192.0.2.1:80");
        let mut wire = Wire::tap();
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (sender, accepted) = channel();
        let sender6 = channel().0;
        std::thread::scope(|scope| {
            let load = Load { stop: &stop };
            scope.spawn(|| dial_repeatedly(&stop, &count));
            scope.spawn(|| accept_repeatedly(&stop, &outbound, &sender));
            scope.spawn(|| accept_repeatedly(&stop, &outbound6, &sender6));
            let by_old = || old.original_destination(dial_captured(dialled, &accepted));
            assert_eq!(by_old(), Some(dialled));

            // A standby proxy changes nothing that the other one uses.
            let kernel = Kernel::load(&config(directory.clone())).unwrap();
            assert_eq!(by_old(), Some(dialled));
            let written = write_entry(&kernel, &old, dialled);

            kernel.become_active(&config(directory.clone())).unwrap();
            assert!(!directory.join("v2").exists());
            assert_eq!(kernel.enrolled().unwrap(), [this_namespace()]);
            assert_eq!(captured_pods_below(&directory), 1);
            let stored = stored_entries(&kernel);
            assert_eq!(stored, [written]);
            // The other version's programs capture until this proxy serves the pods.
            assert!(kernel.rewriting_captures());
            assert_eq!(by_old(), Some(dialled));
            let _client = dial_pod();
            assert!(accept(&old_inbound).is_some());
            let inbound = listen(at("[::]:15006"));
            let captured = listen_captured(&kernel, 15001);
            let (sender, accepted_captured) = channel();
            let stop = &stop;
            let workers = captured.try_clone().unwrap();
            scope.spawn(move || accept_repeatedly(stop, &workers, &sender));
            let netns = File::open("/proc/thread-self/ns/net").unwrap();
            enroll(&kernel, &netns, &inbound, &captured);
            assert!(is_captured(netns.as_fd()).unwrap());
            let _client = dial_pod();
            assert!(accept(&inbound).is_some());
            let open = dial(dialled).unwrap();
            let client = dial_captured(dialled, &accepted);
            let found = kernel.original_destination(this_namespace(), client);
            assert_eq!(found.unwrap().unwrap().destination, dialled);

            kernel.replace_rewriting().unwrap();
            assert!(!kernel.rewriting_captures());
            dial_captured(dialled, &accepted_captured);
            // The names of sockets that the other version has captured.
            assert_eq!(open.peer_addr().unwrap(), dialled);
            assert_eq!(open.local_addr().unwrap().ip(), POD4);
            drop(load);
        });
        assert!(count.load(Ordering::Relaxed) > 10, "{count:?}");
        assert_eq!(wire.packets(), 0, "a connection was not captured");
        Kernel::remove_pins(&directory).unwrap();
    });
}

/// A downgrade: this version does not know the layout of a later one. It cannot take over that one's
/// maps, so it captures with its own, and removes the others then. Simulated by pins of this version
/// under another name.
#[test]
#[ignore = "needs root"]
fn a_node_with_a_later_layout_stays_captured_and_is_captured_by_this_version_then() {
    in_namespace(|| {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("pins");
        let inbound = listen(at("[::]:15006"));
        let netns = File::open("/proc/thread-self/ns/net").unwrap();
        let capture = || {
            let kernel = Kernel::load(&config(directory.clone())).unwrap();
            kernel.become_active(&config(directory.clone())).unwrap();
            let outbound = listen_captured(&kernel, 15001);
            enroll(&kernel, &netns, &inbound, &outbound);
            (kernel, outbound)
        };
        let (_, outbound_later) = capture();
        let later = directory.join(format!("v{}", LAYOUT + 1));
        fs::rename(directory.join(format!("v{LAYOUT}")), &later).unwrap();

        let dialled = at("192.0.2.1:80");
        let mut wire = Wire::tap();
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (sender, accepted) = channel();
        std::thread::scope(|scope| {
            let load = Load { stop: &stop };
            scope.spawn(|| dial_repeatedly(&stop, &count));
            let (stop, sender_later) = (&stop, sender.clone());
            scope.spawn(move || accept_repeatedly(stop, &outbound_later, &sender_later));
            dial_captured(dialled, &accepted);

            let (kernel, outbound) = capture();
            kernel.remove_other_layouts().unwrap();
            assert!(!later.exists());
            // The listeners of both are one group.
            scope.spawn(move || accept_repeatedly(stop, &outbound, &sender));
            dial_captured(dialled, &accepted);
            drop(load);
        });
        assert!(count.load(Ordering::Relaxed) > 10, "{count:?}");
        assert_eq!(wire.packets(), 0, "a connection was not captured");
        Kernel::remove_pins(&directory).unwrap();
    });
}
