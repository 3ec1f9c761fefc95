//! Handshakes: rustls runs the protocol; this file moves the bytes and then extracts the traffic
//! keys.
//!
//! Records are passed to rustls one by one, so records after the handshake stay sealed for the
//! [`Stream`]. The client's last flight is not sent on its own: it is sent with the first bytes of
//! the application, or before the first read waits.

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
use super::keys::KeySchedule;
use super::outgoing::Outgoing;
use super::record::{Opener, Sealer};
use super::revocation::PeerChain;
use super::stream::{Negotiated, Stream};
use super::verify::{Trust, identity_of};
use mesh::Identity;

/// How long a refused peer may take to read the alert before the socket is closed.
const LINGER: Duration = Duration::from_millis(100);

/// Establishes a session with `credentials` to a server that must have one of the `expected`
/// identities.
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

/// Accepts a session with `credentials`. The client must present a certificate of the same trust
/// domain.
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

/// Starts a handshake. It is boxed outside of any async function, so that the caller's future,
/// which lives as long as its connection, does not contain a handshake.
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
        send_alert(&mut connection, &mut io, &mut flight, &error).await;
        return Err(Box::new(error));
    }
    let result = negotiated(connection.state(), role, &trust);
    let (keys, incoming, mut outgoing) = extract_keys(connection, &flight).map_err(Box::new)?;
    match result {
        Ok(negotiated) => Ok(Stream::new(io, keys, incoming, outgoing, negotiated)),
        Err(error) => {
            if outgoing.alert(alert_for(&error)).is_ok()
                && let Ok(alert) = outgoing.pending()
            {
                send_and_linger(&mut io, alert).await;
            }
            Err(Box::new(error))
        }
    }
}

/// The next action that rustls requires.
enum Step {
    Continue,
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
            Step::Continue => {}
            // The client's last flight is sent with the first bytes of the application.
            Step::Send if !connection.state().is_handshaking() => {}
            Step::Send => flight.send(io).await?,
            Step::Done => return Ok(()),
            Step::Read => {
                while !flight.show_next_record() {
                    flight.read(io, role).await?;
                }
            }
        }
    }
}

fn step<H: Handshake>(connection: &mut H, flight: &mut Flight) -> Result<Step, HandshakeError> {
    let mut received = std::mem::take(&mut flight.received);
    let UnbufferedStatus { discard, state } = connection.process(&mut received[..flight.visible]);
    let step = match state {
        Err(error) => Err(handshake_error(error)),
        Ok(ConnectionState::EncodeTlsData(message)) => {
            flight.encode(message).map(|()| Step::Continue)
        }
        Ok(ConnectionState::TransmitTlsData(message)) => {
            message.done();
            Ok(Step::Send)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Read),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Err(HandshakeError::Closed),
        Ok(_) => Err(HandshakeError::ProtocolViolation {
            why: "application data before the end of the handshake".into(),
        }),
    };
    flight.received = received;
    flight.discard(discard);
    match step {
        // rustls lets a server write before it has read the client's Finished. We wait for it.
        Ok(Step::Done) if connection.state().is_handshaking() => Ok(Step::Read),
        other => other,
    }
}

fn negotiated(
    state: &CommonState,
    role: Role,
    trust: &Trust,
) -> Result<Negotiated, HandshakeError> {
    if state.alpn_protocol() != Some(ALPN) {
        return Err(HandshakeError::NoAlpn);
    }
    let presented = state.peer_certificates();
    let (leaf, above) = presented
        .and_then(<[_]>::split_first)
        .ok_or(HandshakeError::NoCertificate)?;
    let peer = identity_of(leaf).map_err(|source| HandshakeError::Identity { source })?;
    // rustls does not expose the chain that the verifier found, so it is built again if revocation
    // lists are configured.
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
    Ok(Negotiated {
        peer,
        chain,
        cipher_suite: suite.unwrap_or("unknown"),
        key_exchange: group.unwrap_or("unknown"),
    })
}

fn extract_keys<H: Handshake>(
    connection: H,
    flight: &Flight,
) -> Result<(KeySchedule, Incoming, Outgoing), HandshakeError> {
    let limit = match connection.state().negotiated_cipher_suite() {
        Some(SupportedCipherSuite::Tls13(suite)) => suite.common.confidentiality_limit,
        _ => 0,
    };
    if flight.visible > 0 {
        return Err(HandshakeError::ProtocolViolation {
            why: "handshake bytes after its Finished".into(),
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
    let incoming = Incoming::new(opener, &flight.received).map_err(internal)?;
    let outgoing = Outgoing::new(sealer, limit, &flight.to_send).map_err(internal)?;
    Ok((keys, incoming, outgoing))
}

/// Sends the alert that rustls has queued for a refused peer.
async fn send_alert<H: Handshake, IO: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut H,
    io: &mut IO,
    flight: &mut Flight,
    error: &HandshakeError,
) {
    if matches!(error, HandshakeError::Io { .. } | HandshakeError::Closed) {
        return;
    }
    // rustls must not process the received bytes again: after an error its offsets no longer match
    // them, and it would panic.
    while connection.state().wants_write() {
        if !matches!(step(connection, flight), Ok(Step::Continue)) {
            break;
        }
    }
    if !flight.to_send.is_empty() {
        send_and_linger(io, &flight.to_send).await;
    }
}

/// Sends an alert, then reads and discards for a short time: closing a socket with unread bytes
/// resets the connection, and the peer may lose the alert.
async fn send_and_linger<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO, alert: &[u8]) {
    let closing = async {
        io.write_all(alert).await?;
        io.shutdown().await?;
        let mut discarded = [0; 1024];
        for _ in 0..64 {
            if io.read(&mut discarded).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // The caller reports the cause of the alert; an error while sending it adds nothing.
    let _best_effort = tokio::time::timeout(LINGER, closing).await;
}

/// The alert for an error that rustls did not detect.
const fn alert_for(error: &HandshakeError) -> AlertDescription {
    match error {
        HandshakeError::NoAlpn => AlertDescription::NoApplicationProtocol,
        HandshakeError::Revoked => AlertDescription::CertificateRevoked,
        _ => AlertDescription::BadCertificate,
    }
}

/// Classifies rustls's errors by the action that an operator can take.
fn handshake_error(error: rustls::Error) -> HandshakeError {
    match error {
        rustls::Error::InvalidCertificate(cause) => certificate_error(cause),
        rustls::Error::NoCertificatesPresented => HandshakeError::NoCertificate,
        rustls::Error::NoApplicationProtocol => HandshakeError::NoAlpn,
        rustls::Error::AlertReceived(alert) => HandshakeError::Rejected { alert },
        rustls::Error::PeerIncompatible(why) => HandshakeError::Incompatible {
            why: format!("{why:?}"),
        },
        error @ (rustls::Error::FailedToGetCurrentTime
        | rustls::Error::FailedToGetRandomBytes
        | rustls::Error::General(_)) => HandshakeError::Internal {
            why: error.to_string(),
        },
        other => HandshakeError::ProtocolViolation {
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
    fn process<'c, 'i>(
        &'c mut self,
        received: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn state(&self) -> &CommonState;
    fn finish(self) -> Result<(ExtractedSecrets, KeySchedule), rustls::Error>;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        received: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, KeySchedule), rustls::Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, KeySchedule::Client(Box::new(keys))))
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        received: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, KeySchedule), rustls::Error> {
        let (secrets, keys) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, KeySchedule::Server(Box::new(keys))))
    }
}

#[cfg(test)]
mod tests;
