//! Paths as the system follows them.

use std::{
    fs::{self, FileType},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

/// Links that are followed to a file that is not there yet, as the system follows so many to one that is.
const LINKS: usize = 40;

/// The folder that a path names something in.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// What something is that is no regular file, for people.
pub(crate) fn kind_of(file: FileType) -> &'static str {
    if file.is_dir() {
        "a folder"
    } else if file.is_fifo() {
        "a named pipe"
    } else if file.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Where a symbolic link leads to, which need not be there; `None` where it is none.
pub(crate) fn link_target(path: &Path) -> Option<PathBuf> {
    let target = fs::read_link(path).ok()?;
    Some(folder(path).join(target))
}

/// The path that links lead to, be it there or not; `None` where they lead in a circle.
pub(crate) fn follow_links(path: &Path) -> Option<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        if let Ok(path) = path.canonicalize() {
            return Some(path);
        }
        match link_target(&path) {
            Some(target) => path = target,
            None => return Some(path),
        }
    }
    None
}
