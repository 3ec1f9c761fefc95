//! Typed access to the elements of a map.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::Pod;

use super::{Command, address, bpf, number};

#[repr(C)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Element>() == 32);

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Batch>() == 56);

/// How many entries one call reads. A hash returns whole buckets, which are much shorter.
const BATCH: u32 = 1024;

/// A map's file descriptor with the types of its keys and values.
#[derive(Debug)]
pub(in crate::bpf) struct Map<K, V> {
    fd: OwnedFd,
    name: &'static str,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K: Pod + Default, V: Pod + Default> Map<K, V> {
    /// Wraps a map whose key and value sizes are those of the types. The layout's version in the
    /// pin's path and the size assertions of the shared types ensure that.
    pub(in crate::bpf) fn new(fd: OwnedFd, name: &'static str) -> Self {
        Self {
            fd,
            name,
            types: std::marker::PhantomData,
        }
    }

    /// The map's name, for error messages.
    pub(in crate::bpf) fn name(&self) -> &'static str {
        self.name
    }

    /// The map itself.
    pub(in crate::bpf) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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
    pub(in crate::bpf) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(Command::MapLookup, key)
    }

    /// Reads and removes a value by one system call.
    pub(in crate::bpf) fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(Command::MapTake, key)
    }

    /// Inserts or replaces a value.
    pub(in crate::bpf) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let mut element = self.element(address(key), address(value));
        bpf(Command::MapUpdate, &mut element).map(drop)
    }

    /// Removes a key; a missing one is no error.
    pub(in crate::bpf) fn remove(&self, key: &K) -> io::Result<()> {
        let mut element = self.element(address(key), 0);
        match bpf(Command::MapDelete, &mut element) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// All entries of a hash. Entries that are inserted or removed meanwhile may be missing or
    /// included.
    pub(in crate::bpf) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut keys = vec![K::default(); BATCH as usize];
        let mut values = vec![V::default(); BATCH as usize];
        let (mut token, mut next) = (0_u64, 0_u64);
        loop {
            let mut batch = Batch {
                from: if entries.is_empty() {
                    0
                } else {
                    address(&token)
                },
                to: std::ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: BATCH,
                map: number(self.fd.as_fd()),
                element_flags: 0,
                flags: 0,
            };
            let result = bpf(Command::MapLookupBatch, &mut batch);
            let ended = match result {
                Ok(_) => false,
                // The last batch, or an empty map.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            let count = batch.count.min(BATCH) as usize;
            entries.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
            // Without progress the loop would not end.
            if ended || count == 0 {
                return Ok(entries);
            }
            token = next;
        }
    }

    /// All keys. Keys that are inserted or removed meanwhile may be missing or included.
    pub(in crate::bpf) fn keys(&self) -> io::Result<Vec<K>> {
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

/// Writes the only value of a map: constants or variables of the programs.
pub(in crate::bpf) fn fill(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
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
