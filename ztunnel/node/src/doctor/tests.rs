use super::*;

#[test]
fn every_check_that_is_not_ok_has_a_remedy() {
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
        let bad = check.status != Status::Ok;
        assert_eq!(bad, check.remedy.is_some(), "{check:?}");
    }
}

#[test]
fn invalid_settings_fail_and_the_other_checks_run() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "node: a\nnonsense: 1\n").unwrap();
    let (_, checks) = read_settings::read(Some(file.path()));
    assert_eq!(checks[0].status, Status::Fail);
    assert!(checks[0].detail.contains("nonsense"), "{:?}", checks[0]);
}
