//! The record layer of an accepted session against a simple peer. The session reads exactly the
//! data that the peer has sent, however the bytes arrive. A peer that violates the protocol ends
//! the session, and no data is read that was not sent.
//!
//! Each run starts with a handshake: rustls is the client and exports its keys.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use arbitrary::Arbitrary;
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use mesh::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::kernel::KernelConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, ConnectionTrafficSecrets, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tunnel::tls::{Credentials, Issued, Revocations, Stream, accept};
use ztunnel_fuzz::fuzz_target;

const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const SERVER_NAME: &str = "server";
const SERVER_IDENTITY: &str = "spiffe://td/ns/a/sa/b";
/// The longest content of a record, with its padding (RFC 8446, section 5.4).
const MAX_CONTENT: usize = 16384;
/// The largest number of consecutive records without data that the receiver accepts.
const MAX_FRUITLESS: u8 = 32;

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// A valid data record with padding.
    Data { length: u16, padding: u8 },
    /// A key update, which may request another one.
    KeyUpdate { request: bool },
    /// The end of the peer's data.
    CloseNotify,
    /// A sealed record of any type with any content.
    Sealed(u8, &'a [u8]),
    /// Bytes that are not a sealed record.
    Raw(&'a [u8]),
    /// A valid record with one changed byte.
    Damaged { at: u8, with: u8 },
    /// This many of the sent bytes arrive and are read.
    Arrive(u16),
    /// All bytes arrive and are read into a buffer of this size.
    Read(u16),
}

/// The server's end of a connection.
#[derive(Clone, Default)]
struct Socket(Rc<RefCell<Pipes>>);

#[derive(Default)]
struct Pipes {
    to_server: VecDeque<u8>,
    to_client: Vec<u8>,
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let arrived = &mut self.0.borrow_mut().to_server;
        if arrived.is_empty() {
            return Poll::Pending;
        }
        let (front, _) = arrived.as_slices();
        let count = front.len().min(out.remaining());
        out.put_slice(&front[..count]);
        arrived.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().to_client.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The configuration of both ends for a handshake.
struct Ends {
    server: Credentials,
    client: Arc<ClientConfig>,
}

static ENDS: LazyLock<Ends> = LazyLock::new(|| {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = key();
    let root = params.self_signed(&root_key).unwrap().der().clone();
    let authority = Issuer::new(params, root_key);
    let issue = |uri: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::URI(uri.try_into().unwrap()),
            SanType::DnsName(SERVER_NAME.try_into().unwrap()),
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = key();
        let certificate = params.signed_by(&key, &authority).unwrap();
        Issued {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![root.clone()],
        }
    };
    let identity: Identity = SERVER_IDENTITY.parse().unwrap();
    let server =
        Credentials::new(&identity, issue(SERVER_IDENTITY), &Revocations::default()).unwrap();
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![kx_group::X25519];
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let own = issue("spiffe://td/ns/a/sa/a");
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(own.chain, own.key)
        .unwrap();
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.enable_secret_extraction = true;
    client.resumption = rustls::client::Resumption::disabled();
    Ends {
        server,
        client: Arc::new(client),
    }
});

/// The client after the handshake. It encrypts records as in RFC 8446, section 5.2.
struct Peer {
    schedule: KernelConnection<ClientConnectionData>,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Peer {
    fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = content.to_vec();
        inner.push(kind);
        inner.resize(inner.len() + padding, 0);
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [DATA, 3, 3, length[0], length[1]];
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let key = &self.key;
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner)
            .unwrap();
        [&header[..], &inner].concat()
    }

    /// Switches to the next key.
    fn update_key(&mut self) {
        let (sequence, secrets) = self.schedule.update_tx_secret().unwrap();
        (self.key, self.iv) = cipher(&secrets);
        self.sequence = sequence;
    }
}

fn cipher(secrets: &ConnectionTrafficSecrets) -> (LessSafeKey, [u8; 12]) {
    let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
        panic!("the client offers AES-128-GCM only");
    };
    let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap();
    (LessSafeKey::new(key), iv.as_ref().try_into().unwrap())
}

/// Runs a handshake. Returns the session and its peer.
fn connect(socket: &Socket) -> (Stream<Socket>, Peer) {
    let name = SERVER_NAME.try_into().unwrap();
    let mut client = UnbufferedClientConnection::new(ENDS.client.clone(), name).unwrap();
    let mut accepting = pin!(accept(socket.clone(), &ENDS.server));
    let mut context = Context::from_waker(Waker::noop());
    let mut received = Vec::new();
    let stream = loop {
        let UnbufferedStatus { discard, state, .. } = client.process_tls_records(&mut received);
        match state.unwrap() {
            ConnectionState::EncodeTlsData(mut data) => {
                let mut record = vec![0; MAX_CONTENT];
                let length = data.encode(&mut record).unwrap();
                let to_server = &mut socket.0.borrow_mut().to_server;
                to_server.extend(&record[..length]);
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::BlockedHandshake => {
                assert!(accepting.as_mut().poll(&mut context).is_pending());
                received.append(&mut socket.0.borrow_mut().to_client);
            }
            ConnectionState::WriteTraffic(_) => match accepting.as_mut().poll(&mut context) {
                Poll::Ready(stream) => break stream.unwrap(),
                Poll::Pending => panic!("the handshake is not complete"),
            },
            state => panic!("unexpected state of the client: {state:?}"),
        }
        received.drain(..discard);
    };
    let (secrets, schedule) = client.dangerous_into_kernel_connection().unwrap();
    let (sequence, secrets) = secrets.tx;
    let (key, iv) = cipher(&secrets);
    let peer = Peer {
        schedule,
        key,
        iv,
        sequence,
    };
    (stream, peer)
}

struct Session {
    stream: Stream<Socket>,
    socket: Socket,
    /// Bytes that were sent and have not arrived.
    sent: VecDeque<u8>,
    read: Vec<u8>,
    over: bool,
}

impl Session {
    /// Lets bytes arrive and reads into a buffer of `size` until the session needs more bytes.
    fn read(&mut self, arriving: usize, size: usize) {
        let count = arriving.min(self.sent.len());
        let arrived = self.sent.drain(..count);
        self.socket.0.borrow_mut().to_server.extend(arrived);
        // A small buffer needs too many reads for many bytes.
        let mut memory = vec![0; size.max(1 + count / 1024)];
        let mut context = Context::from_waker(Waker::noop());
        while !self.over {
            let mut out = ReadBuf::new(&mut memory);
            match Pin::new(&mut self.stream).poll_read(&mut context, &mut out) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => self.over = true,
                Poll::Ready(Ok(())) if out.filled().is_empty() => self.over = true,
                Poll::Ready(Ok(())) => self.read.extend_from_slice(out.filled()),
            }
        }
    }
}

/// The data that the receiver may read, and the part that it must read.
#[derive(Default)]
struct Model {
    /// The content of all data records.
    data: Vec<u8>,
    /// Consecutive records without data.
    fruitless: u8,
    /// Whether the peer has violated the protocol or closed, so that not all data has to be read.
    ended: bool,
}

impl Model {
    /// A record without data is empty.
    fn record(&mut self, data: &[u8]) {
        self.data.extend_from_slice(data);
        self.fruitless = match data {
            [] => self.fruitless.saturating_add(1),
            _ => 0,
        };
        self.ended |= self.fruitless > MAX_FRUITLESS;
    }
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let socket = Socket::default();
    let (stream, mut peer) = connect(&socket);
    let mut session = Session {
        stream,
        socket,
        sent: VecDeque::new(),
        read: Vec::new(),
        over: false,
    };
    let mut model = Model::default();
    for step in steps {
        run(step, &mut peer, &mut session, &mut model);
        assert!(model.data.starts_with(&session.read));
    }
    session.read(usize::MAX, 1 << 14);
    assert!(model.data.starts_with(&session.read));
    if !model.ended {
        assert!(!session.over, "the session of a correct peer has ended");
        assert!(session.read == model.data);
    }
});

fn run(step: Step<'_>, peer: &mut Peer, session: &mut Session, model: &mut Model) {
    match step {
        Step::Data { length, padding } => {
            let content: Vec<u8> = (0..usize::from(length) % (MAX_CONTENT + 1))
                .map(|at| (at % 251) as u8 ^ length as u8)
                .collect();
            model.record(&content);
            let padding = usize::from(padding).min(MAX_CONTENT - content.len());
            session.sent.extend(peer.seal(DATA, &content, padding));
        }
        Step::KeyUpdate { request } => {
            let message = [24, 0, 0, 1, u8::from(request)];
            model.record(&[]);
            session.sent.extend(peer.seal(HANDSHAKE, &message, 0));
            peer.update_key();
        }
        Step::CloseNotify => {
            session.sent.extend(peer.seal(ALERT, &[1, 0], 0));
            model.ended = true;
        }
        Step::Sealed(kind, content) => {
            let content = &content[..content.len().min(MAX_CONTENT)];
            session.sent.extend(peer.seal(kind, content, 0));
            // The type of a record is its last byte that is not zero.
            let inner = [content, &[kind]].concat();
            let end = inner.iter().rposition(|byte| *byte != 0);
            if let Some(end) = end.filter(|end| inner[*end] == DATA) {
                model.record(&inner[..end]);
            }
            model.ended = true;
        }
        Step::Raw(bytes) => {
            model.ended |= !bytes.is_empty();
            session.sent.extend(bytes);
        }
        Step::Damaged { at, with } => {
            let mut record = peer.seal(DATA, b"never read", 0);
            let at = usize::from(at) % record.len();
            record[at] ^= with | 1;
            session.sent.extend(record);
            model.ended = true;
        }
        Step::Arrive(count) => session.read(usize::from(count), 1 << 12),
        Step::Read(size) => session.read(usize::MAX, usize::from(size)),
    }
}
