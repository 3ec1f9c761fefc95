use super::*;

#[test]
fn without_rights_it_says_what_is_missing_and_changes_nothing() {
    let checks = examine(None);
    let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
    for name in [
        "settings",
        "machine.kernel",
        "machine.capabilities",
        "machine.clock",
        "capture.pins",
        "capture.programs",
        "ports.admin",
        "acceleration",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    for check in checks {
        let bad = check.verdict != Verdict::Ok;
        assert_eq!(bad, check.remedy.is_some(), "{check:?}");
    }
}

#[test]
fn settings_that_are_wrong_fail_and_the_rest_is_looked_at_all_the_same() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "node: a\nnonsense: 1\n").unwrap();
    let (_, checks) = read_settings::read(Some(file.path()));
    assert_eq!(checks[0].verdict, Verdict::Fail);
    assert!(checks[0].detail.contains("nonsense"), "{:?}", checks[0]);
}
