//! The doors to the decoders that nobody outside of their rooms sees, for the fuzz targets in
//! `tests/fuzz`. Compiled only for them (`--cfg fuzzing`, which cargo-fuzz sets); each room's
//! `fuzzing.rs` calls what is really used, and decides nothing itself.

pub use crate::ca::istiod::fuzzing as ca;
pub use crate::config::fuzzing as config;
pub use crate::hbone::fuzzing as hbone;
pub use crate::kernel::fuzzing as kernel;
pub use crate::path::fuzzing as path;
pub use crate::pods::zds::fuzzing as zds;
pub use crate::tls::fuzzing as tls;
