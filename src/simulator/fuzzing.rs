//! The part of a query that fuzzing must see.

use super::Query;

/// Returns the ids that a query asks for.
pub(crate) fn unique_ids(query: &Query) -> Option<&[String]> {
    query.unique_ids.as_deref()
}
