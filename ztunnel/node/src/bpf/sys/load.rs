//! Creates maps and loads programs.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::{AttachType, Command, FdOnly, bpf, number, owned};

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

#[repr(C)]
pub(super) struct Info {
    pub(super) fd: u32,
    pub(super) size: u32,
    pub(super) info: u64,
}

/// The name of a map or program in the kernel, which keeps 15 bytes. Pins have the full name.
fn object_name(name: &str) -> [u8; 16] {
    let mut field = [0; 16];
    for (place, byte) in field.iter_mut().zip(name.bytes().take(15)) {
        *place = byte;
    }
    field
}

/// The parameters of a map in the object.
#[derive(Debug, Clone, Copy)]
pub(in crate::bpf) struct Shape {
    pub(in crate::bpf) kind: u32,
    pub(in crate::bpf) key_size: u32,
    pub(in crate::bpf) value_size: u32,
    pub(in crate::bpf) entries: u32,
    pub(in crate::bpf) flags: u32,
}

/// `BPF_MAP_TYPE_SK_STORAGE`
const SK_STORAGE: u32 = 24;
/// `BPF_F_CLONE`: accepted sockets get a copy of their listener's storage.
const CLONE: u32 = 1 << 9;

/// Creates a map.
pub(in crate::bpf) fn create_map(name: &str, shape: Shape) -> io::Result<OwnedFd> {
    // The kernel wants type information for socket storage only.
    let types = (shape.kind == SK_STORAGE)
        .then(|| load_btf(&storage_types(shape.value_size)))
        .transpose()?;
    let mut attribute = NewMap {
        kind: shape.kind,
        key_size: shape.key_size,
        value_size: shape.value_size,
        entries: shape.entries,
        flags: shape.flags | if types.is_some() { CLONE } else { 0 },
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

/// Makes a map read-only for user space, so that the verifier can use its values as constants.
pub(in crate::bpf) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::MapFreeze, &mut FdOnly { fd: number(map) }).map(drop)
}

/// Type 1, the key: an int. Type 2, the value: an array of ints. The format is that of the kernel's
/// Documentation/bpf/btf.rst.
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

/// Loads a program, which the verifier checks. On failure, the error comes with the end of the
/// verifier's log.
pub(in crate::bpf) fn load_program(
    name: &str,
    attach: AttachType,
    instructions: &[aya_obj::generated::bpf_insn],
) -> Result<OwnedFd, (io::Error, String)> {
    let mut attribute = NewProgram {
        kind: match attach {
            AttachType::Egress => 8,
            AttachType::SockOps => 13,
            AttachType::SkMsgVerdict => 16,
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
    // Only after a failure: writing the log takes longer than the check.
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

/// The id of a loaded program.
pub(in crate::bpf) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // The kernel fills in as much of `struct bpf_prog_info` as fits: type and id.
    let mut info = [0_u32; 2];
    let mut attribute = Info {
        fd: number(program),
        size: 8,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(Command::Info, &mut attribute)?;
    Ok(info[1])
}
