//! Network settings of the namespace that the calling thread is in.
//!
//! A container that is not privileged has /proc/sys read-only, though it may well enter the pods'
//! namespaces. A proc file system that is mounted nowhere has the same settings and is writable:
//! which namespace they are of is decided by the thread, not by the mount.

use std::io::{self, Write as _};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::Error;

/// Sets a switch, a path below /proc/sys, to 1.
///
/// # Errors
/// Names the key.
pub(super) fn turn_on(key: &'static str) -> Result<(), Error> {
    let usual = std::fs::write(format!("/proc/sys/{key}"), "1");
    let written = match usual {
        Err(error) if is_closed(&error) => elsewhere(key),
        usual => usual,
    };
    written.map_err(|source| Error::Sysctl { key, source })
}

/// Whether it is the mount that does not let us write.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    )
}

/// Writes by a proc file system that nobody else sees.
fn elsewhere(key: &str) -> io::Result<()> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let root = fsmount(&context, flags, MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    let open = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(&root, format!("sys/{key}"), open, Mode::empty())?;
    std::fs::File::from(file).write_all(b"1")
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
    fn a_container_with_a_closed_proc_sys_can_still_prepare_a_pod() {
        let alone = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            let bind = MsFlags::MS_BIND;
            mount(Some("/proc/sys"), "/proc/sys", none, bind, none).unwrap();
            let closed = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, "/proc/sys", none, closed, none).unwrap();
            let refused = std::fs::write(format!("/proc/sys/{KEY}"), "1");
            assert!(is_closed(&refused.unwrap_err()));
            assert_eq!(read(), "0\n");
            turn_on(KEY).unwrap();
            read()
        });
        assert_eq!(alone.join().unwrap(), "1\n");
        // Another namespace's is as it was.
        assert_eq!(read(), "0\n");
    }
}
