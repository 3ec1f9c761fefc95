//! The BPF file system of a node: found wherever it is mounted, and mounted where it is missing.
//!
//! Nodes with systemd have one at /sys/fs/bpf. Nodes that are containers (kind, k3d, minikube) have
//! none. A container can mount one for its node if its volume is mounted with bidirectional
//! propagation.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Error;
use super::pins::{self, Pins};

/// The source of the mounts that [`prepare_node`] makes: it tells them from those of others.
const SOURCE: &str = "ztunnel";

/// The mount point of the BPF file system on a node.
pub const NODE_BPF_FS: &str = "/sys/fs/bpf";

/// Checks that a directory for pins is on a BPF file system already.
///
/// # Errors
/// When it is not.
pub fn require_bpf_fs(directory: &Path) -> Result<(), Error> {
    if pins::is_bpf_fs(pins::nearest(directory)) {
        return Ok(());
    }
    Err(Error::NoNodeBpfFs {
        path: directory.to_path_buf(),
    })
}

/// Ensures that a directory for pins exists on a BPF file system, and mounts one if necessary.
///
/// # Errors
/// When the directory cannot be created or the file system cannot be mounted.
pub fn prepare_directory(directory: &Path) -> Result<(), Error> {
    Pins::open(directory).map(drop)
}

/// What [`prepare_node`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodePreparation {
    /// The BPF file system was there.
    Present,
    /// It was mounted.
    Mounted,
}

/// Ensures that a BPF file system is mounted at `target` on the node. Meant for a privileged init
/// container in which the node's directory is a volume with bidirectional propagation, and for the
/// node itself.
///
/// # Errors
/// When the file system cannot be mounted, or the mount would not be visible outside of this
/// container.
pub fn prepare_node(target: &Path) -> Result<NodePreparation, Error> {
    // As the kernel lists it.
    let target = fs::canonicalize(target).map_err(|source| Error::NoBpfFs {
        path: target.to_path_buf(),
        source,
    })?;
    let target = target.as_path();
    if pins::is_bpf_fs(target) {
        return Ok(NodePreparation::Present);
    }
    mount_at(target)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if is_container() && !is_shared(&mounts, target) {
        unmount_prepared(target)?;
        return Err(Error::NotPropagated {
            path: target.to_path_buf(),
        });
    }
    Ok(NodePreparation::Mounted)
}

fn mount_at(target: &Path) -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some(SOURCE), target, Some("bpf"), flags, Some("mode=0700"));
    mounted.map_err(|errno| Error::NoBpfFs {
        path: target.to_path_buf(),
        source: errno.into(),
    })
}

/// Unmounts the file system at `target` if [`prepare_node`] has mounted it and it is empty. Returns
/// whether it was unmounted.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount_prepared(target: &Path) -> Result<bool, Error> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let target = &fs::canonicalize(target).unwrap_or_else(|_missing| target.to_path_buf());
    let is_ours = last_at(&mounts, target).is_some_and(|mount| mount.source == SOURCE);
    let is_unused = pins::is_unused(target).is_ok_and(|unused| unused);
    if !is_ours || !is_unused {
        return Ok(false);
    }
    umount2(target, MntFlags::empty()).map_err(|errno| Error::Pin {
        path: target.to_path_buf(),
        action: "unmounted",
        source: errno.into(),
    })?;
    Ok(true)
}

/// The directories with pins of this proxy, in all BPF file systems that are visible.
#[must_use]
pub fn pin_directories() -> Vec<PathBuf> {
    /// The pins are in the file system's root or in a directory of it, usually.
    const MAX_DEPTH: usize = 3;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    let mut level: Vec<PathBuf> = bpf_mounts(&mounts).map(|mount| mount.point).collect();
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for directory in level {
            let children = pins::children(&directory).unwrap_or_default();
            if children.iter().any(|child| pins::is_layout(child)) {
                found.push(directory);
            } else {
                next.extend(children.into_iter().filter(|child| child.is_dir()));
            }
        }
        level = next;
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether this process runs in a container: in a pid namespace other than the machine's first, or
/// in another mount namespace than its first process.
fn is_container() -> bool {
    /// `PROC_PID_INIT_INO` (include/linux/proc_ns.h).
    const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
    let namespace = |of: &str, kind: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).ok();
    namespace("self", "pid").is_some_and(|pid| pid != Path::new(FIRST_PID_NAMESPACE))
        || namespace("self", "mnt") != namespace("1", "mnt")
}

/// A mounted BPF file system.
struct BpfMount<'a> {
    source: &'a str,
    point: PathBuf,
    is_shared: bool,
}

/// The BPF file systems in the text of /proc/self/mountinfo (proc_pid_mountinfo(5)).
fn bpf_mounts(mountinfo: &str) -> impl Iterator<Item = BpfMount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let source = filesystem.strip_prefix("bpf ")?.split(' ').next()?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let (point, optional) = (fields.get(4)?, fields.get(6..)?);
        Some(BpfMount {
            source,
            point: PathBuf::from(point.replace("\\040", " ")),
            is_shared: optional.iter().any(|field| field.starts_with("shared:")),
        })
    })
}

/// The last mount at a place: it hides earlier ones.
fn last_at<'a>(mountinfo: &'a str, point: &Path) -> Option<BpfMount<'a>> {
    bpf_mounts(mountinfo)
        .filter(|mount| mount.point == point)
        .last()
}

/// Whether the mount at a place is shared with other mount namespaces.
fn is_shared(mountinfo: &str, point: &Path) -> bool {
    last_at(mountinfo, point).is_some_and(|mount| mount.is_shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 21 0:20 / /sys rw,nosuid shared:2 - sysfs sysfs rw\n\
        24 22 0:22 / /sys/fs/bpf rw,nosuid shared:4 - bpf ztunnel rw,mode=700\n\
        25 22 0:23 / /run/a\\040b rw - bpf bpf rw\n";

    #[test]
    fn mounts_are_told_apart_by_source_and_propagation() {
        let found: Vec<_> = bpf_mounts(MOUNTS)
            .map(|mount| (mount.source, mount.point.display().to_string()))
            .collect();
        assert_eq!(
            found,
            [
                ("ztunnel", "/sys/fs/bpf".to_owned()),
                ("bpf", "/run/a b".to_owned())
            ]
        );
        assert!(is_shared(MOUNTS, Path::new("/sys/fs/bpf")));
        for point in ["/run/a b", "/sys", "/elsewhere"] {
            assert!(!is_shared(MOUNTS, Path::new(point)), "{point}");
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn a_node_is_prepared_once_and_cleaned_up_when_no_pins_are_left() {
        let directory = std::env::temp_dir().join(format!("zt-prepare-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        // Whether the mount is visible elsewhere depends on where the test runs.
        mount_at(&directory).unwrap();
        assert_eq!(prepare_node(&directory).unwrap(), NodePreparation::Present);
        let pins = directory.join("proxy");
        for part in ["links", "netns"] {
            fs::create_dir_all(pins.join("v3").join(part)).unwrap();
        }
        fs::create_dir_all(directory.join("other/v3")).unwrap();
        let found = pin_directories();
        assert!(found.contains(&pins), "{found:?}");
        assert!(!found.contains(&directory.join("other")), "{found:?}");
        assert!(!unmount_prepared(&directory).unwrap(), "it has pins");
        fs::remove_dir_all(directory.join("other")).unwrap();
        fs::remove_dir_all(&pins).unwrap();
        assert!(unmount_prepared(&directory).unwrap());
        assert!(!unmount_prepared(&directory).unwrap(), "it is not mounted");
        fs::remove_dir(&directory).unwrap();
    }
}
