//! Refusals of the control plane, sorted by what an operator can do.

use tonic::{Code, Status};

use super::answer::LIMIT;
use super::channel::text;
use super::{Config, Root};
use tunnel::tls::IssueError;

/// As much of what the other end says is told.
const SAID: usize = 512;

pub(super) fn sort(status: &Status, config: &Config) -> IssueError {
    let issuer = config.address.clone();
    let (code, said) = (status.code(), said(status));
    match code {
        Code::Unauthenticated => IssueError::Refused {
            issuer,
            why: format!("{said} ({code:?}): {}", about_the_token(config)),
        },
        Code::PermissionDenied => IssueError::Refused {
            issuer,
            why: format!(
                "{said} ({code:?}): a node may ask only for workloads that run on it, with a token \
                 that the control plane trusts; {}",
                about_the_token(config)
            ),
        },
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unimplemented => IssueError::Refused {
            issuer,
            why: format!("{said} ({code:?})"),
        },
        // Ours: the codec's limit.
        Code::OutOfRange => IssueError::Unusable {
            why: format!("the answer is not within {LIMIT} bytes: {said}"),
        },
        _ => IssueError::Unavailable {
            issuer,
            why: format!("{said} ({code:?}){}", about_the_root(&said, config)),
        },
    }
}

/// What the other end, or the transport, says: on one line and not too long.
fn said(status: &Status) -> String {
    let message = status.message();
    let whole = match std::error::Error::source(status).map(text) {
        Some(causes) if causes.contains(message) => causes,
        Some(causes) => format!("{message}: {causes}"),
        None => message.to_owned(),
    };
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = whole.chars().take(SAID).map(visible).collect();
    if line.is_empty() {
        return "no reason given".to_owned();
    }
    line
}

fn about_the_token(config: &Config) -> String {
    match &config.token {
        Some(path) => format!(
            "is the token in {} expired, or of another cluster or audience?",
            path.display()
        ),
        None => "no token is configured".to_owned(),
    }
}

/// rustls's words for a server certificate that is not accepted.
fn about_the_root(said: &str, config: &Config) -> String {
    if !said.contains("invalid peer certificate") {
        return String::new();
    }
    match &config.root {
        Root::File(path) => format!("; it is verified with the roots in {}", path.display()),
        Root::System => "; it is verified with the system's roots".to_owned(),
    }
}
