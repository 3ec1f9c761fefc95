//! What holds while a mesh lives: policies, hostile peers, pods and proxies that come and go,
//! certificates that change, settings that are wrong. Each file is one promise. The tests need
//! root; each has simulated nodes of its own and takes everything away again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its functions too"
)]

mod dedicated;
mod doctor;
mod dropin;
mod enrollment;
mod hostile;
mod istio_rules;
mod killed;
mod names;
mod peer;
mod plaintext;
mod policy;
mod programs_to_rules;
mod removal;
mod replaced;
mod rotation;
mod scene;
mod settings;
mod socks5;
mod stream_end;
mod succession;
mod terminated;
