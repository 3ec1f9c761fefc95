//! The composition root of the proxy role.
