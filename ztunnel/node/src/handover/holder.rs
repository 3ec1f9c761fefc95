//! Which process holds a lock: for the log, when a proxy waits for another one.

use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::stat::{major, minor};

/// The process that holds the `flock(2)` on a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A process of this pid namespace.
    Process {
        id: u32,
        name: String,
        /// Its effective user, if it is known.
        user: Option<u32>,
    },
    /// None that is visible here: `/proc/locks` has the processes of this pid namespace.
    Unknown,
}

impl Holder {
    /// Who holds the lock on the file at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let found = || {
            let locks = fs::read_to_string("/proc/locks").ok()?;
            let process = process_in(&locks, &fs::metadata(path).ok()?)?;
            let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
            let user = fs::metadata(format!("/proc/{process}")).ok();
            Some(Self::Process {
                id: process,
                name: name.trim_end().to_owned(),
                user: user.map(|directory| directory.uid()),
            })
        };
        found().unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process {
                id,
                name,
                user: Some(user),
            } => write!(f, "process {id} ({name}, user {user})"),
            Self::Process { id, name, .. } => write!(f, "process {id} ({name})"),
            Self::Unknown => f.write_str("not visible here (in another container, or just ended)"),
        }
    }
}

/// The process in the text of `/proc/locks` (proc(5)) that holds a lock on a file: a line has its number,
/// the kind, the mode, the access, the process, and the file as `major:minor:inode`. A line of a process
/// that waits has `->` before the kind.
fn process_in(locks: &str, file: &Metadata) -> Option<u32> {
    let (major, minor) = (major(file.dev()), minor(file.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", file.ino());
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, process, of, ..] if of == file => process.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Holder::of(directory.path()), Holder::Unknown);
        let lock = File::open(directory.path()).unwrap();
        lock.lock().unwrap();
        let holder = Holder::of(directory.path());
        let id = std::process::id();
        assert!(
            matches!(&holder, Holder::Process { id: found, .. } if *found == id),
            "{holder}"
        );
        let user = nix::unistd::geteuid();
        let text = holder.to_string();
        assert!(text.starts_with(&format!("process {id} (")), "{text}");
        assert!(text.ends_with(&format!(", user {user})")), "{text}");
        drop(lock);
        assert_eq!(Holder::of(directory.path()), Holder::Unknown);
    }

    #[test]
    fn processes_that_wait_are_no_holders() {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::metadata(directory.path()).unwrap();
        let of = format!(
            "{:02x}:{:02x}:{}",
            major(file.dev()),
            minor(file.dev()),
            file.ino()
        );
        let locks = format!(
            "1: POSIX  ADVISORY  WRITE 5 {of} 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 6 {of} 0 EOF\n\
             3: FLOCK  ADVISORY  READ  7 {of} 0 EOF\n4: FLOCK\n"
        );
        assert_eq!(process_in(&locks, &file), Some(7));
        assert_eq!(process_in("", &file), None);
    }
}
