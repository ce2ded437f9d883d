//! The words of the file, and what they stand for, which has the same names.

use super::file;
use crate::{
    deliver::Format,
    identity::EventKind,
    poll::{AtFirstStart, GroupLabel},
};

/// Translates words when the file is read, and back when the effective configuration is written.
macro_rules! words {
    ($($word:ty, $meaning:ty: $($name:ident)+;)*) => {$(
        impl From<$word> for $meaning {
            fn from(word: $word) -> Self {
                match word {
                    $(<$word>::$name => Self::$name,)+
                }
            }
        }

        impl From<$meaning> for $word {
            fn from(meaning: $meaning) -> Self {
                match meaning {
                    $(<$meaning>::$name => Self::$name,)+
                }
            }
        }
    )*};
}

words! {
    file::AtFirstStart, AtFirstStart: Emit Skip;
    file::Event, EventKind: Opened Changed Left;
    file::Format, Format: Json Logfmt;
    file::GroupLabel, GroupLabel:
        State Status Priority Source AlertType EventType ResourceType Client;
}
