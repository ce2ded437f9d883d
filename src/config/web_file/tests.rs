use std::fs;

use insta::assert_snapshot;
use tempfile::TempDir;

use super::*;

const EXAMPLE: &str = include_str!("../../../config.web.example.yml");

const HASH: &str = "$2y$10$CMq2l.v60gC.o0f4sxlDTuqb.gAcG0rEPzc08qR8MuqV3wdmXZty2";

/// A folder with a certificate, its key, the key of another one, and a web configuration file.
struct Place(TempDir);

impl Place {
    fn new(text: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        place.write("server.crt", &parameters.self_signed(&key).unwrap().pem());
        place.write(
            "clients-ca.crt",
            &parameters.self_signed(&key).unwrap().pem(),
        );
        place.write("server.key", &key.serialize_pem());
        let other = rcgen::KeyPair::generate().unwrap();
        place.write("other.key", &other.serialize_pem());
        place.write("empty", "");
        place.write("web.yml", text);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;

        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn file(&self) -> WebFile {
        WebFile::new(self.path("web.yml"))
    }

    /// Returns what is reported about the file, without the folder's name.
    fn errors(&self) -> String {
        let error = self.file().read().unwrap_err();
        let text = format!("{:#}", anyhow::Error::new(error));
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn errors(text: &str) -> String {
    Place::new(text).errors()
}

/// Returns the example with every key taken out of its comment.
fn everything() -> String {
    let lines = EXAMPLE.lines().map(|line| {
        let bare = line.trim_start();
        match bare.strip_prefix('#') {
            Some(key) if bare.starts_with("#   ") || !key.starts_with(' ') => {
                let indent = &line[..line.len() - bare.len()];
                format!("{indent}{}", key.trim_start())
            }
            _ => line.to_owned(),
        }
    });
    let text: Vec<String> = lines.collect();
    text.join("\n").replace("burst: 0", "burst: 1")
}

#[test]
fn the_example_can_be_used_as_it_is_and_with_every_key() {
    let place = Place::new(EXAMPLE);
    let (security, warnings) = place.file().read_with_warnings().unwrap();
    assert!(format!("{security:?}").contains("tls: true, passwords: true"));
    assert_eq!(warnings, Vec::<String>::new());
    let place = Place::new(&everything());
    place.file().read().unwrap();
    for key in [
        "client_auth_type",
        "client_allowed_sans",
        "max_version",
        "cipher_suites",
        "prefer_server",
        "curve_pref",
        "http2",
        "Strict-Transport-Security",
        "interval",
    ] {
        let is_key = |line: &str| line.trim_start().starts_with(key);
        assert!(everything().lines().any(is_key), "{key}");
    }
}

#[test]
fn an_empty_file_asks_for_nothing() {
    for text in ["", "{}", "tls_server_config:\n", "tls_server_config: {}\n"] {
        let security = Place::new(text).file().read().unwrap();
        assert!(format!("{security:?}").contains("tls: false, passwords: false"));
    }
}

#[test]
fn certificates_may_stand_in_the_file_itself() {
    let place = Place::new("");
    let indented = |name: &str| {
        let text = fs::read_to_string(place.path(name)).unwrap();
        text.lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    let (cert, key) = (indented("server.crt"), indented("server.key"));
    place.write(
        "web.yml",
        &format!("tls_server_config:\n  cert: |\n{cert}  key: |\n{key}"),
    );
    place.file().read().unwrap();
    place.write(
        "web.yml",
        &format!("tls_server_config:\n  cert: |\n{cert}  key: |\n{key}  key_file: server.key"),
    );
    assert_snapshot!(place.errors(), @r#"web.yml:14:5: tls_server_config.key: cannot be given together with key_file"#);
    place.write(
        "web.yml",
        &format!("tls_server_config:\n  cert: nonsense\n  key: |\n{key}"),
    );
    assert_snapshot!(place.errors(), @r#"web.yml:2:9: tls_server_config.cert: holds no certificate; one in PEM (-----BEGIN CERTIFICATE-----) is needed"#);
}

#[test]
fn the_same_is_returned_until_something_has_changed() {
    let place = Place::new(EXAMPLE);
    let mut file = place.file();
    let first = file.read().unwrap();
    assert!(Arc::ptr_eq(&first, &file.read().unwrap()));
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    place.write("server.crt", &parameters.self_signed(&key).unwrap().pem());
    file.read().unwrap_err();
    place.write("server.key", &key.serialize_pem());
    let second = file.read().unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(Arc::ptr_eq(&second, &file.read().unwrap()));
}

#[test]
fn a_reading_that_hangs_holds_up_no_other_one() {
    let place = Place::new("");
    let load = Arc::new(place.file().into_load());
    let first = load().unwrap();
    let path = place.path("web.yml");
    fs::remove_file(&path).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let hanging = {
        let load = Arc::clone(&load);
        std::thread::spawn(move || load())
    };
    // Opening the pipe for writing fails until somebody reads it.
    let writer = loop {
        let mut options = fs::OpenOptions::new();
        let flags = rustix::fs::OFlags::NONBLOCK.bits();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.cast_signed());
        if let Ok(writer) = options.write(true).open(&path) {
            break writer;
        }
        std::thread::yield_now();
    };
    fs::rename(&path, place.path("pipe")).unwrap();
    place.write("web.yml", "");
    assert!(Arc::ptr_eq(&load().unwrap(), &first));
    drop(writer);
    hanging.join().unwrap().unwrap();
}

#[test]
fn what_others_can_read_and_passwords_in_clear_are_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;

    let place = Place::new(EXAMPLE);
    for name in ["web.yml", "server.key"] {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (_, warnings) = place.file().read_with_warnings().unwrap();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().all(|text| {
        text.contains("(chmod o-r), and hand it to a systemd service with LoadCredential=")
    }));
    // Files in a volume of Kubernetes are the container's own.
    fs::create_dir(place.path("..data")).unwrap();
    let (_, warnings) = place.file().read_with_warnings().unwrap();
    assert_eq!(warnings, [""; 0]);
    let place = Place::new(&format!("basic_auth_users:\n  ann: {HASH}\n"));
    let (_, warnings) = place.file().read_with_warnings().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("in clear"), "{warnings:?}");
}

/// Uses a path below `/run/credentials`, which is there for the service alone.
#[test]
fn whoever_checks_leaves_what_the_exporter_alone_can_read_and_looks_at_the_rest() {
    const HANDED: &str = "/run/credentials/no-such.service/x";
    let place = Place::new("");
    let check = |text: &str| {
        place.write("web.yml", &format!("tls_server_config: {{{text}}}"));
        place.file().read().unwrap_err();
        place.file().check()
    };
    for (text, left, has_certificate) in [
        (
            format!("cert_file: server.crt, key_file: {HANDED}"),
            &["key_file"][..],
            true,
        ),
        (
            format!("cert_file: {HANDED}, key_file: server.key"),
            &["cert_file"],
            false,
        ),
        (
            format!(
                "cert_file: {HANDED}, key_file: {HANDED}, client_ca_file: {HANDED}, client_auth_type: \
                 RequireAndVerifyClientCert"
            ),
            &["cert_file", "key_file", "client_ca_file"],
            false,
        ),
    ] {
        let checked = check(&text).unwrap();
        assert_eq!(checked.left.len(), left.len(), "{:?}", checked.left);
        for (told, key) in checked.left.iter().zip(left) {
            let why = format!(
                "tls_server_config.{key}: cannot read {HANDED}: No such file or directory (os error 2)"
            );
            assert!(told.ends_with(&why), "{told}");
        }
        assert_eq!(checked.has_certificate, has_certificate);
        assert_eq!(checked.certificate_end.is_some(), has_certificate);
        assert_eq!(checked.warnings, [""; 0]);
    }
    let wanted = "client_auth_type: RequireAndVerifyClientCert";
    let rubbish = |what| format!("-----BEGIN {what}-----\nMAA=\n-----END {what}-----\n");
    place.write("rubbish.crt", &rubbish("CERTIFICATE"));
    place.write("rubbish.key", &rubbish("PRIVATE KEY"));
    for (text, told) in [
        (
            format!("cert_file: rubbish.crt, key_file: {HANDED}"),
            "tls_server_config.cert_file: cannot be used: ",
        ),
        (
            format!("cert_file: {HANDED}, key_file: rubbish.key"),
            "tls_server_config.key_file: cannot be used: ",
        ),
        (
            format!("cert_file: empty, key_file: {HANDED}"),
            "tls_server_config.cert_file: holds no certificate",
        ),
        (
            format!("cert_file: nowhere, key_file: {HANDED}"),
            "tls_server_config.cert_file: cannot read ",
        ),
        (
            format!("cert_file: {HANDED}, key_file: server.crt"),
            "tls_server_config.key_file: holds no private key",
        ),
        (
            format!("cert_file: server.crt, key_file: {HANDED}, client_ca_file: empty, {wanted}"),
            "tls_server_config.client_ca_file: holds no certificate",
        ),
        (
            format!(
                "cert_file: server.crt, key_file: other.key, client_ca_file: {HANDED}, {wanted}"
            ),
            "tls_server_config.key_file: does not belong to the certificate",
        ),
        (
            format!(
                "cert_file: {HANDED}, key_file: {HANDED}, min_version: TLS12, max_version: TLS13, curve_preferences: [x]"
            ),
            "tls_server_config.curve_preferences[0]: \"x\" is not supported",
        ),
        (
            format!("key_file: {HANDED}"),
            "tls_server_config.cert_file: is missing",
        ),
    ] {
        let error = check(&text).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let place = Place::new("");
    fs::remove_file(place.path("web.yml")).unwrap();
    assert_snapshot!(place.errors(), @r#"cannot read the web configuration file (web.config_file, --web.config.file) web.yml: No such file or directory (os error 2)"#);
}

#[test]
fn every_mistake_is_told_with_its_place() {
    assert_snapshot!(errors("\
tls_server_confg:
  cert_file: server.crt
http_server_config:
  http2: maybe
  headers:
    X-Frame-Option: deny
    Server: none
    X-Content-Type-Options: sniff
basic_auth_users:
  ann: hunter2
  bob:
  'a:b': $2y$20$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG
rate_limit:
  interval: 1s
"), @r#"
    the configuration has 10 problems:
      web.yml:1:1: tls_server_confg: unknown key; did you mean "tls_server_config"?
      web.yml:4:10: http_server_config.http2: must be true or false, not "maybe"
      web.yml:6:5: http_server_config.headers.X-Frame-Option: unknown key; did you mean "X-Frame-Options"?
      web.yml:7:5: http_server_config.headers.Server: unknown key; the keys here are Content-Security-Policy, X-Frame-Options, X-Content-Type-Options, X-XSS-Protection, Strict-Transport-Security
      web.yml:8:29: http_server_config.headers.X-Content-Type-Options: "sniff" is not one of nosniff
      web.yml:10:8: basic_auth_users.ann: is not a bcrypt hash; make one with `htpasswd -nBC 10 ""`
      web.yml:11:3: basic_auth_users.…: has no value
      web.yml:12:10: basic_auth_users.a…: a user's name cannot have a colon in it
      web.yml:12:10: basic_auth_users.a…: has the cost 20, with which one check takes a minute; use 10 to 14
      web.yml:14:3: rate_limit.burst: must be at least 1, or no request is ever answered
    "#);
    assert_snapshot!(errors("\
tls_server_config:
  cert_file: server.crt
  key_file: no.key
  client_auth_type: RequireAndVerify
  min_version: TLS13
  max_version: TLS12
  cipher_suites:
    - TLS_RSA_WITH_AES_128_CBC_SHA
    - TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA25
    - TLS_AES_128_GCM_SHA256
  curve_preferences: [CurveP521]
"), @r#"
    the configuration has 6 problems:
      web.yml:3:13: tls_server_config.key_file: cannot read no.key: No such file or directory (os error 2)
      web.yml:4:21: tls_server_config.client_auth_type: "RequireAndVerify" is not one of NoClientCert, RequestClientCert, RequireClientCert, RequireAnyClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert; did you mean "RequireAndVerifyClientCert"?
      web.yml:6:16: tls_server_config.max_version: is older than min_version
      web.yml:8:7: tls_server_config.cipher_suites[0]: "TLS_RSA_WITH_AES_128_CBC_SHA" is not supported; there are TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
      web.yml:9:7: tls_server_config.cipher_suites[1]: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA25" is not supported; did you mean "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"? There are TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
      web.yml:11:23: tls_server_config.curve_preferences[0]: "CurveP521" is not supported; did you mean "CurveP256"? There are X25519, CurveP256, CurveP384
    "#);
}

#[test]
fn what_does_not_go_together_is_told() {
    let tls = |keys: &str| {
        let text =
            format!("tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n{keys}");
        errors(&text)
    };
    let told = [
        errors("tls_server_config:\n  min_version: TLS12\n"),
        errors("tls_server_config:\n  cert_file: server.crt\n"),
        errors("tls_server_config:\n  cert_file: server.crt\n  key_file: \"\"\n"),
        errors("tls_server_config:\n  cert_file: empty\n  key_file: server.key\n"),
        errors("tls_server_config:\n  cert_file: server.crt\n  key_file: server.crt\n"),
        errors("tls_server_config:\n  cert_file: server.crt\n  key_file: other.key\n"),
        tls("  min_version: TLS11\n"),
        tls("  max_version: SSL3\n"),
        tls("  client_auth_type: RequireAndVerifyClientCert\n"),
        tls("  client_ca_file: clients-ca.crt\n"),
        tls("  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: empty\n"),
        tls("  client_auth_type: RequestClientCert\n  client_allowed_sans: [a]\n"),
    ];
    assert_snapshot!(told.join("\n"), @r#"
    the configuration has 2 problems:
      web.yml:2:3: tls_server_config.cert_file: is missing; TLS needs cert_file and key_file
      web.yml:2:3: tls_server_config.key_file: is missing; TLS needs cert_file and key_file
    web.yml:2:3: tls_server_config.key_file: is missing; TLS needs cert_file and key_file
    web.yml:3:13: tls_server_config.key_file: is missing; TLS needs cert_file and key_file
    web.yml:2:14: tls_server_config.cert_file: holds no certificate; one in PEM (-----BEGIN CERTIFICATE-----) is needed
    web.yml:3:13: tls_server_config.key_file: holds no private key; one in PEM without a passphrase is needed
    web.yml:3:13: tls_server_config.key_file: does not belong to the certificate
    web.yml:4:16: tls_server_config.min_version: TLS11 is not supported, it can be broken; use TLS12 or TLS13
    web.yml:4:16: tls_server_config.max_version: "SSL3" is not one of TLS12, TLS13
    web.yml:4:21: tls_server_config.client_auth_type: needs client_ca_file, the issuers whose certificates are taken
    web.yml:4:19: tls_server_config.client_ca_file: has no effect without client_auth_type: RequireAndVerifyClientCert
    web.yml:5:19: tls_server_config.client_ca_file: holds no certificate; one in PEM (-----BEGIN CERTIFICATE-----) is needed
    web.yml:5:24: tls_server_config.client_allowed_sans: needs client_auth_type RequireAndVerifyClientCert or RequireAnyClientCert
    "#);
}

/// Files for the exporter-toolkit may name nothing so.
#[test]
fn an_empty_name_of_a_file_is_none() {
    let place = Place::new(
        "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  client_ca_file: \"\"\n",
    );
    place.file().read().unwrap();
}

#[test]
fn no_message_holds_a_hash_or_a_key() {
    for text in [
        "basic_auth_users:\n  ann: hunter2\n",
        "basic_auth_users:\n  ann:hunter2\n",
        "basic_auth_users: hunter2\n",
        "tls_server_config:\n  cert_file: server.crt\n  key: hunter2\n",
        "tls_server_config:\n  cert_file: server.crt\n  key: [hunter2]\n",
    ] {
        let errors = errors(text);
        assert!(!errors.contains("hunter2"), "{errors}");
    }
}

#[test]
fn a_key_where_the_name_of_its_file_belongs_is_refused_and_not_shown() {
    let told = [
        errors(
            "tls_server_config:\n  cert_file: server.crt\n  key_file: '-----BEGIN PRIVATE KEY----- hunter2'\n",
        ),
        errors("tls_server_config:\n  cert_file: https://u:hunter2@h\n  key_file: server.key\n"),
        errors(
            "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  client_ca_file: \"hunter2\\n\"\n  client_auth_type: RequireAndVerifyClientCert\n",
        ),
    ];
    assert!(!told.iter().any(|error| error.contains("hunter2")));
    assert_snapshot!(told.join("\n"), @r#"
    web.yml:3:13: tls_server_config.key_file: is a certificate or key itself, not the name of a file; write it as key, or put it into a file, and name that file here
    web.yml:2:14: tls_server_config.cert_file: is a URL, not the name of a file; write it as cert, or put it into a file, and name that file here
    web.yml:4:19: tls_server_config.client_ca_file: is a text with a line break, not the name of a file; write it as client_ca, or put it into a file, and name that file here
    "#);
}

#[test]
fn how_to_speak_to_the_server_is_told_and_a_broken_file_is_not_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let scheme = |text: &str| {
        fs::write(file.path(), text).unwrap();
        WebFile::scheme(file.path())
    };
    for text in ["", "basic_auth_users: {a: b}\n", "tls_server_config: {}\n"] {
        assert_eq!(scheme(text).unwrap(), "http", "{text}");
    }
    // Whether these files exist is not checked.
    let tls = "tls_server_config:\n  cert_file: a.pem\n  key_file: b.pem\n";
    assert_eq!(scheme(tls).unwrap(), "https");
    let hash = "$2b$12$not.to.be.seen";
    for text in [
        format!("basic_auth_users:\n  a: \"{hash}\n"),
        format!("tls_server_config:\n  key: |\n    {hash}\n  key: |\n    {hash}\n"),
    ] {
        let error = scheme(&text).unwrap_err().to_string();
        let name = file.path().display().to_string();
        assert!(error.contains(&name) && !error.contains(hash), "{error}");
    }
}
