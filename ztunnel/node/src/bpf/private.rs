//! The directory of the pins is for the proxy's user alone. Another user who could write to it could
//! replace pins or create the directory first; one who could open it could hold its locks, and no proxy
//! would take over any more. A BPF file system is writable for all users unless it is mounted with
//! another mode.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::Error;
use super::process_locks::failed;

const PRIVATE: u32 = 0o700;
/// The permissions of others to read and to write, and all permissions.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;
const ALL: u32 = 0o7777;

/// Creates a directory, with those above it, for this process's user alone. Does nothing if it exists.
pub(crate) fn create(path: &Path) -> Result<(), Error> {
    let created = DirBuilder::new().recursive(true).mode(PRIVATE).create(path);
    created.map_err(failed(path, "created"))
}

/// Creates a directory for this process's user alone, or checks the one that exists. One that only others
/// could read, as earlier versions have created it, is closed.
///
/// # Errors
/// When another user owns the directory or can write to it.
pub(super) fn ensure(path: &Path) -> Result<(), Error> {
    create(path)?;
    if check(path)? & OTHERS != 0 {
        let closed = fs::set_permissions(path, Permissions::from_mode(PRIVATE));
        closed.map_err(failed(path, "closed to other users"))?;
    }
    Ok(())
}

/// Checks that no other user can change a directory. Returns its mode.
///
/// # Errors
/// When another user owns the directory or can write to it.
pub(super) fn check(path: &Path) -> Result<u32, Error> {
    let found = fs::symlink_metadata(path).map_err(failed(path, "read"))?;
    let unsafe_because = |problem, remedy| Error::UnsafeDirectory {
        path: path.to_path_buf(),
        problem,
        remedy,
    };
    let shown = path.display();
    if !found.is_dir() {
        let problem = "it is not a directory".to_owned();
        return Err(unsafe_because(problem, format!("run `rm {shown}`")));
    }
    let own = nix::unistd::geteuid().as_raw();
    if found.uid() != own {
        let problem = format!("it belongs to the user {}", found.uid());
        let remedy = format!(
            "if a proxy of that user has run here, stop it; then run `rm -r {shown}`, which ends the \
             capture of its pods"
        );
        return Err(unsafe_because(problem, remedy));
    }
    let mode = found.mode() & ALL;
    if mode & OTHERS_WRITE != 0 {
        let problem = format!("other users can write to it (mode {mode:04o})");
        return Err(unsafe_because(problem, format!("run `chmod 0700 {shown}`")));
    }
    check_above(path, own)?;
    Ok(mode)
}

/// Checks that no other user can put another directory in its place.
fn check_above(path: &Path, own: u32) -> Result<(), Error> {
    const STICKY: u32 = 0o1000;
    for above in path.ancestors().skip(1).filter(|above| above.is_absolute()) {
        let found = fs::metadata(above).map_err(failed(above, "read"))?;
        let is_owned = [0, own].contains(&found.uid());
        let is_closed = found.mode() & OTHERS_WRITE == 0 || found.mode() & STICKY != 0;
        if !is_owned || !is_closed {
            return Err(Error::UnsafeDirectory {
                path: path.to_path_buf(),
                problem: format!(
                    "another user can replace it, because {} belongs to the user {} and has the mode \
                     {:04o}",
                    above.display(),
                    found.uid(),
                    found.mode() & ALL
                ),
                remedy: "name another directory in capture.bpfDirectory".to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;
    use std::path::PathBuf;

    use nix::mount::{MsFlags, mount};

    use super::super::PinDirectory;
    use super::super::pins::{self, Pins};
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & ALL
    }

    fn refused(directory: &Path) -> String {
        Pins::open(directory).unwrap_err().to_string()
    }

    /// A BPF file system as `mount -t bpf` makes it, and a directory of pins in it.
    fn file_system() -> (tempfile::TempDir, PathBuf) {
        let temporary = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        mount(
            Some("bpf"),
            temporary.path(),
            Some("bpf"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        let directory = temporary.path().join("ztunnel");
        (temporary, directory)
    }

    fn unmount(temporary: &tempfile::TempDir) {
        nix::mount::umount(temporary.path()).unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn pins_are_for_one_user() {
        let (temporary, directory) = file_system();
        let pins = Pins::open(&directory).unwrap();
        for path in [directory.clone(), pins.group("links"), pins.process_locks()] {
            assert_eq!(mode(&path), PRIVATE, "{}", path.display());
        }
        // As an earlier version has left it.
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        Pins::open(&directory).unwrap();
        assert_eq!(mode(&directory), PRIVATE);
        pins::remove_all(&directory).unwrap();
        unmount(&temporary);
    }

    #[test]
    #[ignore = "needs root"]
    fn a_directory_that_another_user_can_change_is_refused() {
        let (temporary, directory) = file_system();
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
        let error = refused(&directory);
        let remedy = format!("chmod 0700 {}", directory.display());
        assert!(
            error.contains("mode 0777") && error.contains(&remedy),
            "{error}"
        );

        fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        chown(&directory, Some(65534), None).unwrap();
        let error = refused(&directory);
        let remedy = format!("rm -r {}", directory.display());
        assert!(
            error.contains("the user 65534") && error.contains(&remedy),
            "{error}"
        );

        fs::remove_dir(&directory).unwrap();
        let below = temporary.path().join("team");
        fs::create_dir(&below).unwrap();
        chown(&below, Some(65534), None).unwrap();
        let error = refused(&below.join("ztunnel"));
        assert!(error.contains("another user can replace it"), "{error}");

        // The root of the file system, which all users can write to by default.
        let error = refused(temporary.path());
        assert!(error.contains("mode 1777"), "{error}");
        // The doctor says it, too.
        let told = PinDirectory::inspect(temporary.path()).unwrap_err();
        assert_eq!(told.to_string(), error);
        unmount(&temporary);
    }
}
