//! Recognizes texts that stand where the name of a file belongs, and are none.
//!
//! Names of files are shown in messages, in logs, and in the effective configuration. A user who
//! writes the secret itself in place of the name must be told before it is shown anywhere, and the
//! message must not contain the text.

use std::path::Path;

/// Says what is wrong with a text that is clearly not the name of a file, and adds the advice. The
/// text itself may be a secret, so it is not shown.
pub(super) fn problem(path: &Path, advice: &str) -> Option<String> {
    instead_of_name(path).map(|what| format!("is {what}, not the name of a file; {advice}"))
}

/// Says what the text is, if it is clearly not the name of a file.
fn instead_of_name(path: &Path) -> Option<&'static str> {
    let text = path.to_string_lossy();
    let text = text.trim_start();
    let begins_with = |word: &str| {
        text.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    if text.contains("-----BEGIN") {
        Some("a certificate or key itself")
    } else if text.contains("://") {
        Some("a URL")
    } else if text.contains(['\n', '\r']) {
        Some("a text with a line break")
    } else if begins_with("Bearer ") || begins_with("Basic ") {
        Some("the value of a header")
    } else if text.contains("password=") {
        Some("a connection string")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plainly_no_name_of_a_file_is_told_from_one() {
        let of = |text: &str| instead_of_name(Path::new(text));
        for url in ["postgres://u:hunter2@h/db", " PostgreSQL://h", "https://h"] {
            assert_eq!(of(url), Some("a URL"), "{url}");
        }
        let key = "-----BEGIN PRIVATE KEY----- hunter2";
        assert_eq!(of(key), Some("a certificate or key itself"));
        for lines in ["a\nb", "hunter2\n", "hunter2\r"] {
            assert_eq!(of(lines), Some("a text with a line break"), "{lines:?}");
        }
        for value in ["Bearer hunter2", "bearer hunter2", " Basic aHVudGVyMg=="] {
            assert_eq!(of(value), Some("the value of a header"), "{value}");
        }
        let keywords = "host=db user=u password=hunter2";
        assert_eq!(of(keywords), Some("a connection string"));
        for name in [
            "",
            "/run/secrets/url",
            "./a b/c",
            "C:/secret",
            "bearer",
            "é",
            "/etc/Bearer token",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
