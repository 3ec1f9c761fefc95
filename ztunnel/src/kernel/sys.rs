//! The bpf(2) calls that this room makes by itself.
//!
//! aya's parser reads the object; the rest is a handful of system calls. aya's loader would read
//! the kernel's own types and try out its features first, several times the work of all this,
//! and it has no interface for some of the calls (replacing a link's program, lookup-and-delete
//! in a hash). Structures and numbers are those of `linux/bpf.h`.
#![allow(unsafe_code, reason = "bpf(2) has no safe binding")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;

/// Commands of bpf(2).
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgramLoad = 5,
    ObjectPin = 6,
    ObjectGet = 7,
    Info = 15,
    BtfLoad = 18,
    MapTake = 21,
    MapFreeze = 22,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Where a program is attached, `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    PeerName4 = 29,
    PeerName6 = 30,
    SockName4 = 31,
    SockName6 = 32,
    SkLookup = 36,
}

#[repr(C)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

#[repr(C)]
struct Create {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

#[repr(C)]
struct One {
    fd: u32,
}

#[repr(C)]
struct Info {
    fd: u32,
    size: u32,
    info: u64,
}

#[repr(C)]
struct NewMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa: u32,
    name: [u8; 16],
    device: u32,
    btf: u32,
    btf_key: u32,
    btf_value: u32,
}

#[repr(C)]
struct NewProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach: u32,
}

#[repr(C)]
struct NewBtf {
    data: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    zero: u32,
}

const _: () = assert!(size_of::<NewMap>() == 60);
const _: () = assert!(size_of::<NewProgram>() == 72);
const _: () = assert!(size_of::<NewBtf>() == 32);

const _: () = assert!(size_of::<Element>() == 32);
const _: () = assert!(size_of::<Pin>() == 16);
const _: () = assert!(size_of::<Create>() == 16);
const _: () = assert!(size_of::<Update>() == 16);

/// One call. The kernel takes an attribute shorter than its own union: the rest counts as zero.
fn bpf<T>(command: Command, attribute: &mut T) -> io::Result<RawFd> {
    // SAFETY: every attribute type of this file has the layout of its command, the size is its
    // own, and the pointers in it are to live memory of the size that the map has.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A BorrowedFd is never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

/// A map's file descriptor with the types of its keys and values.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    name: &'static str,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K: Pod + Default, V: Pod + Default> Map<K, V> {
    /// Takes a map whose key and value sizes are those of the types: the layout's version in the
    /// pin's path and the size assertions of the shared types see to it.
    pub(super) fn new(fd: OwnedFd, name: &'static str) -> Self {
        Self {
            fd,
            name,
            types: std::marker::PhantomData,
        }
    }

    /// The map's name, for error messages.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    fn element(&self, key: u64, value: u64) -> Element {
        Element {
            map: number(self.fd.as_fd()),
            zero: 0,
            key,
            value,
            flags: 0,
        }
    }

    fn read(&self, command: Command, key: &K) -> io::Result<Option<V>> {
        let mut value = V::default();
        let place = std::ptr::from_mut(&mut value) as u64;
        let mut element = self.element(address(key), place);
        match bpf(command, &mut element) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(Command::MapLookup, key)
    }

    /// Takes a value out of the map: one system call for both.
    pub(super) fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(Command::MapTake, key)
    }

    /// Writes a value, whether there was one or not.
    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let mut element = self.element(address(key), address(value));
        bpf(Command::MapUpdate, &mut element).map(drop)
    }

    /// Removes a key; one that is not there is no error.
    pub(super) fn remove(&self, key: &K) -> io::Result<()> {
        let mut element = self.element(address(key), 0);
        match bpf(Command::MapDelete, &mut element) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// All keys. Keys that come or go meanwhile may or may not be among them.
    pub(super) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::default();
            let place = std::ptr::from_mut(&mut next) as u64;
            let mut element = self.element(keys.last().map_or(0, address), place);
            match bpf(Command::MapNextKey, &mut element) {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Gives an object a name in the BPF file system: it lives as long as the name.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attribute = Pin {
        path: path.as_ptr() as u64,
        object: number(object),
        flags: 0,
    };
    bpf(Command::ObjectPin, &mut attribute).map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attribute = Pin {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    bpf(Command::ObjectGet, &mut attribute).map(owned)
}

/// Attaches a program to a cgroup or a network namespace; it stays attached while the link lives.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach: AttachType,
) -> io::Result<OwnedFd> {
    let mut attribute = Create {
        program: number(program),
        target: number(target),
        attach: attach as u32,
        flags: 0,
    };
    bpf(Command::LinkCreate, &mut attribute).map(owned)
}

/// Puts another program into a link, in one step: there is no moment without a program.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = Update {
        link: number(link),
        program: number(program),
        flags: 0,
        old: 0,
    };
    bpf(Command::LinkUpdate, &mut attribute).map(drop)
}

/// Detaches at once, whoever else holds the link.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = One { fd: number(link) };
    bpf(Command::LinkDetach, &mut attribute).map(drop)
}

fn object_name(name: &str) -> [u8; 16] {
    let mut field = [0; 16];
    for (place, byte) in field.iter_mut().zip(name.bytes().take(15)) {
        *place = byte;
    }
    field
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: only called with the result of a call that returns a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The shape of a map, as the object has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) entries: u32,
    pub(super) flags: u32,
}

/// `BPF_MAP_TYPE_SK_STORAGE`
const SK_STORAGE: u32 = 24;

/// Makes a map.
pub(super) fn create_map(name: &str, shape: Shape) -> io::Result<OwnedFd> {
    // Socket storage alone must say what it holds.
    let types = (shape.kind == SK_STORAGE)
        .then(|| load_btf(&storage_types(shape.value_size)))
        .transpose()?;
    let mut attribute = NewMap {
        kind: shape.kind,
        key_size: shape.key_size,
        value_size: shape.value_size,
        entries: shape.entries,
        flags: shape.flags,
        inner: 0,
        numa: 0,
        name: object_name(name),
        device: 0,
        btf: types.as_ref().map_or(0, |types| number(types.as_fd())),
        btf_key: u32::from(types.is_some()),
        btf_value: if types.is_some() { 2 } else { 0 },
    };
    bpf(Command::MapCreate, &mut attribute).map(owned)
}

/// Fills a map of one value, constants or variables of the programs.
pub(super) fn fill(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut element = Element {
        map: number(map),
        zero: 0,
        key: address(&key),
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(Command::MapUpdate, &mut element).map(drop)
}

/// Makes a map constant for user space: the verifier then knows its values.
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::MapFreeze, &mut One { fd: number(map) }).map(drop)
}

/// Type 1: int, the key. Type 2: an array of so many ints, the value. The format is that of the
/// kernel's Documentation/bpf/btf.rst.
fn storage_types(value_size: u32) -> Vec<u8> {
    const STRINGS: &[u8; 5] = b"\0int\0";
    const KIND_INT: u32 = 1 << 24;
    const KIND_ARRAY: u32 = 3 << 24;
    const SIGNED_32_BITS: u32 = (1 << 24) | 32;
    let types = [
        [1, KIND_INT, 4, SIGNED_32_BITS].as_slice(),
        [0, KIND_ARRAY, 0, 1, 1, value_size / 4].as_slice(),
    ]
    .concat();
    let types_size = u32::try_from(types.len() * 4).unwrap_or_default();
    let header = [24, 0, types_size, types_size, 5];
    // Magic, version 1, no flags.
    let mut bytes = vec![0x9f, 0xeb, 1, 0];
    if cfg!(target_endian = "big") {
        bytes.swap(0, 1);
    }
    for word in header.iter().chain(&types) {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(STRINGS);
    bytes
}

fn load_btf(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attribute = NewBtf {
        data: types.as_ptr() as u64,
        log: 0,
        size: u32::try_from(types.len()).unwrap_or_default(),
        log_size: 0,
        log_level: 0,
        zero: 0,
    };
    bpf(Command::BtfLoad, &mut attribute).map(owned)
}

/// Has the verifier check a program. On failure, the end of what it says comes with the error.
pub(super) fn load_program(
    name: &str,
    attach: AttachType,
    instructions: &[aya_obj::generated::bpf_insn],
) -> Result<OwnedFd, (io::Error, String)> {
    let mut attribute = NewProgram {
        kind: match attach {
            AttachType::SockOps => 13,
            AttachType::SkLookup => 30,
            _ => 18,
        },
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: object_name(name),
        device: 0,
        attach: attach as u32,
    };
    let refused = match bpf(Command::ProgramLoad, &mut attribute) {
        Ok(fd) => return Ok(owned(fd)),
        Err(error) => error,
    };
    // Only now: writing the log takes longer than the check.
    let mut log = vec![0_u8; 1 << 20];
    attribute.log_level = 1;
    attribute.log_size = 1 << 20;
    attribute.log = log.as_mut_ptr() as u64;
    if let Ok(fd) = bpf(Command::ProgramLoad, &mut attribute) {
        return Ok(owned(fd));
    }
    let end = log.iter().position(|byte| *byte == 0);
    log.truncate(end.unwrap_or(log.len()));
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n");
    Err((refused, tail))
}

/// The number of a loaded program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // The kernel fills in as much of `struct bpf_prog_info` as is asked for: type and id.
    let mut info = [0_u32; 2];
    let mut attribute = Info {
        fd: number(program),
        size: 8,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(Command::Info, &mut attribute)?;
    Ok(info[1])
}

/// `SO_NETNS_COOKIE`: which network namespace a socket belongs to.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size: libc::socklen_t = 8;
    // SAFETY: the option is a u64, and the size says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
