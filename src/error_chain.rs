//! Errors as people read them.

use std::{error::Error, io};

use crate::excerpt::truncate;

/// The longest text, in bytes. An error may name each of a thousand names of a certificate, or
/// whatever a database says, and what is shown of an error is also kept in memory.
const MAX: usize = 1 << 10;

/// An error with its causes, on one line that is not too long.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        // Wrappers often repeat the text of what they wrap.
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        cause = error.source();
    }
    truncate(text, MAX).into_owned()
}

/// The TLS error among an error and its causes, if there is one.
pub(crate) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    error_of(error)
}

/// The first error of a type among an error and its causes, if there is one.
pub(crate) fn error_of<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    // The source of an I/O error is not the error within it but that error's source.
    let within = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    let within = within.map(|error| error as &(dyn Error + 'static));
    let found = error.downcast_ref::<T>();
    found.or_else(|| within.or_else(|| error.source()).and_then(error_of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Wrapped {
        what: &'static str,
        #[source]
        source: Box<dyn Error>,
    }

    #[test]
    fn causes_follow_from_the_outermost_to_the_first() {
        let first = io::Error::other("the disk is full");
        assert_eq!(chain(&first), "the disk is full");
        let inner = Wrapped {
            what: "cannot write",
            source: first.into(),
        };
        let outer = Wrapped {
            what: "the state store failed",
            source: inner.into(),
        };
        assert_eq!(
            chain(&outer),
            "the state store failed: cannot write: the disk is full"
        );
    }

    #[test]
    fn what_a_wrapper_repeats_is_told_once() {
        let wrapper = Wrapped {
            what: "cannot write: the disk is full",
            source: io::Error::other("the disk is full").into(),
        };
        assert_eq!(chain(&wrapper), "cannot write: the disk is full");
    }

    #[test]
    fn however_much_an_error_says_its_text_is_short() {
        let wrapper = Wrapped {
            what: "cannot connect",
            source: io::Error::other("\u{e4}".repeat(1 << 20)).into(),
        };
        let text = chain(&wrapper);
        assert!(text.len() <= MAX, "{}", text.len());
        assert!(text.starts_with("cannot connect: \u{e4}"), "{text}");
        assert!(text.ends_with(" bytes]"), "{text}");
    }
}
