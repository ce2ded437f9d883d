//! What holds for every input.

use proptest::prelude::*;

use super::*;

/// Text that is more often YAML than not.
fn yaml_like() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "accounts",
        "url",
        "tenants",
        "searches",
        "interval",
        "log",
        "sinks",
        "type",
        "headers",
        "state",
        "postgres",
        "web",
        "otlp",
        "file",
        "5s",
        "5",
        "~",
        "true",
        "https://a",
        "&a",
        "*a",
        "<<",
        "!!str",
        "\"",
        "'",
        "|",
        ">",
        "{",
        "}",
        "[",
        "]",
        ",",
        "- ",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "#",
        "\t",
        "---",
        "...",
        "%",
        "\u{0}",
        "\u{feff}",
        "ä",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

#[test]
fn a_forgotten_colon_shows_no_secret() {
    let all = [
        "{client_secret:hunter2}",
        "{client_secret hunter2}",
        "{client_secret=hunter2: }",
        "{hunter2}",
        "{hunter2, hunter2}",
        "{url: x, hunter2 }",
    ]
    .map(|account| errors(&format!("accounts: [{account}]")));
    let otlp = "type: otlp, endpoint: 'http://loki'";
    let headers = ["{Authorization hunter2}", "{hunter2}", "{A:hunter2}"].map(|headers| {
        errors(&minimal_and(&format!(
            "log: {{sinks: [{{{otlp}, headers: {headers}}}]}}"
        )))
    });
    let all = format!("{}\n{}", all.join("\n"), headers.join("\n"));
    assert!(!all.contains("hunter2"), "{all}");
    let is_told = |line: &&str| !line.contains("is missing") && !line.starts_with("the ");
    let told: Vec<&str> = all.lines().filter(is_told).collect();
    assert_snapshot!(told.join("\n"), @r#"
      config.yml:1:13: accounts[0].client_secret…: needs a colon and a space before its value
      config.yml:1:13: accounts[0].client_secret…: needs a colon and a space before its value
      config.yml:1:13: accounts[0].client_secret…: needs a colon and a space before its value
      config.yml:1:13: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
      config.yml:1:13: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
      config.yml:1:22: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
      config.yml:1:18: accounts[0].url: must start with https:// (or http://); write "https://x"
      config.yml:1:21: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
    config.yml:6:63: log.sinks[0].headers.…: has no value
    config.yml:6:63: log.sinks[0].headers.…: has no value
    config.yml:6:63: log.sinks[0].headers.…: has no value
    "#);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in prop_oneof![any::<String>(), yaml_like()]) {
        if let Err(error) = load(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_bytes_in_a_file_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        prop_assert!(Config::load(Some(file.path()), &Overrides::default(), &|_| None).is_err());
    }

    /// Whatever typing error a file has, no message shows its secrets.
    #[test]
    fn no_message_shows_a_secret(at in 0..FULL.len(), cut in 0..24_usize, insert in yaml_like()) {
        let secret = "hunter2";
        let full = FULL.replace("0755", secret).replace("OrgID: acme", "OrgID: hunter2");
        let mut text: Vec<char> = full.chars().collect();
        let end = (at + cut).min(text.len());
        text.splice(at.min(end)..end, insert.chars());
        let text: String = text.into_iter().collect();
        let told = match load(&text) {
            Ok(loaded) => loaded.warnings.join("\n") + &format!("{:?}", loaded.config),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!told.contains(secret), "{}", told);
    }
}
