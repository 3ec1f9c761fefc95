//! The fast path: the kernel carries connections of a kind that the proxy has authorized once.
//!
//! [`FastPath`] writes fast-path entries into the kernel's maps, removes them before a change takes
//! effect, and terminates open connections that are no longer allowed. [`FastPathEvents`] turns the
//! kernel's events into the metrics and the access log of connections that the proxy never
//! touches. Which entries hold is decided by [`mesh::fastpath`].

pub(crate) mod acceleration;
mod controller;
mod events;

pub use controller::FastPath;
pub use events::FastPathEvents;
