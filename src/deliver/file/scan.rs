//! Finds out which of the waiting lines stand in a file already.

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt as _};

use crate::deliver::format::Lines;

/// The waiting lines, and which of them are not known to stand in a file yet.
#[derive(Clone, Debug)]
pub(super) struct Missing<'a> {
    lines: &'a Lines,
    /// The lines of the same events as a former process may have written them.
    in_other_format: Option<&'a Lines>,
    missing: Vec<bool>,
}

/// What was found in a part of a file.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    pub(super) found: Vec<Found<'a>>,
    /// The offset up to which the file was read: its end, or the end of the last line that was
    /// read.
    pub(super) end: u64,
    /// The offset behind the last line break before `end`, or where reading began if there is
    /// none.
    pub(super) whole: u64,
    /// Whether `end` is the file's end.
    pub(super) at_end: bool,
    pub(super) torn: Torn,
}

/// A line that stands in a file.
#[derive(Debug)]
pub(super) struct Found<'a> {
    index: usize,
    /// Where the line begins.
    pub(super) at: u64,
    pub(super) line: &'a [u8],
}

/// What stands behind the last line break of a file.
#[derive(Debug)]
pub(super) enum Torn {
    Nothing,
    /// The beginning of a line.
    Piece(Vec<u8>),
    /// More than the longest missing line, or the rest of a line whose beginning was not read.
    TooMuch,
}

/// Reads `file` from `from` on until every missing line is found, or until the end of the line
/// that contains the offset `to`.
pub(super) fn scan<'a>(
    file: &File,
    from: u64,
    to: u64,
    missing: &Missing<'a>,
) -> io::Result<Scan<'a>> {
    let mut scan = Scan {
        found: Vec::new(),
        end: from,
        whole: from,
        at_end: false,
        torn: Torn::Nothing,
    };
    let mut chunk = Vec::new();
    let mut line = Vec::new();
    let mut waiting = None;
    if missing.is_empty() {
        return Ok(scan);
    }
    let mut too_long = is_inside_line(file, from)?;
    loop {
        chunk.resize(64 << 10, 0);
        let length = match file.read_at(&mut chunk, scan.end) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (waiting, longest) = waiting.get_or_insert_with(|| missing.index());
        for piece in chunk[..length].split_inclusive(|&byte| byte == b'\n') {
            scan.end += piece.len() as u64;
            if !too_long {
                line.extend_from_slice(piece);
                too_long = line.len() > *longest;
            }
            if !piece.ends_with(b"\n") {
                continue;
            }
            scan.whole = scan.end;
            if !too_long && let Some((form, index)) = waiting.remove_entry(&line[..]) {
                scan.found.push(Found {
                    index,
                    at: scan.end - form.len() as u64,
                    line: form,
                });
                for form in missing.forms(index) {
                    waiting.remove(form);
                }
                if waiting.is_empty() {
                    return Ok(scan);
                }
            }
            if scan.end >= to {
                return Ok(scan);
            }
            too_long = false;
            line.clear();
        }
    }
    scan.at_end = true;
    scan.torn = match (too_long, line.is_empty()) {
        (true, _) => Torn::TooMuch,
        (false, true) => Torn::Nothing,
        (false, false) => Torn::Piece(line),
    };
    Ok(scan)
}

/// Whether the offset `at` lies in the middle of a line.
fn is_inside_line(file: &File, at: u64) -> io::Result<bool> {
    let Some(before) = at.checked_sub(1) else {
        return Ok(false);
    };
    let mut byte = *b"\n";
    file.read_at(&mut byte, before)?;
    Ok(byte != *b"\n")
}

// === impl Missing ===

impl<'a> Missing<'a> {
    pub(super) fn new(lines: &'a Lines, in_other_format: Option<&'a Lines>) -> Self {
        Self {
            lines,
            in_other_format,
            // An event without a line cannot be missing.
            missing: (0..lines.len())
                .map(|i| !lines.line(i).is_empty())
                .collect(),
        }
    }

    /// What the line of an event may look like.
    fn forms(&self, index: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        [Some(self.lines), self.in_other_format]
            .into_iter()
            .flatten()
            .map(move |lines| lines.line(index))
            .filter(|line| !line.is_empty())
    }

    /// The number of all lines, missing or not.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    fn is_empty(&self) -> bool {
        !self.missing.contains(&true)
    }

    fn indices(&self) -> impl Iterator<Item = usize> {
        self.missing
            .iter()
            .enumerate()
            .filter_map(|(index, &missing)| missing.then_some(index))
    }

    /// The first missing line, if every line behind it is missing, too.
    pub(super) fn first_of_an_unbroken_rest(&self) -> Option<usize> {
        let first = self.indices().next()?;
        let there = |index: usize| !self.missing[index] && !self.lines.line(index).is_empty();
        (!(first..self.missing.len()).any(there)).then_some(first)
    }

    /// Returns the missing lines by their content, and the length of the longest.
    fn index(&self) -> (HashMap<&'a [u8], usize>, usize) {
        let by_content: HashMap<_, _> = self
            .indices()
            .flat_map(|index| self.forms(index).map(move |form| (form, index)))
            .collect();
        let longest = by_content.keys().map(|line| line.len()).max();
        (by_content, longest.unwrap_or(0))
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.missing[index] = false;
    }

    pub(super) fn remove_found(&mut self, scan: &Scan<'_>) {
        for found in &scan.found {
            self.remove(found.index);
        }
    }

    /// The missing line that begins with `torn`, and the rest of this line. Because lines are
    /// written in order, it is the first missing line, unless a power cut took bytes of earlier
    /// lines.
    pub(super) fn completion(&self, torn: &Torn) -> Option<(usize, &'a [u8])> {
        let Torn::Piece(piece) = torn else {
            return None;
        };
        self.indices().find_map(|index| {
            self.forms(index)
                .find_map(|form| Some((index, form.strip_prefix(&piece[..])?)))
        })
    }

    /// Returns what has to follow `torn` so that all lines are there.
    pub(super) fn append_after(&self, torn: &Torn) -> Vec<u8> {
        let mut append = Vec::new();
        let completed = self.completion(torn);
        match (completed, torn) {
            (Some((_, rest)), _) => append.extend_from_slice(rest),
            (None, Torn::Nothing) => {}
            // The piece is another writer's, or damaged. It becomes a line of its own. Some line is
            // missing, or the search would have ended before the piece.
            (None, _) => append.push(b'\n'),
        }
        for index in self.indices() {
            if completed.is_none_or(|(completed, _)| completed != index) {
                append.extend_from_slice(self.lines.line(index));
            }
        }
        append
    }
}
