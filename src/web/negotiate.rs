//! What a request's headers say about the answer that the client wants.

use axum::http::{HeaderMap, header};

/// Whether the client accepts gzip, and prefers it at least as much as no compression.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter();
    let items = lines.filter_map(|line| line.to_str().ok());
    for item in items.flat_map(|line| line.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = quality(parts);
        match coding.as_str() {
            "gzip" | "x-gzip" => gzip = Some(quality),
            "identity" => identity = Some(quality),
            "*" => any = Some(quality),
            _ => {}
        }
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    // If the client does not mention `identity`, no compression is acceptable, but not preferred.
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
}

/// Returns the weight of a coding; a weight that cannot be read counts as a refusal.
fn quality<'a>(parameters: impl Iterator<Item = &'a str>) -> f32 {
    let weight = parameters
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    match weight {
        None => 1.0,
        Some((_, value)) => {
            let value = value.trim().parse::<f32>().ok();
            value
                .filter(|value| (0.0..=1.0).contains(value))
                .unwrap_or(0.0)
        }
    }
}

/// Whether a browser sends the request on behalf of a page of another site. Programs such as curl
/// send neither header.
pub(super) fn comes_from_another_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return !matches!(site, "same-origin" | "none");
    }
    match text("origin") {
        None => headers.contains_key(header::ORIGIN),
        Some(origin) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_none() || authority != text("host")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn gzip_is_sent_to_those_who_take_it() {
        for (line, expected) in [
            ("gzip", true),
            ("GZIP", true),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; Q=0.0", false),
            ("gzip;q=nonsense", false),
            ("identity", false),
            ("identity;q=0.5, gzip;q=0.4", false),
            ("identity;q=0.5, gzip;q=0.5", true),
            ("*", true),
            ("*;q=0", false),
            ("gzip;q=0, *", false),
            ("br", false),
            ("", false),
        ] {
            let given = headers(&[("accept-encoding", line)]);
            assert_eq!(accepts_gzip(&given), expected, "{line:?}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
        let two_lines = headers(&[("accept-encoding", "br"), ("accept-encoding", "gzip")]);
        assert!(accepts_gzip(&two_lines));
    }

    #[test]
    fn a_page_of_another_site_is_told_from_a_program_and_from_our_own() {
        let host = ("host", "localhost:10836");
        for (pairs, expected) in [
            (&[host][..], false),
            (&[host, ("origin", "http://localhost:10836")], false),
            (&[host, ("origin", "http://evil.example")], true),
            (&[host, ("origin", "null")], true),
            (&[host, ("sec-fetch-site", "cross-site")], true),
            (&[host, ("sec-fetch-site", "same-site")], true),
            (&[host, ("sec-fetch-site", "same-origin")], false),
            (&[host, ("sec-fetch-site", "none")], false),
        ] {
            assert_eq!(
                comes_from_another_site(&headers(pairs)),
                expected,
                "{pairs:?}"
            );
        }
    }
}
