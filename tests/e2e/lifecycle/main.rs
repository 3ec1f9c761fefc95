//! The life cycle of a mesh: policies, hostile peers, enrolment and upgrades, certificate rotation,
//! invalid settings. One file per feature. The tests need root; each test creates its own simulated
//! nodes and removes them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their functions fail by panicking"
)]

mod assertions;
mod capture_watch;
mod certificate_rotation;
mod dedicated;
mod dns;
mod doctor;
mod dropin;
mod enrollment;
mod handover_failures;
mod hostile;
mod istio_rules;
mod kernel_remove;
mod killed;
mod peer;
mod plaintext;
mod policy;
mod programs_to_rules;
mod rolling_upgrade;
mod settings;
mod socks5;
mod stream_end;
mod terminated;
