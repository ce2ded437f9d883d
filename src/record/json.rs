//! JSON that stays on one line.
//!
//! JSON itself allows DEL, the C1 controls (NEL among them), and U+2028 and U+2029 inside strings.
//! Some readers take several of them for the end of a line, and a terminal obeys others, so they
//! are escaped. Controls that turn the writing direction are escaped as well, because they can
//! make a line look like another one. Every escape is plain JSON: a parser reads back the text
//! that was given.

/// The bytes that may have to be escaped, or may begin a character that has to be.
const SUSPECT: [bool; 256] = {
    let mut suspect = [false; 256];
    let mut control = 0;
    while control < 0x20 {
        suspect[control] = true;
        control += 1;
    }
    let [quote, backslash, delete] = [b'"' as usize, b'\\' as usize, 0x7f];
    suspect[quote] = true;
    suspect[backslash] = true;
    suspect[delete] = true;
    suspect[0xc2] = true;
    suspect[0xe2] = true;
    suspect
};

/// Appends `text` as a JSON string, quotes included.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut copied = 0;
    let mut at = 0;
    while let Some(plain) = next_suspect(&bytes[at..]) {
        at += plain;
        let short: Option<&[u8]> = match bytes[at] {
            b'"' => Some(b"\\\""),
            b'\\' => Some(b"\\\\"),
            b'\n' => Some(b"\\n"),
            b'\r' => Some(b"\\r"),
            b'\t' => Some(b"\\t"),
            _ => None,
        };
        let length = if let Some(escape) = short {
            out.extend_from_slice(&bytes[copied..at]);
            out.extend_from_slice(escape);
            1
        } else if let Some((code, length)) = hazard(&bytes[at..]) {
            out.extend_from_slice(&bytes[copied..at]);
            push_unicode_escape(out, code);
            length
        } else {
            at += 1;
            continue;
        };
        at += length;
        copied = at;
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// Appends a whole number.
pub(crate) fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends `json`, which must be valid, without whitespace between its parts, and with the same
/// characters escaped as in `push_string`. Everything else, numbers above all, stays as it is
/// written.
pub(crate) fn push_compact(out: &mut Vec<u8>, json: &str) {
    let bytes = json.as_bytes();
    let mut in_string = false;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if in_string {
            if let Some((code, length)) = hazard(&bytes[at..]) {
                push_unicode_escape(out, code);
                at += length;
                continue;
            }
            out.push(byte);
            match byte {
                b'\\' => {
                    at += 1;
                    out.extend(bytes.get(at));
                }
                b'"' => in_string = false,
                _ => {}
            }
        } else if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            out.push(byte);
            in_string = byte == b'"';
        }
        at += 1;
    }
}

/// Returns the place of the first byte that may have to be escaped.
fn next_suspect(bytes: &[u8]) -> Option<usize> {
    let (words, _) = bytes.as_chunks();
    let plain = words.iter().take_while(|word| is_plain(**word)).count();
    if plain == words.len() && bytes.last_chunk().is_some_and(|last| is_plain(*last)) {
        return None;
    }
    let passed = plain * size_of::<u64>();
    let suspect = |byte: &u8| SUSPECT[usize::from(*byte)];
    let found = bytes[passed..].iter().position(suspect)?;
    Some(passed + found)
}

/// Whether eight bytes are printable ASCII without quotes and backslashes, as nearly all are. All
/// bytes are tested at once; the highest bit of each byte is its flag.
fn is_plain(bytes: [u8; 8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    const fn below(word: u64, byte: u8) -> u64 {
        word.wrapping_sub(each(byte))
    }
    let word = u64::from_ne_bytes(bytes);
    let control = below(word, 0x20);
    let quote = below(word ^ each(b'"'), 1);
    let backslash = below(word ^ each(b'\\'), 1);
    let delete = below(word ^ each(0x7f), 1);
    (word | control | quote | backslash | delete) & each(0x80) == 0
}

/// Returns the character at the beginning of `bytes` and its length, if it must not stand in a
/// line.
fn hazard(bytes: &[u8]) -> Option<(u16, usize)> {
    match *bytes {
        [control @ (0..=0x1f | 0x7f), ..] => Some((u16::from(control), 1)),
        // U+0080 to U+009F: the C1 controls.
        [0xc2, low @ 0x80..=0x9f, ..] => Some((u16::from(low), 2)),
        // U+2028 and U+2029 separate lines, U+202A to U+202E turn the writing direction.
        [0xe2, 0x80, low @ 0xa8..=0xae, ..] => Some((0x2000 | u16::from(low & 0x3f), 3)),
        // U+2066 to U+2069 turn it, too.
        [0xe2, 0x81, low @ 0xa6..=0xa9, ..] => Some((0x2040 | u16::from(low & 0x3f), 3)),
        _ => None,
    }
}

fn push_unicode_escape(out: &mut Vec<u8>, code: u16) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(HEX[usize::from(code >> shift & 0xf)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> String {
        let mut out = Vec::new();
        push_string(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    fn compact(json: &str) -> String {
        let mut out = Vec::new();
        push_compact(&mut out, json);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn whatever_could_end_a_line_or_turn_it_is_escaped() {
        assert_eq!(
            string("a\"b\\c\nd\re\tf\u{0}\u{b}\u{c}\u{1b}\u{7f}"),
            r#""a\"b\\c\nd\re\tf\u0000\u000b\u000c\u001b\u007f""#
        );
        assert_eq!(
            string("\u{80}\u{85}\u{9f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}"),
            r#""\u0080\u0085\u009f\u2028\u2029\u202a\u202e\u2066\u2069""#
        );
    }

    #[test]
    fn a_byte_is_plain_among_others_where_it_needs_no_look() {
        for byte in 0..=u8::MAX {
            let expected = matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
            for place in 0..8 {
                let mut bytes = *b" !#[]~az";
                bytes[place] = byte;
                assert_eq!(is_plain(bytes), expected, "{bytes:?}");
            }
        }
    }

    #[test]
    fn neighbours_of_the_escaped_characters_are_left_alone() {
        for text in [
            "~\u{a0}\u{c0}\u{2027}\u{202f}\u{2065}\u{206a}é漢😀",
            " ",
            "",
        ] {
            assert_eq!(string(text), format!("\"{text}\""));
        }
    }

    #[test]
    fn compacting_touches_whitespace_between_the_parts_only() {
        assert_eq!(
            compact(
                "{ \"a b\" : [ 1.10 ,\r\n\t12345678901234567890, 1E+2 ] , \"c\\\" }\" : \"\\\\\" }"
            ),
            r#"{"a b":[1.10,12345678901234567890,1E+2],"c\" }":"\\"}"#
        );
        assert_eq!(
            compact("\"a\u{2028}b\u{7f}\u{85}\""),
            r#""a\u2028b\u007f\u0085""#
        );
    }
}
