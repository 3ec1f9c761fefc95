//! Detects the programs of other proxies, for a proxy that captures by rules instead: rules do not
//! reach a pod that programs capture, and only an operator may end that capture
//! ([`Kernel::remove_pins`](super::Kernel::remove_pins)).

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::pins;
use super::programs::INBOUND;
use super::sys::{self, AttachType};

/// Whether the programs of a proxy capture the pod of a network namespace. The proxy may be of any
/// version and need not run. The kernel is queried, because a container may not see the pins.
///
/// # Errors
/// When the kernel refuses the query: it needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
pub fn is_captured(netns: BorrowedFd<'_>) -> io::Result<bool> {
    for id in sys::attached(netns, AttachType::SkLookup)? {
        match sys::program_name(id) {
            Ok(name) if name == INBOUND => return Ok(true),
            // A program of other software, or one that was detached during the query.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// How many pods the links that are pinned below a directory capture, in all map layouts; 0 if the
/// directory is not visible.
#[must_use]
pub fn captured_pods_below(directory: &Path) -> usize {
    if !pins::is_bpf_fs(directory) {
        return 0;
    }
    let layouts = pins::children(directory).unwrap_or_default();
    let captured = layouts
        .iter()
        .filter_map(|layout| pins::children(&layout.join("netns")).ok());
    captured.map(|pods| pods.len()).sum()
}
