//! The bpf(2) calls that this room makes by itself.
//!
//! aya loads the object; everything afterwards is a handful of system calls on file descriptors,
//! some of which aya has no interface for (replacing a link's program, lookup-and-delete in a
//! hash, socket storage by map key). Structures and numbers are those of `linux/bpf.h`.
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
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    MapTake = 21,
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
struct Detach {
    link: u32,
}

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
    RawFd::try_from(result).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
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
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
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
    let fd = bpf(Command::ObjectGet, &mut attribute)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
    let fd = bpf(Command::LinkCreate, &mut attribute)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
    let mut attribute = Detach { link: number(link) };
    bpf(Command::LinkDetach, &mut attribute).map(drop)
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
