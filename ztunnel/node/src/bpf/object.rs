//! Loads the embedded object: creates or reopens its maps, and has the kernel's verifier check its
//! programs. Attaches nothing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_insn;
use aya_obj::{EbpfSectionKind, Object as Parsed};
use ztunnel_ebpf_types::INSTANCE_POD;

use super::pins::Pins;
use super::programs::INBOUND;
use super::sys::{self, AttachType, Shape};
use super::{Error, Ports, permissions};
use mesh::NetnsCookie;

pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ztunnel-ebpf"));

/// The maps that outlive a proxy. The ring buffer of the log is not among them: each proxy has its
/// own.
const PINNED: [&str; 18] = [
    "CONFIG",
    "PREVIOUS_PROXIES",
    "PODS",
    "ADDRESSES",
    "POD_LISTENERS",
    "CAPTURED_SOCKETS",
    "ORIGINAL_DESTINATIONS",
    "RESOLVERS",
    "FAST_PATH",
    "INBOUND_ENTRIES",
    "CONNECTIONS",
    "EVENTS",
    "COUNTERS",
    "EXEMPT_PORTS",
    "EXEMPT_NETWORKS",
    "SOCKET_STATES",
    "JOINED_SOCKETS",
    "JOIN_STATES",
];
/// The largest number of entries of a private map.
const MAX_PRIVATE_ENTRIES: u32 = 64;
/// `BPF_MAP_TYPE_RINGBUF`; its size is in bytes.
const RING_BUFFER: u32 = 27;

/// Which maps the programs use.
#[derive(Debug, Clone, Copy)]
pub(super) enum MapSource<'a> {
    /// Pinned maps, which outlive this process.
    Pinned(&'a Pins),
    /// Small maps of this process.
    Private,
}

/// Whether the programs log their decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProgramLogging {
    /// The programs have no code for it.
    Off,
    /// They have, and use it while CONFIG_LOG is set.
    Debug,
}

/// What is fixed when the programs are loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadOptions {
    /// How many fast-path entries and how many inbound entries the maps hold. Used when the maps
    /// are created.
    pub(super) max_entries: u32,
    /// The port of the proxy's DNS listener.
    pub(super) dns_port: u16,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            max_entries: 1,
            dns_port: Ports::default().dns,
        }
    }
}

/// The loaded object.
#[derive(Debug)]
pub(super) struct Object {
    maps: HashMap<String, OwnedFd>,
    /// The maps that outlive a proxy, to pin them again.
    pinned: Vec<(&'static str, OwnedFd)>,
    programs: HashMap<&'static str, OwnedFd>,
    /// The instructions of `inbound`, which is loaded once for each pod.
    inbound: Vec<bpf_insn>,
}

impl Object {
    /// Loads these programs and all maps.
    ///
    /// The default is without logging: the verifier removes the unreachable code, and loading takes
    /// a tenth of the time.
    pub(super) fn load(
        source: MapSource<'_>,
        programs: &[(&'static str, AttachType)],
        logging: ProgramLogging,
        options: LoadOptions,
    ) -> Result<Self, Error> {
        if !release().is_ok_and(|release| is_at_least(&release, 5, 11)) {
            permissions::raise_locked_memory_limit();
        }
        let mut parsed = Parsed::parse(OBJECT).map_err(|error| unreadable(&error))?;
        set_constants(&mut parsed, logging, options)?;
        let described: Vec<(String, aya_obj::Map)> = parsed.maps.drain().collect();
        let mut maps = HashMap::new();
        for (name, map) in &described {
            maps.insert(
                name.clone(),
                open_map(source, name, map, options.max_entries)?,
            );
        }
        let sections: HashSet<usize> = parsed.functions.keys().map(|(index, _)| *index).collect();
        let descriptors = described
            .iter()
            .map(|(name, map)| (name.as_str(), maps[name].as_raw_fd(), map));
        parsed
            .relocate_maps(descriptors, &sections)
            .map_err(|error| unreadable(&error))?;
        parsed
            .relocate_calls(&sections)
            .map_err(|error| unreadable(&error))?;
        let mut loaded = HashMap::new();
        for (name, attach) in programs {
            let program = load(name, *attach, instructions(&parsed, name)?)?;
            loaded.insert(*name, program);
        }
        let mut pinned = Vec::new();
        for name in PINNED {
            if let Some(map) = maps.get(name) {
                let map = map.try_clone().map_err(|source| Error::Map {
                    map: name.to_owned(),
                    action: "opened",
                    source,
                })?;
                pinned.push((name, map));
            }
        }
        let inbound = instructions(&parsed, INBOUND)?.to_vec();
        Ok(Self {
            maps,
            pinned,
            programs: loaded,
            inbound,
        })
    }

    /// Loads the instance of `inbound` for one pod.
    pub(super) fn load_inbound(&self, pod: NetnsCookie) -> Result<OwnedFd, Error> {
        let mut instructions = self.inbound.clone();
        if !replace_constant(&mut instructions, INSTANCE_POD, pod.0) {
            return Err(missing("the pod's cookie in inbound"));
        }
        load(INBOUND, AttachType::SkLookup, &instructions)
    }

    /// Pins the maps again whose pins are gone. Returns their names.
    pub(super) fn restore_pins(&self, pins: &Pins) -> Result<Vec<&'static str>, Error> {
        let mut restored = Vec::new();
        for (name, map) in &self.pinned {
            let path = pins.map(name);
            if !path.exists() {
                sys::pin(map.as_fd(), &path).map_err(|source| Error::Pin {
                    path,
                    action: "created",
                    source,
                })?;
                restored.push(*name);
            }
        }
        Ok(restored)
    }

    /// Takes a map's descriptor.
    pub(super) fn map(&mut self, name: &'static str) -> Result<OwnedFd, Error> {
        self.maps.remove(name).ok_or_else(|| missing(name))
    }

    /// A program's descriptor.
    pub(super) fn program(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        let program = self.programs.get(name).ok_or_else(|| missing(name))?;
        Ok(program.as_fd())
    }
}

/// Sets the programs' constants, which the verifier uses to remove code.
fn set_constants(
    parsed: &mut Parsed,
    logging: ProgramLogging,
    options: LoadOptions,
) -> Result<(), Error> {
    let release = release().unwrap_or_default();
    let has_process_id = [u8::from(kernel_has_process_id())];
    let has_set_retval = [u8::from(is_at_least(&release, 5, 18))];
    let level = [match logging {
        ProgramLogging::Off => 0,
        ProgramLogging::Debug => aya_log::Level::Debug as u8,
    }];
    let dns_port = u32::from(options.dns_port).to_ne_bytes();
    let constants = HashMap::from([
        ("HAS_PROCESS_ID", (has_process_id.as_slice(), true)),
        ("HAS_SET_RETVAL", (has_set_retval.as_slice(), true)),
        ("PROXY_DNS_PORT", (dns_port.as_slice(), true)),
        (aya_log::LEVEL, (level.as_slice(), true)),
    ]);
    let patched = parsed.patch_map_data(constants);
    patched.map_err(|error| unreadable(&error))
}

fn unreadable(source: &dyn std::error::Error) -> Error {
    Error::Object {
        problem: source.to_string(),
    }
}

fn missing(name: &str) -> Error {
    Error::Object {
        problem: format!("it has no {name}"),
    }
}

/// Opens the pinned map, or creates a map and pins it if it outlives a proxy.
fn open_map(
    source: MapSource<'_>,
    name: &str,
    map: &aya_obj::Map,
    max_entries: u32,
) -> Result<OwnedFd, Error> {
    let failed = |action| {
        move |source| Error::Map {
            map: name.to_owned(),
            action,
            source,
        }
    };
    let pin = match source {
        MapSource::Pinned(pins) if PINNED.contains(&name) => Some(pins.map(name)),
        _ => None,
    };
    if let Some(pin) = &pin
        && let Ok(map) = sys::open_pin(pin)
    {
        return Ok(map);
    }
    let shape = Shape {
        kind: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        entries: entries(source, name, map, max_entries),
        flags: map.map_flags(),
    };
    let fd = sys::create_map(name, shape).map_err(failed("created"))?;
    if !map.data().is_empty() {
        sys::fill(fd.as_fd(), map.data()).map_err(failed("written"))?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        sys::freeze(fd.as_fd()).map_err(failed("made constant"))?;
    }
    if let Some(path) = pin {
        sys::pin(fd.as_fd(), &path).map_err(|source| Error::Pin {
            path,
            action: "created",
            source,
        })?;
    }
    Ok(fd)
}

fn entries(source: MapSource<'_>, name: &str, map: &aya_obj::Map, max_entries: u32) -> u32 {
    match (source, name) {
        (MapSource::Private, _) if map.map_type() != RING_BUFFER => {
            map.max_entries().min(MAX_PRIVATE_ENTRIES)
        }
        (_, "FAST_PATH" | "INBOUND_ENTRIES") => max_entries,
        _ => map.max_entries(),
    }
}

fn instructions<'a>(parsed: &'a Parsed, name: &str) -> Result<&'a [bpf_insn], Error> {
    let program = parsed.programs.get(name).ok_or_else(|| missing(name))?;
    let function = parsed.functions.get(&program.function_key());
    Ok(&function.ok_or_else(|| missing(name))?.instructions)
}

fn load(
    name: &'static str,
    attach: AttachType,
    instructions: &[bpf_insn],
) -> Result<OwnedFd, Error> {
    sys::load_program(name, attach, instructions).map_err(|(source, log)| Error::Program {
        program: name,
        source,
        log,
    })
}

/// Replaces a constant in the instructions that load it: each has 64 bits in two places
/// (`BPF_LD | BPF_IMM | BPF_DW` of RFC 9669, 5.4). False: no instruction loads it.
fn replace_constant(instructions: &mut [bpf_insn], from: u64, to: u64) -> bool {
    const LOAD_CONSTANT: u8 = 0x18;
    // The lower half comes first.
    let halves = |value: u64| {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        [[a, b, c, d], [e, f, g, h]].map(i32::from_le_bytes)
    };
    let [low, high] = halves(from);
    let mut found = false;
    for index in 1..instructions.len() {
        let [first, second] = &mut instructions[index - 1..=index] else {
            break;
        };
        if first.code == LOAD_CONSTANT
            && first.src_reg() == 0
            && (first.imm, second.imm) == (low, high)
        {
            [first.imm, second.imm] = halves(to);
            found = true;
        }
    }
    found
}

/// Since Linux 6.10, programs of every type can read the process id.
pub(super) fn kernel_has_process_id() -> bool {
    release().is_ok_and(|release| is_at_least(&release, 6, 10))
}

/// The kernel's release, such as `6.18.3`.
///
/// # Errors
/// When /proc is not mounted.
pub fn release() -> io::Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim_end().to_owned())
}

/// Whether a kernel's release is at least this version.
#[must_use]
pub fn is_at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for release in ["6.10.0", "6.18.44-fc-v445", "7.0", "10.1-rc1"] {
            assert!(is_at_least(release, 6, 10), "{release}");
        }
        for release in ["6.9.12", "5.15.0-91-generic", "6", "", "what"] {
            assert!(!is_at_least(release, 6, 10), "{release}");
        }
    }
}
