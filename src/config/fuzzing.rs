//! What must hold for any configuration file.

use std::path::Path;

use super::{Config, ConfigError, Loaded, Source, overrides::Overrides};

fn load(text: &str) -> Result<Loaded, ConfigError> {
    let source = Source {
        name: Path::new("config.yml"),
        text,
        is_public: false,
    };
    Config::parse(Some(source), &Overrides::default(), &|_| None)
}

/// A text is refused with a reason, or it is a configuration that is printed as a file which
/// means the same.
///
/// # Panics
/// Where that does not hold.
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
