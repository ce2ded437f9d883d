//! The place in a file where the sink left off, in a form that the store keeps.
//!
//! Inodes are used again and device numbers change, so neither proves that a file is the same one.
//! What stands right before the offset does, because every line is unique.

use std::{
    cmp::Reverse,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_64;

use super::OpenFile;
use crate::{
    file_id::{FileId, file_id},
    paths::follow_links,
};

/// Number of bytes before the offset that are hashed.
const FINGERPRINT_LENGTH: u64 = 1024;

const VERSION: u8 = 1;

/// A place in a file: everything before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    device: u64,
    pub(super) inode: u64,
    pub(super) offset: u64,
    /// The hash of the bytes right before `offset`.
    fingerprint: u64,
}

// === impl Mark ===

impl Mark {
    pub(super) fn of(file: &File, (device, inode): FileId, offset: u64) -> io::Result<Self> {
        Ok(Self {
            device,
            inode,
            offset,
            fingerprint: fingerprint(file, offset)?,
        })
    }

    /// Encodes the mark and the doubtful parts of the file.
    pub(super) fn encode(&self, doubtful: &[Range<u64>]) -> Vec<u8> {
        let place = [self.device, self.inode, self.offset, self.fingerprint];
        let parts = doubtful.iter().flat_map(|part| [part.start, part.end]);
        let numbers = place.into_iter().chain(parts);
        let numbers = numbers.flat_map(u64::to_le_bytes);
        [VERSION].into_iter().chain(numbers).collect()
    }

    /// Decodes a mark and the doubtful parts. Returns `None` for what another version has written:
    /// the file's end is searched then.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, Vec<Range<u64>>)> {
        let [VERSION, numbers @ ..] = bytes else {
            return None;
        };
        let (numbers, []) = numbers.as_chunks::<8>() else {
            return None;
        };
        let numbers: Vec<u64> = numbers.iter().map(|it| u64::from_le_bytes(*it)).collect();
        let &[device, inode, offset, fingerprint, ref parts @ ..] = &numbers[..] else {
            return None;
        };
        let (parts, []) = parts.as_chunks::<2>() else {
            return None;
        };
        let mark = Self {
            device,
            inode,
            offset,
            fingerprint,
        };
        Some((mark, parts.iter().map(|&[start, end]| start..end).collect()))
    }

    /// Whether `file` has the content before the offset that the mark's file had.
    pub(super) fn fits(&self, file: &File) -> bool {
        let is_same = || {
            file.metadata()
                .is_ok_and(|metadata| metadata.ino() == self.inode)
        };
        (self.offset > 0 || is_same())
            && fingerprint(file, self.offset).is_ok_and(|found| found == self.fingerprint)
    }

    /// Finds the file that the mark was set in if logrotate has moved it to another name in the
    /// same folder, or has made a copy of it there. A copy must also have a name that logrotate
    /// gives, because other sinks write the same lines to files of their own. These files,
    /// `others`, are never returned.
    pub(super) fn find_moved(&self, path: &Path, others: &[PathBuf]) -> Option<OpenFile> {
        // If the path is a link, the file that it leads to is the one that is moved.
        let path = &follow_links(path)?;
        let others: Vec<_> = others
            .iter()
            .filter_map(|other| fs::metadata(other).ok())
            .map(|metadata| file_id(&metadata))
            .collect();
        let mut candidates: Vec<_> = fs::read_dir(super::folder(path))
            .ok()?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.file_name(), entry.metadata().ok()?))
            })
            .filter(|(name, metadata)| {
                Some(&**name) != path.file_name()
                    && metadata.is_file()
                    && metadata.size() >= self.offset
                    && (metadata.ino() == self.inode || is_numbered(name, path))
                    && !others.contains(&file_id(metadata))
            })
            .collect();
        // The newest copy comes first: with an offset of 0, the content does not tell copies
        // apart.
        candidates.sort_by_key(|(_, metadata)| {
            let modified = (metadata.mtime(), metadata.mtime_nsec());
            (metadata.ino() != self.inode, Reverse(modified))
        });
        candidates.into_iter().find_map(|(name, _)| {
            let path = path.with_file_name(name);
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .open(&path)
                .ok()?;
            let metadata = file.metadata().ok()?;
            let fits = self.fits(&file);
            // Somebody who has locked the file writes to it, so it was not left behind.
            if !(fits || self.offset == 0) || super::lock(&file).is_err() {
                return None;
            }
            let mut open_file = OpenFile {
                file,
                path,
                id: file_id(&metadata),
                settled: self.offset,
                end: self.offset,
                mark: fits.then_some(*self),
                unstored: self.offset,
                doubtful: Vec::new(),
                failures: 0,
            };
            if !fits {
                open_file.unsettle_end(metadata.size());
            }
            Some(open_file)
        })
    }
}

/// Whether `name` is the name of `path` with a number or a date. logrotate puts this at the end
/// or, with its option `extension`, before the extension.
pub(super) fn is_numbered(name: &OsStr, path: &Path) -> bool {
    let name = name.as_encoded_bytes();
    let [whole, stem] = [path.file_name(), path.file_stem()]
        .map(|part| part.unwrap_or_default().as_encoded_bytes());
    let is_number = |rest: &[u8]| matches!(rest, [sign, digit, ..] if sign.is_ascii_punctuation() && digit.is_ascii_digit());
    let before_extension = || {
        let rest = name.strip_prefix(stem)?;
        rest.strip_suffix(&whole[stem.len()..])
    };
    name.strip_prefix(whole).is_some_and(is_number) || before_extension().is_some_and(is_number)
}

fn fingerprint(file: &File, offset: u64) -> io::Result<u64> {
    let mut before = [0; FINGERPRINT_LENGTH as usize];
    let length = offset.min(FINGERPRINT_LENGTH);
    let before = &mut before[..length as usize];
    file.read_exact_at(before, offset - length)?;
    Ok(xxh3_64(before))
}
