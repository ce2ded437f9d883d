//! Texts of others before they reach a terminal or a line: a server's words must not move the cursor,
//! begin another line or hide what is written.

/// Characters that begin another line, steer a terminal or hide what is written.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text with a blank for each of them.
pub(crate) fn plain(text: &str) -> String {
    text.replace(is_unsafe, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_or_turns_its_text_around_is_a_blank() {
        let text = "a\u{1b}[2Jb\nc\u{85}d\u{2028}e\u{202e}f\u{2066}g\u{feff}h ä…";
        assert_eq!(plain(text), "a [2Jb c d e f g h ä…");
    }
}
