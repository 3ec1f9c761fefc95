//! The pins in the BPF file system that keep maps and links alive while no proxy runs.
//!
//! ```text
//! <directory>/v3/PODS …           the maps, by their full names
//! <directory>/v3/links/capture4 … one link per cgroup program
//! <directory>/v3/netns/<cookie>   one link per enrolled namespace
//! <directory>/v3/lives/<process>  a lock per process that is or was active (`process_locks`)
//! ```
//! `v3` is the version of the map layout. The pins of layout 2 are taken over (`layout_2`). A proxy
//! with any other layout creates pins of its own, and removes the others when its own programs
//! capture all pods. Names in a BPF file system have no dots.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use ztunnel_ebpf_types::LAYOUT;

use super::{Error, private, sys};
use mesh::NetnsCookie;

/// The directories beside the layouts that the locks of the handover are held on. The names are fixed,
/// because proxies of different versions hold them.
pub(crate) const ACTIVE_LOCK: &str = "charge";
pub(crate) const STANDBY_LOCK: &str = "heir";

/// The directory of the pins of one map layout.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Ensures that the directory exists on a BPF file system, for this process's user alone, and mounts
    /// one if necessary.
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        if !is_bpf_fs(nearest(directory)) {
            mount_for(directory)?;
        }
        private::ensure(directory)?;
        let this = Self {
            root: directory.join(format!("v{LAYOUT}")),
        };
        this.create()?;
        Ok(this)
    }

    /// Creates the directories of the layout that are missing.
    pub(super) fn create(&self) -> Result<(), Error> {
        for kind in ["links", "netns", "lives"] {
            private::create(&self.group(kind))?;
        }
        Ok(())
    }

    /// Detaches the programs and removes the pins of other layouts.
    pub(super) fn remove_other_layouts(&self) -> Result<(), Error> {
        let Some(directory) = self.root.parent() else {
            return Ok(());
        };
        for layout in children(directory)? {
            let is_other = layout != self.root && layout.join("links").exists();
            if is_other {
                detach_layout(&layout)?;
                remove_tree(layout)?;
            }
        }
        Ok(())
    }

    /// The directory of the pins of map layout 2, if a proxy with that layout has left some.
    pub(super) fn layout_2(&self) -> Option<PathBuf> {
        let directory = self.root.parent()?.join("v2");
        directory.join("links").exists().then_some(directory)
    }

    /// A directory of pins of one kind: `links`, `netns` or `lives`.
    pub(super) fn group(&self, kind: &str) -> PathBuf {
        self.root.join(kind)
    }

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The pin of a cgroup program's link.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.root.join("links").join(program)
    }

    /// The pin of an enrolled namespace's link.
    pub(super) fn netns(&self, cookie: NetnsCookie) -> PathBuf {
        self.root.join("netns").join(cookie.0.to_string())
    }

    /// The directory of the locks that show which proxies are alive.
    pub(super) fn process_locks(&self) -> PathBuf {
        self.root.join("lives")
    }

    /// The namespaces that have a link.
    pub(super) fn enrolled(&self) -> Result<Vec<NetnsCookie>, Error> {
        let path = self.root.join("netns");
        let unreadable = |source| Error::Pin {
            path: path.clone(),
            action: "read",
            source,
        };
        let mut cookies = Vec::new();
        for entry in fs::read_dir(&path).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            if let Some(cookie) = name.to_str().and_then(|name| name.parse().ok()) {
                cookies.push(NetnsCookie(cookie));
            }
        }
        Ok(cookies)
    }
}

/// Removes a pin; a missing one is no error.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Pin {
            path: path.to_path_buf(),
            action: "removed",
            source,
        }),
        _ => Ok(()),
    }
}

/// Detaches a pinned link's program at once and removes the pin.
pub(super) fn detach(path: &Path) -> Result<(), Error> {
    if let Ok(link) = sys::open_pin(path) {
        // This fails if the namespace no longer exists: the link is detached already.
        drop(sys::detach(link.as_fd()));
    }
    remove(path)
}

/// Detaches the programs and removes the pins of all layouts below a directory, and unmounts the
/// file system if it was mounted at this directory. Returns whether there were pins; a missing
/// directory is no error.
pub(super) fn remove_all(directory: &Path) -> Result<bool, Error> {
    if !directory.exists() || !is_bpf_fs(directory) {
        return Ok(false);
    }
    let mut removed = false;
    for layout in children(directory)? {
        if is_layout(&layout) {
            detach_layout(&layout)?;
            remove_tree(layout)?;
            removed = true;
        }
    }
    for lock in [ACTIVE_LOCK, STANDBY_LOCK] {
        remove_tree(directory.join(lock))?;
    }
    // What others have pinned here stays.
    if is_unused(directory)? {
        remove_directory(directory)?;
    }
    Ok(removed)
}

/// Removes a directory with everything in it; a missing one is no error.
fn remove_tree(path: PathBuf) -> Result<(), Error> {
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Pin {
            path,
            action: "removed",
            source,
        }),
        _ => Ok(()),
    }
}

/// Whether no process has pinned or created anything in a directory. The root of a BPF file system can
/// have files of the kernel (`maps.debug`, `progs.debug`); no other name has a dot.
pub(super) fn is_unused(directory: &Path) -> Result<bool, Error> {
    let is_kernels = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.contains('.'))
    };
    Ok(children(directory)?.iter().all(is_kernels))
}

/// Whether a directory has the pins of one map layout.
pub(super) fn is_layout(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    let version = name.and_then(|name| name.strip_prefix('v'));
    version.is_some_and(|version| version.parse::<u32>().is_ok())
        && directory.join("links").is_dir()
        && directory.join("netns").is_dir()
}

fn remove_directory(directory: &Path) -> Result<(), Error> {
    if is_mount_point(directory) {
        // Lazy: a proxy that still runs keeps its descriptors, which need no pins.
        return umount2(directory, MntFlags::MNT_DETACH).map_err(|errno| Error::Pin {
            path: directory.to_path_buf(),
            action: "unmounted",
            source: errno.into(),
        });
    }
    fs::remove_dir(directory).map_err(|source| Error::Pin {
        path: directory.to_path_buf(),
        action: "removed",
        source,
    })
}

fn detach_layout(layout: &Path) -> Result<(), Error> {
    for group in ["links", "netns"] {
        let group = layout.join(group);
        if group.exists() {
            for link in children(&group)? {
                detach(&link)?;
            }
        }
    }
    Ok(())
}

pub(super) fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |source| Error::Pin {
        path: directory.to_path_buf(),
        action: "read",
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    Ok(paths)
}

/// The path itself or the nearest directory above it that exists.
pub(super) fn nearest(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or_else(|| Path::new("/"))
}

/// How many namespaces have a link in this layout's pins. None: there are no such pins.
pub(super) fn enrolled_below(directory: &Path) -> Option<usize> {
    let netns = directory.join(format!("v{LAYOUT}")).join("netns");
    Some(children(&netns).ok()?.len())
}

/// Whether the path is on a BPF file system.
pub(super) fn is_bpf_fs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let Some(parent) = path.parent() else {
        return true;
    };
    matches!((device(path), device(parent)), (Ok(own), Ok(above)) if own != above)
}

/// Mounts a BPF file system at the directory. If the directory cannot be created, because its
/// parent is the kernel's mount point /sys/fs/bpf, mounts it at that parent.
fn mount_for(directory: &Path) -> Result<(), Error> {
    let target = match fs::create_dir_all(directory) {
        Ok(()) => directory,
        Err(_) => nearest(directory),
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), target, Some("bpf"), flags, Some("mode=0700")).map_err(|errno| {
        Error::NoBpfFs {
            path: target.to_path_buf(),
            source: errno.into(),
        }
    })
}
