//! Problems and warnings about the files of secrets: a file that every user of the machine can
//! read, a folder in place of a file, and content that is hardly meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
};

use http::HeaderValue;

use super::{Config, State};
use crate::{
    deliver::Target,
    error_chain::chain,
    reading,
    secret::{SecretError, SecretSource},
};

/// Folders where container engines put secrets, by default readable by every user of the
/// container.
const OF_CONTAINERS: [&str; 2] = ["/run/secrets", "/var/run/secrets"];

/// The link in the topmost folder of a Kubernetes volume, behind which the volume's files really
/// lie.
const OF_KUBERNETES: &str = "..data";

/// Problems and warnings about the files of secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretFiles {
    /// Why some paths cannot be those of secret files.
    pub problems: Vec<String>,
    /// What works but should be changed, or is hardly meant.
    pub warnings: Vec<String>,
    /// Files that hold no secret yet, or cannot be read here. The part that needs such a file
    /// reports it, too, and tries again.
    pub unusable: Vec<String>,
}

/// What should be in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Key,
    Secret,
    Header,
    DatabaseUrl,
}

impl Config {
    /// Returns a function that checks the files of secrets: whether they are files at all, whether
    /// everybody can read them, and whether keys and secrets hold something that is hardly meant.
    /// Call it on a thread that may block, because a file may lie on a file system that does not
    /// answer.
    pub fn look_at_secret_files(&self) -> impl FnOnce() -> SecretFiles + Send + use<> {
        let secrets = self.secret_files();
        let keys = self.accounts.iter();
        let keys = keys.filter_map(|account| account.options.tls.key_file.clone());
        let private = secrets.iter().filter(|(what, _)| *what != Content::Key);
        // Each file once.
        let private: BTreeSet<PathBuf> =
            private.map(|(_, path)| path.clone()).chain(keys).collect();
        let reread: BTreeMap<PathBuf, Content> = secrets
            .into_iter()
            .map(|(what, path)| (path, what))
            .collect();
        move || {
            let all: BTreeSet<&PathBuf> = private.iter().chain(reread.keys()).collect();
            let exposed = private.iter().filter(|path| is_exposed(path));
            let exposed = exposed.map(|path| warning(path));
            let mut told = SecretFiles {
                problems: all
                    .into_iter()
                    .filter_map(|path| folder_problem(path))
                    .collect(),
                warnings: exposed.collect(),
                unusable: Vec::new(),
            };
            for (path, what) in reread {
                match doubt(&path, what) {
                    Ok(doubt) => told.warnings.extend(doubt),
                    Err(why) => told.unusable.push(why),
                }
            }
            told
        }
    }

    /// Returns the files that are read each time their content is needed, each with what it should
    /// hold.
    fn secret_files(&self) -> Vec<(Content, PathBuf)> {
        let mut sources = Vec::new();
        if let State::Postgres { url, .. } = &self.state {
            sources.push((Content::DatabaseUrl, url));
        }
        for sink in &self.sinks {
            if let Target::Otlp(options) = &sink.target {
                let values = options.headers.values();
                sources.extend(values.map(|value| (Content::Header, value)));
            }
        }
        for account in &self.accounts {
            sources.push((Content::Key, &account.options.client_id));
            sources.push((Content::Secret, &account.options.client_secret));
        }
        let files = sources
            .into_iter()
            .filter_map(|(what, source)| match source {
                SecretSource::File(path) => Some((what, path.clone())),
                SecretSource::Value(_) => None,
            });
        files.collect()
    }
}

/// Whether every user of the machine can read the file. Files of a container do not count, because
/// a container has one user. This may block: call it as [`Config::look_at_secret_files`] does, or
/// where the file is read anyway.
pub(super) fn is_exposed(path: &Path) -> bool {
    let is_of_container = || {
        OF_CONTAINERS.iter().any(|folder| path.starts_with(folder))
            || path
                .ancestors()
                .skip(1)
                .any(|folder| folder.join(OF_KUBERNETES).exists())
    };
    is_public(path) && !is_of_container()
}

/// Whether every user of the machine can read a regular file: its mode allows it, and the folders
/// that the file really lies in let everybody through. Devices and folders do not count, because
/// they have their rights for other reasons.
fn is_public(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;

    const READ_BY_OTHERS: u32 = 0o004;
    const ENTERED_BY_OTHERS: u32 = 0o001;
    let may = |path: &Path, right| {
        std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & right != 0)
    };
    path.is_file()
        && may(path, READ_BY_OTHERS)
        && std::fs::canonicalize(path).is_ok_and(|path| {
            let mut folders = path.ancestors().skip(1);
            folders.all(|folder| may(folder, ENTERED_BY_OTHERS))
        })
}

fn warning(path: &Path) -> String {
    format!(
        "{}: holds a secret and every user of this machine can read it; take the right away (chmod o-r)",
        path.display()
    )
}

/// Says why the path cannot be that of a secret file.
fn folder_problem(path: &Path) -> Option<String> {
    if !path.is_dir() {
        return None;
    }
    let read = SecretSource::File(path.to_owned()).read();
    read.err().map(|error| error.to_string())
}

/// Says what about the content of the file is hardly meant, if anything is. The error says why the
/// file is of no use. A pipe is left to the part that needs it, because a pipe can be read only
/// once.
fn doubt(path: &Path, what: Content) -> Result<Option<String>, String> {
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(None);
    }
    let value = SecretSource::File(path.to_owned()).read();
    let value = value.map_err(|error| unusable(&error, path, what))?;
    let shown = path.display();
    if what == Content::Header && HeaderValue::from_str(value.expose()).is_err() {
        return Err(format!(
            "the secret file {shown} holds characters that a header cannot; write the {what} into it and nothing else"
        ));
    }
    let doubt = match what {
        Content::Key | Content::Secret => value.doubt(),
        Content::Header => value.doubt_as_header(),
        Content::DatabaseUrl => None,
    };
    Ok(doubt.map(|doubt| format!("{shown}: the {what} in it {doubt}")))
}

/// Says why a file is of no use, and what to do. This is not certainly a mistake: the exporter
/// starts all the same, and reads the file again whenever it needs the content.
fn unusable(error: &SecretError, path: &Path, what: Content) -> String {
    let next = match error {
        SecretError::Read { source, .. } if reading::is_for_exporter_alone(path, source) => {
            return reading::left_to_exporter(&chain(error));
        }
        SecretError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            format!("the exporter needs the {what} in it")
        }
        SecretError::Read { .. } => "the exporter has to be able to read it".to_owned(),
        SecretError::Unusable { .. } => {
            format!("write the {what} into it, as UTF-8 text and nothing else")
        }
    };
    format!("{}; {next}", chain(error))
}

// === impl Content ===

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "key",
            Self::Secret => "secret",
            Self::Header => "header's value",
            Self::DatabaseUrl => "URL of the database",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;
    use crate::config::Overrides;

    #[test]
    fn a_file_of_a_secret_that_everybody_can_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for name in ["id", "secret", "key", "url", "header", "ca"] {
            fs::write(at(name), "hunter2").unwrap();
        }
        let text = format!(
            "accounts: [{{url: 'https://h', client_id_file: {id}, client_secret_file: {secret}, tenants: [a], \
             tls: {{ca_file: {ca}, cert_file: {ca}, key_file: {key}}}}}]\n\
             state: {{postgres: {{url_file: {url}}}}}\n\
             log: {{sinks: [{{type: otlp, endpoint: 'https://h', headers_files: {{a: {header}, b: {header}}}}}]}}\n",
            id = at("id"),
            secret = at("secret"),
            ca = at("ca"),
            key = at("key"),
            url = at("url"),
            header = at("header"),
        );
        let config = at("config.yml");
        fs::write(&config, text).unwrap();
        let config = Config::load(Some(Path::new(&config)), &Overrides::default(), &|_| None);
        let config = config.unwrap().config;
        let set = |mode| {
            for name in ["secret", "key", "url", "header"] {
                fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
            }
        };
        set(0o644);
        let warnings = || config.look_at_secret_files()().warnings;
        let told = warnings();
        let expected = ["header", "key", "secret", "url"].map(|name| warning(Path::new(&at(name))));
        assert_eq!(told, expected);
        set(0o640);
        assert_eq!(warnings(), [""; 0]);
        assert_eq!(config.look_at_secret_files()().unusable, [""; 0]);
        fs::write(at("header"), "Bearer ${TOKEN}").unwrap();
        let doubt = "the header's value in it holds a variable, and variables are not expanded; write its value";
        assert_eq!(warnings(), [format!("{}: {doubt}", at("header"))]);
        fs::write(at("header"), "Bearer\nhunter2").unwrap();
        fs::write(at("url"), "").unwrap();
        let (header, url) = (at("header"), at("url"));
        let expected = [
            format!(
                "the secret file {header} holds characters that a header cannot; write the header's value into it \
                 and nothing else"
            ),
            format!(
                "the secret file {url} is empty; write the URL of the database into it, as UTF-8 text and nothing else"
            ),
        ];
        assert_eq!(config.look_at_secret_files()().unusable, expected);
        set(0o644);
        fs::set_permissions(folder.path(), Permissions::from_mode(0o750)).unwrap();
        assert_eq!(warnings(), [""; 0]);
    }

    #[test]
    fn what_is_no_file_or_holds_what_is_hardly_meant_is_told_and_nothing_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let look = |id: &str, secret: &str| {
            let text = format!(
                "accounts: [{{url: 'https://h', client_id_file: {id}, client_secret_file: {secret}, tenants: [a]}}]\n"
            );
            fs::write(at("config.yml"), text).unwrap();
            let path = at("config.yml");
            let loaded = Config::load(Some(Path::new(&path)), &Overrides::default(), &|_| None);
            loaded.unwrap().config.look_at_secret_files()()
        };
        fs::write(at("secret"), "\"hunter2\"\n").unwrap();
        fs::set_permissions(at("secret"), Permissions::from_mode(0o600)).unwrap();
        fs::write(at("id"), "$KEY\n").unwrap();
        let told = look(&at("id"), &at("secret"));
        assert_eq!(told.problems, [""; 0]);
        let [id, secret] = &told.warnings[..] else {
            panic!("{told:?}")
        };
        assert!(id.contains("id: the key in it is a variable"), "{id}");
        let mark = "secret: the secret in it begins or ends with a quotation mark";
        assert!(secret.contains(mark), "{secret}");
        assert!(!secret.contains("hunter"), "{secret}");

        fs::write(at("secret"), "hunter2\n").unwrap();
        fs::write(at("id"), "key\n").unwrap();
        let told = look(&at("id"), &at("secret"));
        assert_eq!(told, SecretFiles::default());
        let told = look("/dev/null", "/dev/null");
        assert_eq!(told, SecretFiles::default());

        let big = "x".repeat(70_000);
        let not_utf8 = "is not UTF-8 text; write the secret into it";
        for (bytes, why) in [
            (&b""[..], "is empty; write the secret into it"),
            (b"\n", "is empty; write the secret into it"),
            (b"\xff\xfeh\0u\0n\0t\0e\0r\0", not_utf8),
            (b"hunter\xe9", not_utf8),
            (big.as_bytes(), "is larger than 64 KiB; write the secret"),
        ] {
            fs::write(at("secret"), bytes).unwrap();
            let told = look(&at("id"), &at("secret"));
            assert_eq!((&told.problems[..], &told.warnings[..]), (&[][..], &[][..]));
            let [unusable] = &told.unusable[..] else {
                panic!("{told:?}")
            };
            let expected = format!("the secret file {} {why}", at("secret"));
            assert!(unusable.starts_with(&expected), "{unusable}");
            assert!(!unusable.contains("hunter"), "{unusable}");
        }
        fs::remove_file(at("secret")).unwrap();
        let handed = "/run/credentials/no-such.service/key";
        let told = look(handed, &at("secret"));
        let missing = |path: &str| {
            format!("cannot read the secret file {path}: No such file or directory (os error 2); ")
        };
        let mut expected = [
            missing(handed) + "whether it can be used shows when the exporter starts",
            missing(&at("secret")) + "the exporter needs the secret in it",
        ];
        expected.sort();
        assert_eq!(told.unusable, expected);
        assert_eq!((&told.problems[..], &told.warnings[..]), (&[][..], &[][..]));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let told = look(&at("id"), &at(""));
        let expected = format!("the secret file {} is a folder; name a file in it", at(""));
        assert_eq!(told.problems, [expected]);
        assert_eq!(told.warnings, [""; 0]);
    }

    #[test]
    fn what_counts_is_where_a_file_really_lies() {
        let (open, closed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (folder, mode) in [(&open, 0o755), (&closed, 0o700)] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            let file = folder.path().join("file");
            fs::write(&file, "hunter2").unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        }
        let link = |from: &Path, to: &Path| {
            let link = from.join("link");
            symlink(to.join("file"), &link).unwrap();
            link
        };
        assert!(!is_exposed(&link(open.path(), closed.path())));
        assert!(is_exposed(&link(closed.path(), open.path())));
    }

    #[test]
    fn what_a_container_is_given_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("..2026_01_01")).unwrap();
        fs::write(at("..2026_01_01/secret"), "hunter2").unwrap();
        fs::set_permissions(at("..2026_01_01/secret"), Permissions::from_mode(0o644)).unwrap();
        symlink("..2026_01_01/secret", at("secret")).unwrap();
        assert!(is_exposed(&at("secret")));
        // The layout of a volume with `items` whose path names a folder.
        fs::create_dir(at("..2026_01_01/folder")).unwrap();
        fs::copy(at("secret"), at("..2026_01_01/folder/nested")).unwrap();
        symlink("..2026_01_01/folder", at("folder")).unwrap();
        assert!(is_exposed(&at("folder/nested")));
        symlink("..2026_01_01", at("..data")).unwrap();
        for name in [
            "secret",
            "folder/nested",
            "..data/secret",
            "..data/folder/nested",
        ] {
            assert!(!is_exposed(&at(name)), "{name}");
        }
    }

    #[test]
    fn a_configuration_that_holds_a_secret_is_warned_of_unless_a_container_is_given_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("config.yml");
        let account = "url: 'https://h', client_id: a, client_secret: b, tenants: [a]";
        fs::write(&path, format!("accounts: [{{{account}}}]\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let warnings = || {
            let loaded = Config::load(Some(&path), &Overrides::default(), &|_| None);
            loaded.unwrap().warnings
        };
        assert_eq!(warnings().len(), 1);
        fs::create_dir(folder.path().join(OF_KUBERNETES)).unwrap();
        assert_eq!(warnings(), [""; 0]);
    }
}
