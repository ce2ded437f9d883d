//! Characters that must not stand in a line as they are.

use std::io;

/// Writes JSON on one line, whoever reads it: besides what JSON demands, it escapes DEL, the C1
/// controls (NEL among them) and the line and paragraph separators of Unicode.
#[derive(Debug)]
pub(super) struct OneLine;

/// Whether some reader takes the character for a line break, or a terminal for a command.
pub(super) fn needed(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

/// Appends a character as JSON escapes it. All that need it are in the basic plane.
pub(super) fn push(text: &mut String, c: char) {
    use std::fmt::Write as _;
    // Writing to a string does not fail.
    let _ = write!(text, "\\u{:04x}", u32::from(c));
}

impl serde_json::ser::Formatter for OneLine {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Nearly every fragment is plain; the bytes tell at once.
        if !fragment
            .bytes()
            .any(|byte| matches!(byte, 0x7f | 0xc2 | 0xe2))
        {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| needed(*c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}
