//! What this build is: the version, and the commit of its source where that is known.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit of the source, in an image that `cargo xtask image` has built.
pub const REVISION: Option<&str> = option_env!("ZTUNNEL_REVISION");

/// The version with the first digits of the commit as semver's build metadata: `0.1.0+1a2b3c4d5e6f`.
#[must_use]
pub fn version() -> String {
    with_revision(REVISION)
}

fn with_revision(revision: Option<&str>) -> String {
    /// As many digits as git shows in a large repository.
    const DIGITS: usize = 12;
    let Some(revision) = revision else {
        return VERSION.to_owned();
    };
    let (commit, modified) = match revision.strip_suffix("-modified") {
        Some(commit) => (commit, ".modified"),
        None => (revision, ""),
    };
    let commit = commit.get(..DIGITS).unwrap_or(commit);
    format!("{VERSION}+{commit}{modified}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_shortened_and_a_modified_source_is_marked() {
        assert_eq!(with_revision(None), VERSION);
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let clean = format!("{VERSION}+0123456789ab");
        assert_eq!(with_revision(Some(commit)), clean);
        let modified = format!("{commit}-modified");
        assert_eq!(with_revision(Some(&modified)), format!("{clean}.modified"));
        assert_eq!(with_revision(Some("unknown")), format!("{VERSION}+unknown"));
    }
}
