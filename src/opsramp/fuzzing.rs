//! What must hold for any answer of a token endpoint.

use std::time::Duration;

use super::{SearchRequest, client, http::bearer, token_endpoint::read_token};

/// Returns the URL at which a server is asked for a page of a search.
pub(crate) fn search_url(tenant: &str, request: &SearchRequest) -> String {
    client::search_url("https://api.example", tenant, request)
}

/// Checks that an answer is refused, or is a token that a header can hold, with a life that makes
/// sense. No message may show the answer, which may hold a token.
///
/// # Panics
/// If the check fails.
pub fn token_answer(data: &[u8]) {
    match read_token(200, data) {
        Ok((token, life, _)) => {
            assert!(!token.expose().is_empty());
            assert!(bearer(&token).is_sensitive());
            let month = Duration::from_secs(30 * 24 * 60 * 60);
            assert!((Duration::from_secs(1)..=month).contains(&life), "{life:?}");
        }
        Err(error) => {
            assert_eq!(error.reason(), "decode");
            assert!(error.chain().len() < 100, "{}", error.chain());
        }
    }
}
