//! Secrets: a type that cannot be printed, and where a secret comes from.
//!
//! A secret in a file is read again every time it is used, so that a rotated one is picked up
//! without a restart.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};

use crate::plain::is_unsafe;

/// What is shown instead of a secret, in `Debug`, in logs and in the effective configuration.
pub const REDACTED: &str = "<secret>";

/// The largest file that is read: no real secret is larger, and `/dev/zero` would never end.
const LARGEST_FILE: u64 = 64 << 10;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// A token, password or client secret. It is wiped when dropped; `Debug` shows `<secret>`.
#[derive(Clone)]
pub struct Secret(SecretString);

/// Where a secret comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The value itself, from the environment or the configuration file.
    Value(Secret),
    /// A file, read again at every use, as by [`Secret::trimmed`].
    File(PathBuf),
}

/// A secret's file could not be used. The message names the file, never its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read the secret file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path leads to a folder, or the file is empty, too large or no text.
    #[error("the secret file {} {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong, as the end of a sentence.
        problem: &'static str,
    },
}

/// How the placeholders of the examples begin, which users have to replace.
const PLACEHOLDER: &str = "YOUR-";

/// Whether a text is nothing but a variable of a shell: `${…}`, or `$NAME` in capital letters.
/// Files are not expanded, so it is hardly meant. Any other text with a `$` is an ordinary value.
pub(crate) fn is_variable(text: &str) -> bool {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix("${").and_then(|it| it.strip_suffix('}')) {
        return !inner.is_empty() && !inner.contains(['{', '}']);
    }
    text.strip_prefix('$').is_some_and(|name| {
        let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        name.chars().all(is_part) && name.starts_with(|c: char| !c.is_ascii_digit())
    })
}

// === impl Secret ===

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// Returns the secret that an editor or a shell has written: neither a line break at its end
    /// nor a byte order mark is part of it.
    #[must_use]
    pub fn trimmed(text: &str) -> Self {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        Self::new(text.strip_suffix('\r').unwrap_or(text))
    }

    /// Why the secret looks like a mistake, as the end of a sentence about it. The text reveals
    /// nothing of the secret. Whatever the doubt is, the secret is sent as it stands.
    #[must_use]
    pub fn doubt(&self) -> Option<&'static str> {
        let text = self.expose();
        // Word processors and chat programs turn plain quotation marks into the others.
        let is_quote = |c: char| matches!(c, '"' | '\'' | '`' | '‘'..='‟' | '«' | '»' | '‹' | '›');
        if is_variable(text) {
            Some("is a variable, and variables are not expanded; write its value")
        } else if text.starts_with(PLACEHOLDER) {
            Some("is what the examples have in its place; write your own")
        } else if text.trim_end().contains(['\n', '\r']) {
            Some("has several lines: it is sent as it stands, so take out what is not part of it")
        } else if text.trim() != text {
            Some(
                "begins or ends with white space: it is sent as it stands, so take out what is not part of it",
            )
        } else if text.starts_with(BYTE_ORDER_MARK) {
            Some(
                "begins with a byte order mark, which editors do not show: it is sent as it stands, so write it \
                 anew or save it without one",
            )
        } else if text.contains('\0') {
            Some("holds NULs, as UTF-16 does: it is sent as it stands, so save it as UTF-8")
        } else if text.contains(is_unsafe) {
            Some("holds characters that are not shown: it is sent as it stands, so write it anew")
        } else if text.starts_with(is_quote) || text.ends_with(is_quote) {
            Some(
                "begins or ends with a quotation mark: it is sent as it stands, so take out what is not part of it",
            )
        } else {
            None
        }
    }

    /// Like `doubt`, but for the value of a header. Quotation marks and the like are
    /// normal there, so only variables and placeholders are doubted.
    #[must_use]
    pub(crate) fn doubt_as_header(&self) -> Option<&'static str> {
        // The secret may follow a scheme such as `Bearer`.
        self.expose().split_whitespace().find_map(|word| {
            if is_variable(word) {
                Some("holds a variable, and variables are not expanded; write its value")
            } else if word.starts_with(PLACEHOLDER) {
                Some("holds what the examples have in its place; write your own")
            } else {
                None
            }
        })
    }

    /// The secret itself. Call this only where the secret is sent.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

// === impl SecretSource ===

impl SecretSource {
    /// Reads the secret as it is now.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, is too large or is not UTF-8.
    pub fn read(&self) -> Result<Secret, SecretError> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let unusable = |problem| SecretError::Unusable {
                    path: path.clone(),
                    problem,
                };
                let bytes = read(path).map_err(|source| match source.kind() {
                    io::ErrorKind::IsADirectory => unusable("is a folder; name a file in it"),
                    _ => SecretError::Read {
                        path: path.clone(),
                        source,
                    },
                })?;
                if bytes.len() as u64 > LARGEST_FILE {
                    return Err(unusable("is larger than 64 KiB"));
                }
                let text = str::from_utf8(&bytes).map_err(|_| unusable("is not UTF-8 text"))?;
                let secret = Secret::trimmed(text);
                if secret.expose().is_empty() {
                    return Err(unusable("is empty"));
                }
                Ok(secret)
            }
        }
    }
}

/// Reads a file, but not more of it than a secret can have. The content is wiped when it is
/// dropped.
fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // A vector that has to grow leaves copies behind. Hardly any secret is longer than this.
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let file = File::open(path)?;
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str(REDACTED),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "<secret>");
        assert_eq!(format!("{:?}", SecretSource::Value(secret)), "<secret>");
    }

    #[test]
    fn what_is_hardly_meant_is_told_apart_and_not_shown() {
        for (text, told) in [
            ("${OPSRAMP_SECRET}", "is a variable"),
            ("${OPSRAMP_SECRET:-hunter2}", "is a variable"),
            ("$X", "is a variable"),
            (" $OPSRAMP_SECRET_2", "is a variable"),
            ("YOUR-SECRET", "is what the examples have"),
            ("hunter2\nhunter3", "has several lines"),
            ("hunter2\r\n\r\nhunter3\n", "has several lines"),
            ("hunter2 ", "begins or ends with white space"),
            ("\thunter2", "begins or ends with white space"),
            ("hunter2\n", "begins or ends with white space"),
            ("\"hunter2\"", "begins or ends with a quotation mark"),
            ("hunter2'", "begins or ends with a quotation mark"),
            ("“hunter2”", "begins or ends with a quotation mark"),
            ("hunter2`", "begins or ends with a quotation mark"),
            ("h\0u\0n\0t\0e\0r\0", "holds NULs"),
            ("hunter2\u{200b}", "holds characters that are not shown"),
            ("\u{feff}hunter2", "begins with a byte order mark"),
        ] {
            let doubt = Secret::new(text).doubt().unwrap();
            assert!(doubt.starts_with(told), "{text}: {doubt}");
            assert!(!doubt.contains("hunter"), "{doubt}");
        }
        for text in [
            "hunter2", "a$B", "$aB3cD", "$", "$1", "${", "${}", "${a}b", "a b", "it's", "YOURS", "",
        ] {
            assert_eq!(Secret::new(text).doubt(), None, "{text}");
        }
    }

    #[test]
    fn a_header_that_holds_a_placeholder_is_doubted() {
        for (text, told) in [
            ("$TOKEN", "holds a variable"),
            ("Bearer ${TOKEN}", "holds a variable"),
            ("YOUR-TOKEN", "holds what the examples have"),
            ("Bearer YOUR-TOKEN", "holds what the examples have"),
        ] {
            let doubt = Secret::new(text).doubt_as_header().unwrap();
            assert!(doubt.starts_with(told), "{text}: {doubt}");
        }
        for text in ["Bearer hunter2", "Token token=\"a$B\"", "$1", ""] {
            assert_eq!(Secret::new(text).doubt_as_header(), None, "{text}");
        }
    }

    #[test]
    fn a_secret_file_is_read_again_each_time_without_its_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let source = SecretSource::File(path.clone());
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(source.read().unwrap().expose(), "first");
        std::fs::write(&path, "second\r\n").unwrap();
        assert_eq!(source.read().unwrap().expose(), "second");
        // Some editors begin a file with a byte order mark.
        std::fs::write(&path, "\u{feff}third").unwrap();
        assert_eq!(source.read().unwrap().expose(), "third");
    }

    #[test]
    fn a_secret_file_that_never_ends_is_not_read_to_its_end() {
        let endless = SecretSource::File("/dev/zero".into());
        let error = endless.read().unwrap_err().to_string();
        assert!(error.ends_with("is larger than 64 KiB"), "{error}");
    }

    #[test]
    fn an_unusable_secret_file_is_named_and_its_content_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "\n").unwrap();
        let empty = SecretSource::File(path.clone())
            .read()
            .unwrap_err()
            .to_string();
        assert!(empty.contains("secret is empty"), "{empty}");
        std::fs::write(&path, b"\xff\xfe").unwrap();
        let binary = SecretSource::File(path.clone())
            .read()
            .unwrap_err()
            .to_string();
        assert!(binary.ends_with("is not UTF-8 text"), "{binary}");
        std::fs::remove_file(&path).unwrap();
        assert!(SecretSource::File(path).read().is_err());
        let error = SecretSource::File(folder.path().into()).read().unwrap_err();
        let told = error.to_string();
        assert!(told.ends_with("is a folder; name a file in it"), "{told}");
    }
}
