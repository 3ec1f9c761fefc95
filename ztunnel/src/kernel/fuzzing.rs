//! The door for the fuzz targets: records of the ring of events.

use super::Event;

/// Bytes of a record.
pub const LENGTH: usize = size_of::<ztunnel_ebpf_types::Event>();

/// Reads a record.
#[must_use]
pub fn event(record: &[u8]) -> Option<Event> {
    super::events::parse(record)
}
