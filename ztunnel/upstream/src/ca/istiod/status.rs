//! Classifies refusals of the control plane by what an operator can do.

use tonic::{Code, Status};

use super::answer::LIMIT;
use super::channel::with_causes;
use super::{Config, Root};
use tunnel::tls::IssueError;

/// The largest number of characters of the control plane's message in an error.
const MESSAGE_LIMIT: usize = 512;

pub(super) fn classify(status: &Status, config: &Config) -> IssueError {
    let issuer = config.address.clone();
    let (code, message) = (status.code(), message_of(status));
    match code {
        Code::Unauthenticated => IssueError::Refused {
            issuer,
            why: format!("{message} ({code:?}): {}", token_hint(config)),
        },
        Code::PermissionDenied => IssueError::Refused {
            issuer,
            why: format!(
                "{message} ({code:?}): a node may request certificates only for workloads that run \
                 on it, with a token that the control plane trusts; {}",
                token_hint(config)
            ),
        },
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unimplemented => IssueError::Refused {
            issuer,
            why: format!("{message} ({code:?})"),
        },
        // The limit of the local codec.
        Code::OutOfRange => IssueError::Unusable {
            why: format!("the answer is larger than {LIMIT} bytes: {message}"),
        },
        _ => IssueError::Unavailable {
            issuer,
            why: format!("{message} ({code:?}){}", root_hint(&message, config)),
        },
    }
}

/// The message of the control plane or of the transport, on one line and truncated.
fn message_of(status: &Status) -> String {
    let message = status.message();
    let whole = match std::error::Error::source(status).map(with_causes) {
        Some(causes) if causes.contains(message) => causes,
        Some(causes) => format!("{message}: {causes}"),
        None => message.to_owned(),
    };
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = whole.chars().take(MESSAGE_LIMIT).map(visible).collect();
    if line.is_empty() {
        return "the control plane gave no reason".to_owned();
    }
    line
}

fn token_hint(config: &Config) -> String {
    match &config.token {
        Some(path) => format!(
            "check that the token in {} has not expired and is for this cluster and audience",
            path.display()
        ),
        None => "no token is configured".to_owned(),
    }
}

/// The roots in use, if rustls did not accept the server's certificate.
fn root_hint(message: &str, config: &Config) -> String {
    if !message.contains("invalid peer certificate") {
        return String::new();
    }
    match &config.root {
        Root::File(path) => format!("; it is verified with the roots in {}", path.display()),
        Root::System => "; it is verified with the roots of the system".to_owned(),
    }
}
