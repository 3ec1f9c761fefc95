//! The direct lane: what the proxy has judged once, the kernel remembers.
//!
//! [`verdict`] is pure: it says which connections may go by themselves. [`Keeper`] writes that
//! down in the kernel, takes it back before a change counts, and ends what is open and no longer
//! allowed. [`account`] keeps the records of connections that the proxy never touches.

mod account;
mod keeper;
pub mod verdict;

pub use account::Accounts;
pub use keeper::Keeper;
