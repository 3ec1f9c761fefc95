//! Network sysctls of the calling thread's network namespace.
//!
//! In an unprivileged container /proc/sys is read-only, even if the container may enter the pods'
//! namespaces. A new proc file system that is not mounted anywhere has the same sysctls and is
//! writable: the thread, not the mount, decides which namespace they belong to.

use std::io::{self, Write as _};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::Error;

/// Sets a sysctl, given as a path below /proc/sys, to 1.
///
/// # Errors
/// When it cannot be written; the error names the key.
pub(super) fn enable(key: &'static str) -> Result<(), Error> {
    write(key, b"1").map_err(|source| Error::Sysctl { key, source })
}

/// Sets a sysctl to 0 if this kernel has it.
///
/// # Errors
/// As [`enable`].
pub(super) fn disable(key: &'static str) -> Result<(), Error> {
    match write(key, b"0") {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Sysctl { key, source })
        }
        _ => Ok(()),
    }
}

fn write(key: &str, value: &[u8]) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/{key}"), value) {
        Err(error) if is_read_only(&error) => write_through_new_proc(key, value),
        written => written,
    }
}

/// Whether the mount, not the sysctl itself, refuses the write.
fn is_read_only(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    )
}

/// Writes through a new proc file system that is not mounted anywhere.
fn write_through_new_proc(key: &str, value: &[u8]) -> io::Result<()> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let root = fsmount(&context, flags, MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    let open = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(&root, format!("sys/{key}"), open, Mode::empty())?;
    std::fs::File::from(file).write_all(value)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const KEY: &str = "net/ipv4/tcp_fwmark_accept";

    fn read() -> String {
        std::fs::read_to_string(format!("/proc/sys/{KEY}")).unwrap()
    }

    #[test]
    #[ignore = "needs root"]
    fn a_container_with_a_read_only_proc_sys_can_prepare_a_pod() {
        let isolated = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            let bind = MsFlags::MS_BIND;
            mount(Some("/proc/sys"), "/proc/sys", none, bind, none).unwrap();
            let read_only = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, "/proc/sys", none, read_only, none).unwrap();
            let refused = std::fs::write(format!("/proc/sys/{KEY}"), "1");
            assert!(is_read_only(&refused.unwrap_err()));
            assert_eq!(read(), "0\n");
            enable(KEY).unwrap();
            read()
        });
        assert_eq!(isolated.join().unwrap(), "1\n");
        // The sysctl of another namespace is unchanged.
        assert_eq!(read(), "0\n");
    }
}
