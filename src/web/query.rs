//! The query of the page and of the JSON API: `?account=&tenant=&search=&state=&limit=`.

use std::collections::BTreeMap;

use super::view::{SearchFilter, SearchState};

/// Maximum number of alerts or searches in one answer.
const MAX_LIMIT: usize = 10_000;

/// Number of alerts in an answer if the query has no limit.
const DEFAULT_LIMIT: usize = 200;

const PARAMETERS: [&str; 5] = ["account", "tenant", "search", "state", "limit"];

/// What was asked for. A parameter without a value counts as left out, because a form sends empty
/// fields so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) account: Option<String>,
    pub(super) tenant: Option<String>,
    pub(super) search: Option<String>,
    pub(super) state: Option<String>,
    limit: Option<usize>,
}

/// The query is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueryError {
    /// The parameter is unknown, for instance misspelt.
    #[error("unknown parameter {0:?}: known are account, tenant, search, state and limit")]
    Unknown(String),
    /// The parameter is given twice.
    #[error("the parameter {0:?} is given twice")]
    Twice(String),
    /// The limit is not a number in the allowed range.
    #[error("limit is {0:?}, but must be a number from 1 to {MAX_LIMIT}")]
    Limit(String),
    /// The state is not one that a search can be in.
    #[error("state is {0:?}, but a search is stale, failing, pending, up or elsewhere")]
    SearchState(String),
    /// The text is not a query at all.
    #[error("the query is not a list of name=value pairs in UTF-8")]
    Malformed,
}

// === impl Query ===

impl Query {
    pub(super) fn parse(pairs: Vec<(String, String)>) -> Result<Self, QueryError> {
        let mut values = BTreeMap::new();
        for (name, value) in pairs {
            if !PARAMETERS.contains(&name.as_str()) {
                return Err(QueryError::Unknown(name));
            }
            if values.insert(name.clone(), value).is_some() {
                return Err(QueryError::Twice(name));
            }
        }
        let mut take = |name| values.remove(name).filter(|value| !value.is_empty());
        let limit = take("limit").map(|text| match text.parse() {
            Ok(limit @ 1..=MAX_LIMIT) => Ok(limit),
            _ => Err(QueryError::Limit(text)),
        });
        Ok(Self {
            account: take("account"),
            tenant: take("tenant"),
            search: take("search"),
            state: take("state"),
            limit: limit.transpose()?,
        })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT)
    }

    /// Returns the filter of `/api/v1/status`, where `state` is the state of a search.
    pub(super) fn status_filter(&self) -> Result<SearchFilter, QueryError> {
        let state = self.state.as_ref().map(|text| {
            let found = SearchState::ALL
                .into_iter()
                .find(|state| state.as_str().eq_ignore_ascii_case(text));
            found.ok_or_else(|| QueryError::SearchState(text.clone()))
        });
        Ok(SearchFilter {
            state: state.transpose()?,
            limit: self.limit,
            ..self.page_filter()
        })
    }

    /// Returns the filter of the searches on the page, where `state` is the state of an alert.
    pub(super) fn page_filter(&self) -> SearchFilter {
        SearchFilter {
            account: self.account.clone(),
            tenant: self.tenant.clone(),
            search: self.search.clone(),
            state: None,
            limit: Some(self.limit()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Query, QueryError> {
        let owned = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Query::parse(owned.collect())
    }

    #[test]
    fn an_empty_value_filters_nothing() {
        let query = parse(&[("account", ""), ("state", ""), ("limit", "")]).unwrap();
        assert_eq!(query, Query::default());
        assert_eq!(query.limit(), DEFAULT_LIMIT);
    }

    #[test]
    fn a_bad_value_is_refused_with_what_would_be_right() {
        for (pairs, message) in [
            (
                &[("limit", "0")][..],
                "limit is \"0\", but must be a number from 1 to 10000",
            ),
            (
                &[("limit", "ten")],
                "limit is \"ten\", but must be a number from 1 to 10000",
            ),
            (
                &[("acount", "a")],
                "unknown parameter \"acount\": known are account, tenant, search, state and limit",
            ),
            (
                &[("state", "a"), ("state", "b")],
                "the parameter \"state\" is given twice",
            ),
        ] {
            assert_eq!(parse(pairs).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_state_of_a_search_is_one_of_five_words_in_any_case() {
        let state = |text| {
            parse(&[("state", text)])
                .unwrap()
                .status_filter()
                .map(|filter| filter.state)
        };
        assert_eq!(state("Up").unwrap(), Some(SearchState::Up));
        assert_eq!(
            state("critical").unwrap_err().to_string(),
            "state is \"critical\", but a search is stale, failing, pending, up or elsewhere"
        );
    }
}
