//! What stands between a request and the site: passwords, limits, and the headers of every answer.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{Site, security::Verdict, text};

/// Allows no script and no request to any site; the style is part of the page.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; \
     base-uri 'none'; frame-ancestors 'none'",
);

const CHALLENGE: HeaderValue =
    HeaderValue::from_static("Basic realm=\"opsramp-exporter\", charset=\"UTF-8\"");

/// The client's address, as an extension of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client(pub(super) IpAddr);

/// Adds to every answer the headers that keep a browser from being used against the exporter, and
/// the headers that the web configuration asks for.
pub(super) async fn secure(
    State(site): State<Arc<Site>>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ] {
        headers.insert(name, value);
    }
    site.guard.current().await.decorate(headers);
    response
}

/// Lets requests pass that may see the site.
pub(super) async fn authorize(
    State(site): State<Arc<Site>>,
    request: Request,
    next: Next,
) -> Response {
    let security = site.guard.current().await;
    if !security.has_room() {
        return text(StatusCode::TOO_MANY_REQUESTS, "too many requests\n");
    }
    let client = request
        .extensions()
        .get()
        .map_or(IpAddr::from([0, 0, 0, 0]), |Client(address)| *address);
    match security.admit(request.headers(), client).await {
        Verdict::Welcome => next.run(request).await,
        Verdict::Refused => {
            let refusal = text(
                StatusCode::UNAUTHORIZED,
                "a user name and a password are needed\n",
            );
            ([(header::WWW_AUTHENTICATE, CHALLENGE)], refusal).into_response()
        }
        Verdict::Busy => {
            let refusal = text(
                StatusCode::TOO_MANY_REQUESTS,
                "too many passwords are being checked; try again in a moment\n",
            );
            let later = HeaderValue::from_static("1");
            ([(header::RETRY_AFTER, later)], refusal).into_response()
        }
    }
}
