//! The door for the fuzz targets: the answer to a request, checked as a peer would.

use rcgen::KeyPair;

use super::answer;
use mesh::Identity;
use tunnel::tls::{IssueError, Issued};

/// Reads the chain that was answered to a request for `key`.
///
/// # Errors
/// When it cannot be used.
pub fn answered(
    texts: &[String],
    key: &KeyPair,
    identity: &Identity,
) -> Result<Issued, IssueError> {
    answer::read(texts, key, identity)
}
