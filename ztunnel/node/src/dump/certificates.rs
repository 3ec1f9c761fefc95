//! The certificates in use, in the shape that `istioctl ztunnel-config certificates` reads. They contain
//! what every peer sees in a handshake, and no private keys.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde_json::{Value, json};

use tunnel::tls::{CertificateState, CertificateSummary};

/// The last second of the year 9999: RFC 3339 has no later one, and neither has X.509.
const LAST_SECOND: i64 = 253_402_300_799;

/// The key `certificates`.
pub(super) fn certificates(inventory: &[CertificateSummary]) -> Value {
    json!(inventory.iter().map(SummaryView::of).collect::<Vec<_>>())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SummaryView<'a> {
    identity: &'a str,
    /// A name, or `Unavailable: ` with the reason behind it.
    state: String,
    /// Leaf first.
    cert_chain: Vec<CertificateView>,
    root_certs: Vec<CertificateView>,
    // Keys of this proxy: the leaf's serial number, hexadecimal, and its validity in seconds since 1970.
    serial: &'a str,
    not_before: u64,
    not_after: u64,
}

impl<'a> SummaryView<'a> {
    fn of(summary: &'a CertificateSummary) -> Self {
        let all = |list: &[CertificateDer<'_>]| list.iter().map(CertificateView::of).collect();
        Self {
            identity: summary.identity.as_str(),
            state: match &summary.state {
                CertificateState::Initializing => "Initializing".to_owned(),
                CertificateState::Available => "Available".to_owned(),
                CertificateState::Expired => "Expired".to_owned(),
                CertificateState::Unavailable { reason } => format!("Unavailable: {reason}"),
            },
            cert_chain: all(&summary.chain),
            root_certs: all(&summary.roots),
            serial: &summary.serial,
            not_before: summary.not_before,
            not_after: summary.not_after,
        }
    }
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateView {
    /// The PEM text in base64, as Istio's ztunnel shows it.
    pem: String,
    /// Decimal.
    serial_number: String,
    /// RFC 3339.
    valid_from: String,
    /// RFC 3339.
    expiration_time: String,
}

impl CertificateView {
    /// A certificate that cannot be parsed has no serial number and no times; `istioctl` shows it as
    /// expired.
    fn of(certificate: &CertificateDer<'_>) -> Self {
        let block = Pem::new("CERTIFICATE", certificate.as_ref());
        let unix_lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
        let pem = STANDARD.encode(pem::encode_config(&block, unix_lines));
        let Ok((_rest, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            return Self {
                pem,
                ..Self::default()
            };
        };
        let validity = parsed.validity();
        Self {
            pem,
            serial_number: parsed.serial.to_string(),
            valid_from: rfc3339(validity.not_before.timestamp()),
            expiration_time: rfc3339(validity.not_after.timestamp()),
        }
    }
}

/// Seconds since 1970 as `2026-01-02T03:04:05Z`. Earlier times are shown as 1970.
fn rfc3339(seconds: i64) -> String {
    let seconds = u64::try_from(seconds.clamp(0, LAST_SECOND)).unwrap_or_default();
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
