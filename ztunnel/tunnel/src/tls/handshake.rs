//! Handshakes: rustls runs the protocol; this file moves the bytes and then takes over the traffic
//! keys.
//!
//! Records are passed to rustls one by one, so bytes behind the last handshake record stay sealed
//! and go to the [`Stream`]. The client's last flight is not sent on its own: it leaves with the
//! first bytes of the application, or before the first read waits.

mod flight;

use std::time::Duration;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{
    AlertDescription, CertificateError, CommonState, ExtractedSecrets, SupportedCipherSuite,
};
use rustls_pki_types::{IpAddr, Ipv4Addr, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use webpki::KeyUsage;

use self::flight::Flight;
use super::credentials::{ALPN, Credentials};
use super::error::{Error, HandshakeError, IdentityRefusal, RecordError, Role};
use super::incoming::Incoming;
use super::keys::Keys;
use super::outgoing::Outgoing;
use super::record::{Opener, Sealer};
use super::revocation::PeerChain;
use super::stream::{Agreement, Stream};
use super::verify::{Trust, identity_of};
use mesh::Identity;

/// How long a refused peer may take to read the alert before the socket is closed.
const LINGER: Duration = Duration::from_millis(100);

/// Opens a session with `credentials` to a server that must have one of the `expected` identities.
///
/// Needs a tokio runtime with a timer. The caller bounds the time.
///
/// # Errors
/// [`Error::Handshake`]. When a server refuses our certificate, only the first read returns the
/// error: [`RecordError::Rejected`].
pub async fn connect<IO>(
    io: IO,
    credentials: &Credentials,
    expected: &[Identity],
) -> Result<Stream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // An IP address as the name, so that no SNI is sent; the verifier ignores the name.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1])));
    let connection = UnbufferedClientConnection::new(credentials.client(expected), name);
    run(connection, io, Role::Client, credentials.trust()).await
}

/// Accepts a session with `credentials`; the client must present a certificate of the mesh.
///
/// Needs a tokio runtime with a timer. The caller bounds the time.
///
/// # Errors
/// [`Error::Handshake`].
pub async fn accept<IO>(io: IO, credentials: &Credentials) -> Result<Stream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let connection = UnbufferedServerConnection::new(credentials.server().clone());
    run(connection, io, Role::Server, credentials.trust()).await
}

/// Starts a handshake. Boxed, and created outside of any async function: the caller's task lives as
/// long as its connection and should not have the size of a handshake.
fn run<H: Handshake, IO: AsyncRead + AsyncWrite + Unpin>(
    connection: Result<H, rustls::Error>,
    io: IO,
    role: Role,
    trust: &Trust,
) -> impl Future<Output = Result<Stream<IO>, Error>> + use<H, IO> {
    let trust = trust.clone();
    let handshake = connection.map(|connection| Box::pin(establish(connection, io, role, trust)));
    async move {
        let established = match handshake {
            Ok(handshake) => handshake.await,
            Err(error) => Err(Box::new(HandshakeError::Internal {
                why: error.to_string(),
            })),
        };
        established.map_err(|cause| Error::Handshake { role, cause })
    }
}

async fn establish<H: Handshake, IO: AsyncRead + AsyncWrite + Unpin>(
    mut connection: H,
    mut io: IO,
    role: Role,
    trust: Trust,
) -> Result<Stream<IO>, Box<HandshakeError>> {
    let mut flight = Flight::default();
    if let Err(error) = drive(&mut connection, &mut io, &mut flight, role).await {
        part(&mut connection, &mut io, &mut flight, &error).await;
        return Err(Box::new(error));
    }
    let agreed = agreement(connection.state(), role, &trust);
    let (keys, incoming, mut outgoing) = take_over(connection, &flight).map_err(Box::new)?;
    match agreed {
        Ok(agreed) => Ok(Stream::new(io, keys, incoming, outgoing, agreed)),
        Err(error) => {
            if outgoing.alert(alert_about(&error)).is_ok()
                && let Ok(alert) = outgoing.pending()
            {
                farewell(&mut io, alert).await;
            }
            Err(Box::new(error))
        }
    }
}

/// The next action that rustls requires.
enum Step {
    Again,
    Send,
    Read,
    Done,
}

async fn drive<H: Handshake, IO: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut H,
    io: &mut IO,
    flight: &mut Flight,
    role: Role,
) -> Result<(), HandshakeError> {
    loop {
        match step(connection, flight)? {
            Step::Again => {}
            // The client's last flight waits for the first bytes of the application.
            Step::Send if !connection.state().is_handshaking() => {}
            Step::Send => flight.send(io).await?,
            Step::Done => return Ok(()),
            Step::Read => {
                while !flight.show_record() {
                    flight.read(io, role).await?;
                }
            }
        }
    }
}

fn step<H: Handshake>(connection: &mut H, flight: &mut Flight) -> Result<Step, HandshakeError> {
    let mut arrived = std::mem::take(&mut flight.arrived);
    let UnbufferedStatus { discard, state } = connection.process(&mut arrived[..flight.shown]);
    let step = match state {
        Err(error) => Err(handshake_error(error)),
        Ok(ConnectionState::EncodeTlsData(message)) => flight.encode(message).map(|()| Step::Again),
        Ok(ConnectionState::TransmitTlsData(message)) => {
            message.done();
            Ok(Step::Send)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Read),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(HandshakeError::Closed),
        Ok(_) => Err(HandshakeError::Misbehaved {
            why: "data before the handshake's end".into(),
        }),
    };
    flight.arrived = arrived;
    flight.discard(discard);
    match step {
        // A server may write before it has read the client's Finished; those bytes wait here.
        Ok(Step::Done) if connection.state().is_handshaking() => Ok(Step::Read),
        other => other,
    }
}

fn agreement(state: &CommonState, role: Role, trust: &Trust) -> Result<Agreement, HandshakeError> {
    if state.alpn_protocol() != Some(ALPN) {
        return Err(HandshakeError::NoHbone);
    }
    let presented = state.peer_certificates();
    let (leaf, above) = presented
        .and_then(<[_]>::split_first)
        .ok_or(HandshakeError::NoCertificate)?;
    let peer = identity_of(leaf).map_err(|source| HandshakeError::Identity { source })?;
    // rustls does not expose the chain that the verifier found, so it is built again, but only
    // where revocation lists are configured.
    let chain = if trust.revocations.are_configured() {
        let usage = match role {
            Role::Client => KeyUsage::server_auth(),
            Role::Server => KeyUsage::client_auth(),
        };
        let checked = trust.check(leaf, above, UnixTime::now(), usage);
        checked.map_err(handshake_error)?
    } else {
        PeerChain::default()
    };
    let suite = state
        .negotiated_cipher_suite()
        .and_then(|suite| suite.suite().as_str());
    let group = state
        .negotiated_key_exchange_group()
        .and_then(|group| group.name().as_str());
    Ok(Agreement {
        peer,
        chain,
        cipher_suite: suite.unwrap_or("unknown"),
        key_exchange: group.unwrap_or("unknown"),
    })
}

fn take_over<H: Handshake>(
    connection: H,
    flight: &Flight,
) -> Result<(Keys, Incoming, Outgoing), HandshakeError> {
    let limit = match connection.state().negotiated_cipher_suite() {
        Some(SupportedCipherSuite::Tls13(suite)) => suite.common.confidentiality_limit,
        _ => 0,
    };
    if flight.shown > 0 {
        return Err(HandshakeError::Misbehaved {
            why: "bytes behind its Finished".into(),
        });
    }
    let internal = |error: RecordError| HandshakeError::Internal {
        why: error.to_string(),
    };
    let (secrets, keys) = connection
        .finish()
        .map_err(|error| HandshakeError::Internal {
            why: error.to_string(),
        })?;
    let (sequence, receiving) = secrets.rx;
    let opener = Opener::new(sequence, receiving).map_err(internal)?;
    let (sequence, sending) = secrets.tx;
    let sealer = Sealer::new(sequence, sending).map_err(internal)?;
    let incoming = Incoming::new(opener, &flight.arrived).map_err(internal)?;
    Ok((
        keys,
        incoming,
        Outgoing::new(sealer, limit, &flight.leaving),
    ))
}

/// Sends the alert to a refused peer, as far as the peer reads it.
async fn part<H: Handshake, IO: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut H,
    io: &mut IO,
    flight: &mut Flight,
    error: &HandshakeError,
) {
    if matches!(error, HandshakeError::Io { .. } | HandshakeError::Closed) {
        return;
    }
    // rustls has queued the alert. It must not process the received bytes again: after an error its
    // offsets no longer match them, and it would panic.
    while connection.state().wants_write() {
        if !matches!(step(connection, flight), Ok(Step::Again)) {
            break;
        }
    }
    if !flight.leaving.is_empty() {
        farewell(io, &flight.leaving).await;
    }
}

/// Sends an alert and waits briefly for the peer to read it: closing with unread bytes would reset
/// the connection and discard the alert.
async fn farewell<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO, alert: &[u8]) {
    let said = async {
        io.write_all(alert).await?;
        io.shutdown().await?;
        let mut left = [0; 1024];
        for _ in 0..64 {
            if io.read(&mut left).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // The caller reports the error that led here; an error of the alert adds nothing.
    let _best_effort = tokio::time::timeout(LINGER, said).await;
}

/// The alert for an error that rustls did not detect.
const fn alert_about(error: &HandshakeError) -> AlertDescription {
    match error {
        HandshakeError::NoHbone => AlertDescription::NoApplicationProtocol,
        HandshakeError::Revoked => AlertDescription::CertificateRevoked,
        _ => AlertDescription::BadCertificate,
    }
}

/// Sorts rustls's errors by the action that an operator can take.
fn handshake_error(error: rustls::Error) -> HandshakeError {
    match error {
        rustls::Error::InvalidCertificate(cause) => certificate_error(cause),
        rustls::Error::NoCertificatesPresented => HandshakeError::NoCertificate,
        rustls::Error::NoApplicationProtocol => HandshakeError::NoHbone,
        rustls::Error::AlertReceived(alert) => HandshakeError::Refused { alert },
        rustls::Error::PeerIncompatible(why) => HandshakeError::Incompatible {
            why: format!("{why:?}"),
        },
        error @ (rustls::Error::FailedToGetCurrentTime
        | rustls::Error::FailedToGetRandomBytes
        | rustls::Error::General(_)) => HandshakeError::Internal {
            why: error.to_string(),
        },
        other => HandshakeError::Misbehaved {
            why: other.to_string(),
        },
    }
}

fn certificate_error(cause: CertificateError) -> HandshakeError {
    let why = cause.to_string();
    match cause {
        CertificateError::UnknownIssuer => HandshakeError::UnknownIssuer,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => HandshakeError::NotValidNow { why },
        CertificateError::Revoked => HandshakeError::Revoked,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            HandshakeError::WrongPurpose { why }
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<IdentityRefusal>() {
            Some(refusal) => HandshakeError::Identity {
                source: refusal.clone(),
            },
            None => HandshakeError::BadCertificate { why },
        },
        _ => HandshakeError::BadCertificate { why },
    }
}

/// The common interface of the client's and the server's connection.
trait Handshake {
    type Data;
    fn process<'c, 'i>(&'c mut self, arrived: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn state(&self) -> &CommonState;
    fn finish(self) -> Result<(ExtractedSecrets, Keys), rustls::Error>;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        arrived: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(arrived)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Client(Box::new(keys))))
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        arrived: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(arrived)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Server(Box::new(keys))))
    }
}

#[cfg(test)]
mod tests;
