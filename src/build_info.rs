//! What this binary was built from.

/// The version of the crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision of the source, short; `unknown` where it was not built from a checkout.
pub const REVISION: &str = env!("OPSRAMP_EXPORTER_BUILD_REVISION");

/// The version of the compiler.
pub const RUST_VERSION: &str = env!("OPSRAMP_EXPORTER_BUILD_RUST_VERSION");
