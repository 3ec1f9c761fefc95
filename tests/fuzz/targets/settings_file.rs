//! The settings file and, behind a line `---`, the local file that it may name. Bad settings are an error; what is
//! accepted is the same when it is read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztunnel::config::Environment;
use ztunnel::fuzzing::config::settings;

fuzz_target!(|text: &str| {
    let (file, named) = text.split_once("\n---\n").unwrap_or((text, ""));
    let environment = Environment::default();
    if let Ok(read) = settings(file, &environment, named) {
        let again = settings(file, &environment, named).unwrap();
        assert_eq!(format!("{read:?}"), format!("{again:?}"));
        assert!(read.threads.get() > 0 && !read.trust_domain.is_empty());
    }
});
