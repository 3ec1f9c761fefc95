//! Finds the cgroup that the programs are attached to: the highest one of the cgroup v2 hierarchy
//! that this process can see. The pods and the kubelet of the node are below it.
//!
//! On a host that is the hierarchy's root. In a node that is a container itself (kind, k3d,
//! minikube), it is the node's cgroup: the machine's root is not visible there, and must not be used,
//! because the other nodes of the machine are below it, too. A container that has a cgroup namespace
//! of its own sees only itself, unless the node's hierarchy is mounted into it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::Error;
use super::ip_netns::ip_netns_exec;

/// The cgroup whose sockets, and those of all cgroups below it, run the programs.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    /// Opens the configured cgroup, or the highest visible one. If the hierarchy is not mounted
    /// here, it is opened through a mount that only this process has.
    ///
    /// # Errors
    /// When no cgroup is visible that contains more than this container.
    pub(super) fn open(configured: Option<&Path>) -> Result<Self, Error> {
        if let Some(path) = configured {
            return Self::at(path.to_path_buf());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own_cgroup(&own);
        if let Some(path) = highest(&mounts, own, is_root) {
            return Self::at(path);
        }
        let none = || match ip_netns_exec() {
            Some(name) => Error::IpNetns { name },
            None => Error::NoCgroup,
        };
        if own.is_none_or(|own| own == "/") {
            return Err(none());
        }
        let directory = mount_privately().map_err(|_refused| none())?;
        Ok(Self {
            path: "/".into(),
            directory,
        })
    }

    fn at(path: PathBuf) -> Result<Self, Error> {
        match File::open(&path) {
            Ok(directory) if is_cgroup2(&directory) => Ok(Self { path, directory }),
            Ok(_) => Err(Error::NotCgroup {
                path,
                source: io::Error::from(io::ErrorKind::NotADirectory),
            }),
            Err(source) => Err(Error::NotCgroup { path, source }),
        }
    }

    /// The cgroup's directory as a path; `/` for the root of a private mount.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Those of these cgroups that are neither this one nor below it, by their ids.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub(super) fn outside(&self, ids: &BTreeSet<u64>) -> io::Result<BTreeSet<u64>> {
        let mut outside = ids.clone();
        if self.is_root() {
            outside.clear();
        } else {
            remove_ids(&self.by_descriptor(), &mut outside)?;
        }
        Ok(outside)
    }

    /// Whether it is the root of the machine's hierarchy.
    pub(super) fn is_root(&self) -> bool {
        is_root(&self.by_descriptor())
    }

    /// Its directory, also where the mount has no path.
    fn by_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    /// The cgroup's directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn is_cgroup2(directory: &File) -> bool {
    fstatfs(directory).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Only the machine's root has no `cgroup.events`.
fn is_root(path: &Path) -> bool {
    path.join("cgroup.procs").exists() && !path.join("cgroup.events").exists()
}

/// Removes the ids of a cgroup and of all below it. The id of a cgroup is the inode number of its
/// directory. A cgroup that disappears meanwhile is skipped.
fn remove_ids(directory: &Path, ids: &mut BTreeSet<u64>) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match fs::metadata(directory) {
        Ok(metadata) => drop(ids.remove(&metadata.ino())),
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    if ids.is_empty() {
        return Ok(());
    }
    let entries = match fs::read_dir(directory) {
        Err(error) if gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
            Ok((kind, path)) if kind.is_dir() => remove_ids(&path, ids)?,
            Err(error) if !gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Opens the root of the hierarchy, as far as the cgroup namespace shows it, without a mount point.
fn mount_privately() -> io::Result<File> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?.into())
}

/// The process's own cgroup relative to its cgroup namespace, from the text of /proc/self/cgroup;
/// none without cgroup v2.
fn own_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The mount point of the highest cgroup, from the text of /proc/self/mountinfo
/// (proc_pid_mountinfo(5)).
fn highest(mounts: &str, own: Option<&str>, is_root: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let visible: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).collect();
    let root = visible.iter().find(|mount| is_root(&mount.point));
    let highest = || {
        let contains_more = |mount: &&Mount<'_>| match mount.levels_up() {
            // The root of the cgroup namespace. In a container with a namespace of its own that is
            // the container's cgroup.
            Some(0) => own.is_some_and(|own| own != "/"),
            Some(_) => true,
            None => false,
        };
        let candidates = visible.iter().filter(contains_more);
        candidates.max_by_key(|mount| mount.levels_up())
    };
    let found = root.or_else(highest)?;
    Some(found.point.clone())
}

/// A mount of the cgroup v2 hierarchy.
struct Mount<'a> {
    /// The cgroup at its root, relative to the reader's cgroup namespace: `/..` is the parent of the
    /// namespace's root.
    root: &'a str,
    point: PathBuf,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        filesystem.starts_with("cgroup2 ").then(|| Self {
            root,
            point: PathBuf::from(point.replace("\\040", " ")),
        })
    }

    /// How many levels above the root of the cgroup namespace the mount begins; none if it begins
    /// below or beside it.
    fn levels_up(&self) -> Option<usize> {
        let mut levels = self.root.split('/').filter(|level| !level.is_empty());
        levels.try_fold(0, |up, level| (level == "..").then_some(up + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_SYSTEM_SLICE: Option<&str> = Some("/system.slice/a.service");
    const OWN_NAMESPACE: Option<&str> = Some("/");

    fn mount(root: &str, point: &str) -> String {
        format!("31 25 0:28 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n")
    }

    fn found(mounts: &str, own: Option<&str>) -> Option<PathBuf> {
        highest(mounts, own, |_| false)
    }

    #[test]
    fn the_root_of_the_hierarchy_is_found_wherever_it_is_mounted() {
        let v1 = "30 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n".to_owned();
        for place in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/run/a\\040b"] {
            let mounts = v1.clone() + &mount("/../x", "/other") + &mount("/", place);
            let place = place.replace("\\040", " ");
            let is_root = |path: &Path| path == Path::new(&place);
            let found = highest(&mounts, OWN_NAMESPACE, is_root);
            assert_eq!(found, Some(place.clone().into()));
        }
        assert_eq!(highest(&v1, IN_SYSTEM_SLICE, |_| true), None);
    }

    #[test]
    fn in_a_node_that_is_a_container_the_nodes_cgroup_is_used() {
        // A pod with the node's hierarchy mounted, beside its own.
        let mounts = mount("/", "/sys/fs/cgroup") + &mount("/../../../..", "/host/cgroup");
        let mounts = mounts + &mount("/../..", "/pods");
        assert_eq!(
            found(&mounts, OWN_NAMESPACE),
            Some("/host/cgroup".into()),
            "the highest one"
        );
        // A process of the node itself, or a pod that has the node's cgroup namespace.
        let unified = mount("/", "/sys/fs/cgroup/unified");
        assert_eq!(
            found(&unified, IN_SYSTEM_SLICE),
            Some("/sys/fs/cgroup/unified".into())
        );
    }

    #[test]
    fn a_container_that_sees_only_itself_has_no_usable_cgroup() {
        let own = mount("/", "/sys/fs/cgroup");
        assert_eq!(found(&own, OWN_NAMESPACE), None);
        for beside in ["/../other", "/a", "/../../b/c"] {
            assert_eq!(found(&mount(beside, "/x"), OWN_NAMESPACE), None, "{beside}");
        }
    }

    #[test]
    fn the_own_cgroup_is_that_of_the_second_version() {
        let hybrid = "2:cpu:/a\n1:name=systemd:/b\n0::/c\n";
        assert_eq!(own_cgroup(hybrid), Some("/c"));
        assert_eq!(own_cgroup("1:name=systemd:/b\n"), None);
    }

    #[test]
    #[ignore = "needs root"]
    fn cgroups_that_the_programs_do_not_cover_are_found() {
        let root = Cgroup::open(None).unwrap();
        let name = format!("zt{}", std::process::id());
        let [inside, below, beside] =
            ["/in", "/in/below", "/beside"].map(|place| root.path().join(format!("{name}{place}")));
        let made = [&inside, &below, &beside].map(|path| {
            fs::create_dir_all(path).unwrap();
            fs::metadata(path).unwrap().ino()
        });
        let cgroup = Cgroup::at(inside.clone()).unwrap();
        let unknown = made[2] + 1_000_000;
        let ids = made.into_iter().chain([unknown]).collect();
        let outside = cgroup.outside(&ids);
        let of_root = root.outside(&ids);
        for path in [&below, &inside, &beside, &root.path().join(&name)] {
            fs::remove_dir(path).unwrap();
        }
        assert_eq!(outside.unwrap(), BTreeSet::from([made[2], unknown]));
        if is_root(root.path()) {
            // Every process of the machine is below it.
            assert_eq!(of_root.unwrap(), BTreeSet::new());
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn without_a_mount_the_hierarchy_is_mounted_privately() {
        let private = mount_privately().unwrap();
        assert!(is_cgroup2(&private));
        let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let of_all = own.lines().filter_map(Mount::parse).count();
        drop(private);
        let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(after.lines().filter_map(Mount::parse).count(), of_all);
    }
}
