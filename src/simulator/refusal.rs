//! What the API answers when it refuses a request: a status and a small JSON document.

use http::StatusCode;
use serde_json::{Value, json};

/// Why a request is refused, in the words of the API if those are documented.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 400 of the token endpoint.
    #[error("unsupported grant type: {0}")]
    UnsupportedGrantType(String),
    /// 401 of the token endpoint.
    #[error("bad API credentials")]
    BadCredentials,
    /// 401: there is no token, or it was never handed out.
    #[error("unknown access token")]
    UnknownToken,
    /// 407, or 401 if [`super::Options::expired_status`] says so: the token was valid once.
    #[error("expired or revoked access token")]
    DeadToken(u16),
    /// 404.
    #[error("no tenant {0:?}")]
    NoSuchTenant(String),
    /// 410.
    #[error("tenant {0:?} is deactivated")]
    TenantDeactivated(String),
    /// 404, or 500 with the code 0003.
    #[error("no alert {id:?}")]
    NoSuchAlert {
        /// The requested id.
        id: String,
        /// 404 or 500, see [`super::Options::not_found_status`].
        status: u16,
    },
    /// 404 of a tenant that has no clients because it is not a partner.
    #[error("tenant {0:?} is not a partner")]
    NotAPartner(String),
    /// 400.
    #[error("invalid page size")]
    InvalidPageSize,
    /// 400.
    #[error("invalid value {value:?} of {name}")]
    BadParameter {
        /// The parameter, or the key within `queryString`.
        name: String,
        /// The given value.
        value: String,
    },
    /// 400.
    #[error("unknown key {0:?} in queryString")]
    UnknownKey(String),
    /// 400: a page beyond [`super::Options::result_window`].
    #[error("result window is too large")]
    BeyondWindow,
    /// 405.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// 429.
    #[error("too many requests")]
    Throttled,
    /// 400 of the control API and of the few writing calls.
    #[error("{0}")]
    BadRequest(String),
    /// 404 for a path that does not exist.
    #[error("no such resource")]
    NoSuchPath,
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn bad(name: &str, value: &str) -> Self {
        Self::BadParameter {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    /// Returns the status code.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnsupportedGrantType(_)
            | Self::InvalidPageSize
            | Self::BadParameter { .. }
            | Self::UnknownKey(_)
            | Self::BeyondWindow
            | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::BadCredentials | Self::UnknownToken => StatusCode::UNAUTHORIZED,
            Self::NoSuchTenant(_) | Self::NotAPartner(_) | Self::NoSuchPath => {
                StatusCode::NOT_FOUND
            }
            Self::DeadToken(status) | Self::NoSuchAlert { status, .. } => {
                StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::TenantDeactivated(_) => StatusCode::GONE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Throttled => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// Returns the body.
    pub fn body(&self) -> Value {
        let error = |error: &str, description: &str| json!({ "error": error, "error_description": description });
        match self {
            Self::UnsupportedGrantType(kind) => error(
                "unsupported_grant_type",
                &format!("Unsupported grant type: {kind}"),
            ),
            Self::BadCredentials => error("unauthorized", "Bad API credentials"),
            Self::UnknownToken | Self::DeadToken(_) => {
                error("invalid_token", "Invalid access token")
            }
            Self::Throttled => error("throttled", "Too Many Requests"),
            Self::NoSuchAlert { id, .. } => json!({
                "code": "0003",
                "message": format!("No resource found with UUID : {id}"),
            }),
            Self::InvalidPageSize => json!({ "code": "0005", "message": "Invalid page size" }),
            other => json!({ "code": "0005", "message": other.to_string() }),
        }
    }
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        Self::BadRequest(error.to_string())
    }
}
