//! Where a redirect leads, fit to be shown.

use reqwest::Url;

use crate::excerpt::Secrets;

/// The origin alone: path and query can repeat what was sent. So can the host, which may be long, too.
pub(crate) fn origin(location: &str, secrets: &Secrets) -> String {
    match Url::parse(location).map(|url| url.origin()) {
        Ok(origin) if origin.is_tuple() => secrets.excerpt(origin.ascii_serialization().as_bytes()),
        _ => "another path".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn of_a_redirect_only_the_origin_is_named() {
        for (location, named) in [
            (
                "https://user:hunter2@sso:8443/in?token=hunter2#x",
                "https://sso:8443",
            ),
            ("/in?token=hunter2", "another path"),
            ("hunter2:token", "another path"),
            ("hunter2://host/", "another path"),
        ] {
            assert_eq!(origin(location, &Secrets::default()), named);
        }
    }

    #[test]
    fn neither_a_secret_nor_a_long_name_is_shown_of_a_redirects_host() {
        let secrets = Secrets::of(&[Secret::new("Bearer Zq7wRt93kLmXvB2")]);
        for location in [
            "http://Zq7wRt93kLmXvB2.example/",
            "http://%5Aq7wRt93kLmXvB2/",
            "http://x.zq7wrt93k.example/",
        ] {
            let shown = origin(location, &secrets).to_lowercase();
            assert!(!shown.contains("zq7wrt93"), "{shown}");
        }
        let long = format!("http://{}.example/", "a".repeat(300_000));
        assert!(origin(&long, &secrets).len() < 200);
    }
}
