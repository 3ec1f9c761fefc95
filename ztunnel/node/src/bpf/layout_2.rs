//! Takes over the pins of a proxy with map layout 2.
//!
//! Layout 3 gave maps and programs other names; keys and values are the same. So the maps of
//! layout 2 get a second pin under their new names, and both versions of the programs work with
//! the same maps. When this process becomes active, the links move to their new names, and each
//! program is replaced in its link: no hook is ever without a program, and open connections,
//! fast-path entries and original destinations are kept.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::pins::{Pins, children};
use super::process_locks::failed;
use super::{Error, sys};

/// The name of a map or a program in layout 2, and its name now.
struct Renamed {
    old: &'static str,
    new: &'static str,
}

const fn renamed(old: &'static str, new: &'static str) -> Renamed {
    Renamed { old, new }
}

const MAPS: [Renamed; 16] = [
    renamed("CONFIG", "CONFIG"),
    renamed("FORMERS", "PREVIOUS_PROXIES"),
    renamed("PODS", "PODS"),
    renamed("ADDRESSES", "ADDRESSES"),
    renamed("ORIGINS", "ORIGINAL_DESTINATIONS"),
    renamed("RESOLVERS", "RESOLVERS"),
    renamed("VERDICTS", "FAST_PATH"),
    renamed("ARRIVALS", "INBOUND_ENTRIES"),
    renamed("FLOWS", "CONNECTIONS"),
    renamed("EVENTS", "EVENTS"),
    renamed("COUNTS", "COUNTERS"),
    renamed("EXEMPT_PORTS", "EXEMPT_PORTS"),
    renamed("EXEMPT_NETS", "EXEMPT_NETWORKS"),
    renamed("SOCKETS", "SOCKET_STATES"),
    renamed("JOINED", "JOINED_SOCKETS"),
    renamed("JOINS", "JOIN_STATES"),
];

const LINKS: [Renamed; 11] = [
    renamed("peer4", "peername4"),
    renamed("peer6", "peername6"),
    renamed("name4", "sockname4"),
    renamed("name6", "sockname6"),
    renamed("established", "tcp_events"),
    renamed("capture4", "capture4"),
    renamed("capture6", "capture6"),
    renamed("answer4", "reply4"),
    renamed("answer6", "reply6"),
    renamed("ask4", "query4"),
    renamed("ask6", "query6"),
];

/// Pins the maps of layout 2 under their new names. Nothing that the other proxy uses changes, so a
/// process that is not active may call it.
pub(super) fn share_maps(pins: &Pins) -> Result<(), Error> {
    let Some(old) = pins.layout_2() else {
        return Ok(());
    };
    for Renamed { old: name, new } in MAPS {
        let (from, to) = (old.join(name), pins.map(new));
        if to.exists() || !from.exists() {
            continue;
        }
        let map = sys::open_pin(&from).map_err(failed(&from, "opened"))?;
        match sys::pin(map.as_fd(), &to) {
            // Another process of this version was faster.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&to, "written")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Moves the links and the process locks of layout 2 to their new names and removes what is left of
/// it. Only the active process may call it.
pub(super) fn move_links(pins: &Pins) -> Result<(), Error> {
    let Some(old) = pins.layout_2() else {
        return Ok(());
    };
    for Renamed { old: name, new } in LINKS {
        rename(&old.join("links").join(name), &pins.link(new))?;
    }
    for group in ["netns", "lives"] {
        let directory = old.join(group);
        if !directory.exists() {
            continue;
        }
        for path in children(&directory)? {
            if let Some(name) = path.file_name() {
                rename(&path, &pins.group(group).join(name))?;
            }
        }
    }
    fs::remove_dir_all(&old).map_err(failed(&old, "removed"))
}

/// A pin that is missing needs no move, and one that has its new name already is kept.
fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    if to.exists() || !from.exists() {
        return Ok(());
    }
    fs::rename(from, to).map_err(failed(from, "renamed"))
}
