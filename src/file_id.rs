//! Which file is meant, whatever its name.

use std::{fs::Metadata, os::unix::fs::MetadataExt as _};

/// A file's device and its inode there.
pub(crate) type FileId = (u64, u64);

pub(crate) fn file_id(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}
