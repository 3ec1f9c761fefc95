//! The bpf(2) calls of this module.
//!
//! aya's parser reads the object; the rest is a few system calls. aya's loader would first read the
//! kernel's types and probe its features, which takes several times as long, and it lacks some of
//! the calls (replacing a link's program, lookup-and-delete in a hash). Structures and numbers are those of `linux/bpf.h`.
#![allow(unsafe_code, reason = "bpf(2) has no safe binding")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

mod load;
mod map;
mod query;

pub(super) use load::{Shape, create_map, freeze, load_program, program_id};
pub(super) use map::{Map, fill};
pub(super) use query::{attached, program_name};

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
    ProgramAttach = 8,
    ProgramById = 13,
    Info = 15,
    ProgramQuery = 16,
    BtfLoad = 18,
    MapTake = 21,
    MapFreeze = 22,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// The hook of a program, `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    Egress = 1,
    SockOps = 3,
    SkMsgVerdict = 7,
    Connect4 = 10,
    Connect6 = 11,
    SendMessage4 = 14,
    SendMessage6 = 15,
    ReceiveMessage4 = 19,
    ReceiveMessage6 = 20,
    PeerName4 = 29,
    PeerName6 = 30,
    // Programs of earlier versions.
    #[cfg(test)]
    SockName4 = 31,
    #[cfg(test)]
    SockName6 = 32,
    SkLookup = 36,
}

#[repr(C)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

#[repr(C)]
struct FdOnly {
    fd: u32,
}

const _: () = assert!(size_of::<Pin>() == 16);
const _: () = assert!(size_of::<LinkCreate>() == 16);
const _: () = assert!(size_of::<Attach>() == 16);
const _: () = assert!(size_of::<LinkUpdate>() == 16);

/// Makes one call. The kernel accepts an attribute that is shorter than its union and treats the
/// rest as zero.
fn bpf<T>(command: Command, attribute: &mut T) -> io::Result<RawFd> {
    // SAFETY: every attribute type of this module has the layout of its command, the size is its
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

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: only called with the result of a call that returns a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Pins an object in the BPF file system: it exists as long as the pin.
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

/// Attaches a program to a cgroup or a network namespace; it stays attached while the link exists.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach: AttachType,
) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreate {
        program: number(program),
        target: number(target),
        attach: attach as u32,
        flags: 0,
    };
    bpf(Command::LinkCreate, &mut attribute).map(owned)
}

/// Attaches a program to a map of sockets, replacing the one that is attached. Sockets that are in
/// the map keep their program; the map keeps its program while a descriptor or a pin of the map
/// exists.
pub(super) fn attach_to_map(
    program: BorrowedFd<'_>,
    map: BorrowedFd<'_>,
    attach: AttachType,
) -> io::Result<()> {
    let mut attribute = Attach {
        target: number(map),
        program: number(program),
        attach: attach as u32,
        flags: 0,
    };
    bpf(Command::ProgramAttach, &mut attribute).map(drop)
}

/// Replaces the program of a link atomically: the hook is never without a program.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkUpdate {
        link: number(link),
        program: number(program),
        flags: 0,
        old: 0,
    };
    bpf(Command::LinkUpdate, &mut attribute).map(drop)
}

/// Detaches a link's program, even if other descriptors or pins of the link exist.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = FdOnly { fd: number(link) };
    bpf(Command::LinkDetach, &mut attribute).map(drop)
}

/// The cookie of a socket's network namespace (`SO_NETNS_COOKIE`).
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
