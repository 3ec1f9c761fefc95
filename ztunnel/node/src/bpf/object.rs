//! The embedded object, made real: its maps created or taken over, its programs checked by the
//! kernel's verifier. Nothing is attached yet.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use aya_obj::{EbpfSectionKind, Object as Parsed};

use super::pins::Pins;
use super::sys::{self, AttachType, Shape};
use super::{Error, Ports};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ztunnel-ebpf"));

/// The maps that outlive a proxy. The log's ring is not among them: each proxy has its own.
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
/// The most entries of a map that is nobody else's.
const PRIVATE: u32 = 64;
/// `BPF_MAP_TYPE_RINGBUF`, whose size is in bytes.
const RING: u32 = 27;

/// Whose maps the programs use.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    /// Those of the proxy that pinned them, which outlive this process.
    Pinned(&'a Pins),
    /// Small ones of their own.
    Private,
}

/// Whether the programs can write to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// They have no code for it.
    Silent,
    /// They can, and do while the settings ask for it.
    Debug,
}

/// What is settled when the programs are loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settled {
    /// How many verdicts there is room for. Counts when the maps are made.
    pub(super) verdicts: u32,
    /// The port of the proxy's DNS listener.
    pub(super) dns: u16,
}

impl Default for Settled {
    fn default() -> Self {
        Self {
            verdicts: 1,
            dns: Ports::default().dns,
        }
    }
}

/// The loaded object.
#[derive(Debug)]
pub(super) struct Object {
    maps: HashMap<String, OwnedFd>,
    programs: HashMap<&'static str, OwnedFd>,
}

impl Object {
    /// Loads these programs and all maps.
    ///
    /// Silent programs are the rule: what they would say is then unreachable for the verifier,
    /// which drops it, and loading takes a tenth of the time.
    pub(super) fn load(
        owner: Owner<'_>,
        programs: &[(&'static str, AttachType)],
        speech: Speech,
        settled: Settled,
    ) -> Result<Self, Error> {
        let unreadable = |source: &dyn std::error::Error| Error::Object {
            problem: source.to_string(),
        };
        let mut parsed = Parsed::parse(OBJECT).map_err(|error| unreadable(&error))?;
        let knows_process = [u8::from(kernel_knows_process())];
        let level = [match speech {
            Speech::Silent => 0,
            Speech::Debug => aya_log::Level::Debug as u8,
        }];
        let dns = u32::from(settled.dns).to_ne_bytes();
        let globals = HashMap::from([
            ("KNOWS_PROCESS", (knows_process.as_slice(), true)),
            ("DNS_PORT", (dns.as_slice(), true)),
            (aya_log::LEVEL, (level.as_slice(), true)),
        ]);
        let patched = parsed.patch_map_data(globals);
        patched.map_err(|error| unreadable(&error))?;
        let described: Vec<(String, aya_obj::Map)> = parsed.maps.drain().collect();
        let mut maps = HashMap::new();
        for (name, map) in &described {
            maps.insert(name.clone(), open_map(owner, name, map, settled.verdicts)?);
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
            loaded.insert(*name, load_program(&parsed, name, *attach)?);
        }
        Ok(Self {
            maps,
            programs: loaded,
        })
    }

    /// A map's own descriptor.
    pub(super) fn map(&mut self, name: &'static str) -> Result<OwnedFd, Error> {
        self.maps.remove(name).ok_or_else(|| missing(name))
    }

    /// A program's descriptor.
    pub(super) fn program(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        let program = self.programs.get(name).ok_or_else(|| missing(name))?;
        Ok(program.as_fd())
    }
}

fn missing(name: &str) -> Error {
    Error::Object {
        problem: format!("it has no {name}"),
    }
}

/// The pinned map, or a new one, pinned if it is one of those that outlive a proxy. How many
/// verdicts it holds is the operator's choice.
fn open_map(
    owner: Owner<'_>,
    name: &str,
    map: &aya_obj::Map,
    verdicts: u32,
) -> Result<OwnedFd, Error> {
    let failed = |action| {
        move |source| Error::Map {
            map: name.to_owned(),
            action,
            source,
        }
    };
    let pin = match owner {
        Owner::Pinned(pins) if PINNED.contains(&name) => Some(pins.map(name)),
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
        entries: entries(owner, name, map, verdicts),
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

fn entries(owner: Owner<'_>, name: &str, map: &aya_obj::Map, verdicts: u32) -> u32 {
    match (owner, name) {
        (Owner::Private, _) if map.map_type() != RING => map.max_entries().min(PRIVATE),
        (_, "VERDICTS" | "ARRIVALS") => verdicts,
        _ => map.max_entries(),
    }
}

fn load_program(parsed: &Parsed, name: &'static str, attach: AttachType) -> Result<OwnedFd, Error> {
    let program = parsed.programs.get(name).ok_or_else(|| missing(name))?;
    let function = parsed
        .functions
        .get(&program.function_key())
        .ok_or_else(|| missing(name))?;
    sys::load_program(name, attach, &function.instructions).map_err(|(source, log)| {
        Error::Program {
            program: name,
            source,
            log,
        }
    })
}

/// Linux 6.10 lets programs of every type ask for the process id.
pub(super) fn kernel_knows_process() -> bool {
    release().is_ok_and(|release| is_at_least(&release, 6, 10))
}

/// The kernel's version, as it calls itself.
///
/// # Errors
/// When /proc is not mounted.
pub fn release() -> io::Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim_end().to_owned())
}

/// Whether a kernel's version is this one or a later one.
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
