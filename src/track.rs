//! Which alerts are known, and what an answer changes about them.
