//! Paths as the system follows them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folder that a path names something in.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Where a symbolic link leads to, which need not be there; `None` where it is none.
pub(crate) fn link_target(path: &Path) -> Option<PathBuf> {
    let target = fs::read_link(path).ok()?;
    Some(folder(path).join(target))
}
