//! (room under construction)

pub mod authorize;
pub mod route;
