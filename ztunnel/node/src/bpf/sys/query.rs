//! Queries which programs are attached.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use super::load::Info;
use super::{AttachType, Command, bpf, number, owned};

#[repr(C)]
struct Query {
    target: u32,
    attach: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    zero: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

const _: () = assert!(size_of::<Query>() == 32);
const _: () = assert!(size_of::<ById>() == 12);

/// The start of `struct bpf_prog_info`, up to the name.
#[repr(C)]
struct ProgramInfo {
    before: [u64; 8],
    name: [u8; 16],
}

/// Its size, which the call passes to the kernel.
const PROGRAM_INFO: u32 = 80;
const _: () = assert!(size_of::<ProgramInfo>() == PROGRAM_INFO as usize);

/// The largest number of `sk_lookup` programs of a network namespace (`netns_bpf_max_progs` in
/// kernel/bpf/net_namespace.c).
const MAX_PROGRAMS: u32 = 64;

/// The ids of all programs that are attached to a network namespace. Needs CAP_NET_ADMIN.
pub(in crate::bpf) fn attached(target: BorrowedFd<'_>, attach: AttachType) -> io::Result<Vec<u32>> {
    let mut programs = [0_u32; MAX_PROGRAMS as usize];
    let mut attribute = Query {
        target: number(target),
        attach: attach as u32,
        flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: MAX_PROGRAMS,
        zero: 0,
    };
    bpf(Command::ProgramQuery, &mut attribute)?;
    let count = attribute.count.min(MAX_PROGRAMS) as usize;
    Ok(programs.into_iter().take(count).collect())
}

/// The name of a loaded program, by its id. Needs CAP_SYS_ADMIN.
pub(in crate::bpf) fn program_name(id: u32) -> io::Result<String> {
    let mut attribute = ById {
        id,
        next: 0,
        flags: 0,
    };
    let program = bpf(Command::ProgramById, &mut attribute).map(owned)?;
    let mut info = ProgramInfo {
        before: [0; 8],
        name: [0; 16],
    };
    let mut attribute = Info {
        fd: number(program.as_fd()),
        size: PROGRAM_INFO,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(Command::Info, &mut attribute)?;
    let name = info.name.split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
}
