//! A settings file and, after a line `---`, the content of each file that it references. Accepted
//! settings are the same when they are read again.
#![no_main]

use std::path::Path;

use settings::{ConfigError, Environment, Overrides, Settings, SettingsFile, from_text};
use ztunnel_fuzz::fuzz_target;

fn read(text: &str, named: &str) -> Result<Settings, ConfigError> {
    let path = Path::new("settings.yaml");
    let file = SettingsFile { path, text };
    let read_file = |_: &Path| Ok(named.to_owned());
    from_text(
        file,
        &Environment::default(),
        &Overrides::default(),
        read_file,
    )
}

fuzz_target!(|text: &str| {
    let (file, named) = text.split_once("\n---\n").unwrap_or((text, ""));
    if let Ok(settings) = read(file, named) {
        let again = read(file, named).unwrap();
        assert_eq!(format!("{settings:?}"), format!("{again:?}"));
        assert!(settings.threads.get() > 0 && !settings.trust_domain.is_empty());
    }
});
