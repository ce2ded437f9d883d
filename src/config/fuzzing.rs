//! What must hold for any configuration file.

use std::{fs, path::Path, sync::Arc};

use super::{Config, ConfigError, Loaded, Source, WebFile, overrides::Overrides};

fn load(text: &str) -> Result<Loaded, ConfigError> {
    let source = Source {
        name: Path::new("config.yml"),
        text,
        is_exposed: false,
    };
    Config::parse(Some(source), &Overrides::default(), &|_| None)
}

/// Checks that a text is either refused with a reason, or is a configuration that is printed as a
/// file with the same meaning.
///
/// # Panics
/// If that does not hold.
pub fn configuration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let config = match load(text) {
        Ok(loaded) => loaded.config,
        Err(error) => {
            assert!(!error.to_string().trim().is_empty(), "a reason is given");
            return;
        }
    };
    let printed = config.to_yaml();
    let again = load(&printed).map(|loaded| loaded.config.to_yaml());
    assert_eq!(again.map_err(|error| error.to_string()), Ok(printed));
}

/// Checks that a file is either refused, each time with the same reason, or accepted, and that
/// reading an unchanged file again builds nothing anew.
///
/// # Panics
/// If that does not hold.
pub fn web_configuration(data: &[u8]) {
    let folder = crate::fuzzing::folder();
    let path = folder.path().join("web.yml");
    fs::write(&path, data).expect("the file can be written");
    let mut file = WebFile::new(path);
    match file.read_with_warnings() {
        Ok((security, warnings)) => {
            let (again, repeated) = file.read_with_warnings().expect("it was taken before");
            assert!(Arc::ptr_eq(&security, &again));
            assert_eq!(warnings, repeated);
        }
        Err(error) => {
            assert!(!error.to_string().trim().is_empty(), "a reason is given");
            let again = file.read().expect_err("it was refused before");
            assert_eq!(error.to_string(), again.to_string());
        }
    }
}
