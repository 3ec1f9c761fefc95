//! Programs of other proxies, for one that works without any: pods that they capture are not to be
//! reached by rules, and only who may end their capture on purpose knows that nobody needs it.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::pins;
use super::programs::INBOUND;
use super::sys::{self, AttachType};

/// Whether the programs of a proxy, of whichever build and whether it runs or not, capture the pod
/// of a network namespace. The kernel is asked, not the pins: a container may not see those.
///
/// # Errors
/// When the kernel does not say: CAP_NET_ADMIN and CAP_SYS_ADMIN are needed.
pub fn is_captured(netns: BorrowedFd<'_>) -> io::Result<bool> {
    for id in sys::attached(netns, AttachType::SkLookup)? {
        match sys::program_name(id) {
            Ok(name) if name == INBOUND => return Ok(true),
            // Somebody else's, or gone meanwhile.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// How many pods are captured by what is pinned below a directory, whichever layout the pins have. A
/// directory that cannot be seen has none.
#[must_use]
pub fn captured_below(directory: &Path) -> usize {
    if !pins::is_bpf_fs(directory) {
        return 0;
    }
    let layouts = pins::children(directory).unwrap_or_default();
    let captured = layouts
        .iter()
        .filter_map(|layout| pins::children(&layout.join("netns")).ok());
    captured.map(|pods| pods.len()).sum()
}
