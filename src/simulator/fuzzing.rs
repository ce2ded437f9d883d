//! What fuzzing must see of a query.

use super::Query;

/// The ids that it asks for.
pub(crate) fn unique_ids(query: &Query) -> Option<&[String]> {
    query.unique_ids.as_deref()
}
