//! Answers on their way out: written, compressed, and spoilt if there is a fault.

use std::convert::Infallible;
use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::{Answer, NoAnswer, ResetSwitch};
use crate::simulator::fault::{self, Fault};
use crate::simulator::refusal::Refusal;
use crate::simulator::render::to_bytes;

/// The size, in bytes, from which on a body is worth compressing.
const COMPRESSED_FROM: usize = 1024;

/// An answer that can still be spoilt.
pub(super) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// What follows the beginning of a body that is not sent completely.
#[derive(Clone, Copy)]
enum Cut {
    /// Nothing, for ever.
    Silence,
    /// The end of the connection.
    Break,
}

/// Returns the response of a fault that hides the API.
pub(super) async fn fault_response(fault: Fault, reset: &ResetSwitch) -> Response {
    let json = "application/json;charset=UTF-8";
    let html = "text/html; charset=utf-8";
    let plain = |kind: &'static str, body: Vec<u8>| {
        ([(CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
    };
    match fault {
        Fault::Status {
            code,
            body,
            headers,
        } => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
            let mut response = match body {
                Some(body) if body.trim_start().starts_with(['{', '[']) => {
                    plain(json, body.into_bytes())
                }
                Some(body) => plain(html, body.into_bytes()),
                None => plain(html, fault::gateway_page(code).into_bytes()),
            };
            *response.status_mut() = status;
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::try_from(name), HeaderValue::try_from(value))
                {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Fault::Html => plain(html, fault::LOGIN_PAGE.into()),
        Fault::Body { text } => plain(json, text.into_bytes()),
        Fault::Empty => plain(json, Vec::new()),
        Fault::NoResults => plain(json, b"{}".to_vec()),
        Fault::Deep { depth } => plain(json, fault::deep(depth)),
        Fault::Huge { bytes } => {
            let mut response = Response::new(huge(bytes));
            let kind = HeaderValue::from_static(json);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        // A large bomb takes seconds to make, and other requests must be answered meanwhile.
        Fault::GzipBomb { bytes } => match spawn_blocking(move || fault::gzip_bomb(bytes)).await {
            Ok(Ok(bomb)) => {
                let mut response = plain(json, bomb);
                let gzip = HeaderValue::from_static("gzip");
                response.headers_mut().insert(CONTENT_ENCODING, gzip);
                response
            }
            Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
        Fault::Redirect { code, location } => {
            let mut response = plain(html, Vec::new());
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::FOUND);
            if let Ok(location) = HeaderValue::try_from(location) {
                response.headers_mut().insert(LOCATION, location);
            }
            response
        }
        _ => {
            reset.0.store(true, Ordering::Relaxed);
            let mut response = Response::new(Body::empty());
            response.extensions_mut().insert(NoAnswer);
            response
        }
    }
}

/// Returns the body of a document of about this many bytes.
fn huge(bytes: u64) -> Body {
    let item = format!(
        "{{\"uniqueId\":\"1\",\"subject\":\"{}\"}},",
        "x".repeat(1 << 16)
    );
    let item = Bytes::from(item);
    let head = Bytes::from_static(b"{\"totalResults\":1,\"results\":[");
    let start = (Some(head), bytes);
    Body::from_stream(stream::unfold(start, move |(head, left)| {
        let piece = match head {
            Some(head) => Some((head, left)),
            None if left == 0 => None,
            None => Some((item.clone(), left.saturating_sub(item.len() as u64))),
        };
        async move { piece.map(|(piece, left)| (Ok::<_, Infallible>(piece), (None, left))) }
    }))
}

/// Returns a body that comes in pieces of a size, with a pause before each piece.
fn in_pieces(body: Bytes, size: usize, pause: Duration) -> Body {
    Body::from_stream(stream::unfold(body, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(pause).await;
        let piece = rest.split_to(size.clamp(1, rest.len()));
        Some((Ok::<_, Infallible>(piece), rest))
    }))
}

/// Returns the beginning of a body, followed by `cut`.
fn cut_short(mut body: Bytes, at: usize, cut: Cut) -> Body {
    let first = body.split_to(at.min(body.len()));
    Body::from_stream(stream::unfold(Some(first), move |first| async move {
        if let Some(first) = first {
            return Some((Ok(first), None));
        }
        match cut {
            Cut::Silence => std::future::pending().await,
            Cut::Break => {
                // A reset discards what is still on its way, so give the beginning time to arrive.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((
                    Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
                    None,
                ))
            }
        }
    }))
}

// === impl Reply ===

impl Reply {
    pub(super) fn of(
        outcome: Result<Answer, Refusal>,
        mut headers: HeaderMap,
        now: Timestamp,
    ) -> Self {
        let (status, body) = match outcome {
            Ok(Answer::Page(page)) => (StatusCode::OK, page.to_json(now)),
            Ok(Answer::Detail(detail)) => (StatusCode::OK, detail.to_json(now)),
            Ok(Answer::Clients(page)) => (StatusCode::OK, page.to_json()),
            Ok(Answer::Value(value)) => (StatusCode::OK, to_bytes(&value, 0)),
            Err(refusal) => (refusal.status(), to_bytes(&refusal.body(), 0)),
        };
        let kind = HeaderValue::from_static("application/json;charset=UTF-8");
        headers.insert(CONTENT_TYPE, kind);
        Self {
            status,
            headers,
            body,
        }
    }

    pub(super) fn compress(&mut self) {
        self.headers
            .insert(VARY, HeaderValue::from_static("accept-encoding"));
        if self.body.len() < COMPRESSED_FROM {
            return;
        }
        let buffer = Vec::with_capacity(self.body.len() / 8);
        let mut encoder = GzEncoder::new(buffer, Compression::fast());
        // Writing to a `Vec` does not fail; if it did, the answer would be sent uncompressed.
        if encoder.write_all(&self.body).is_ok()
            && let Ok(compressed) = encoder.finish()
        {
            self.body = compressed;
            self.headers
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }

    /// Turns the reply into a response, with what the fault does on the way.
    pub(super) async fn deliver(self, fault: Option<Fault>, reset: &ResetSwitch) -> Response {
        let body = match fault {
            Some(Fault::SlowHeaders { seconds }) => {
                tokio::time::sleep(seconds).await;
                return self.into_response();
            }
            Some(Fault::SlowBody { bytes, seconds }) => {
                in_pieces(Bytes::from(self.body.clone()), bytes, seconds)
            }
            Some(Fault::Stall { bytes }) => {
                cut_short(Bytes::from(self.body.clone()), bytes, Cut::Silence)
            }
            Some(Fault::ResetMidBody) => {
                reset.0.store(true, Ordering::Relaxed);
                let half = self.body.len() / 2;
                cut_short(Bytes::from(self.body.clone()), half, Cut::Break)
            }
            _ => return self.into_response(),
        };
        let length = HeaderValue::from(self.body.len());
        let mut response = self.into_response();
        response.headers_mut().insert(CONTENT_LENGTH, length);
        *response.body_mut() = body;
        response
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        (self.status, self.headers, self.body).into_response()
    }
}
