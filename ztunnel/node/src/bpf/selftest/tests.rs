//! Tests of the cases: they pass on plain sockets, and find the known faults of joined ones.

use super::*;

fn show(findings: &[Finding]) {
    for Finding { case, fault, took } in findings {
        let text = fault
            .as_ref()
            .map_or_else(|| "passed".to_owned(), Fault::to_string);
        eprintln!("{case:20} {took:>10.1?}  {text}");
    }
}

/// The cases that fail on joined sockets of Linux 6.18.
const KNOWN_FAULTS: [Case; 9] = [
    Case::BlockingHalfClose,
    Case::BlockingReset,
    Case::Reset,
    Case::SlowReader,
    Case::WouldBlock,
    Case::WaitAll,
    Case::SpliceFrom,
    Case::Urgent,
    Case::ZeroCopy,
];

/// On a busy machine a plain socket may be late, but not every time.
fn run_with_retries(case: Case) -> Finding {
    let mut finding = case.run(&PairKind::Plain);
    for _ in 0..2 {
        if finding.fault.is_some() {
            show(&[finding]);
            finding = case.run(&PairKind::Plain);
        }
    }
    finding
}

#[test]
fn every_case_passes_on_plain_sockets() {
    let findings: Vec<_> = Case::all().map(run_with_retries).collect();
    show(&findings);
    for finding in findings {
        assert!(finding.fault.is_none(), "{finding:?}");
    }
}

#[test]
fn every_case_has_a_row_and_a_name_of_its_own() {
    let names: std::collections::HashSet<_> = Case::all().map(Case::name).collect();
    assert_eq!(names.len(), TABLE.len());
    for case in Case::all() {
        assert_eq!(case.row().case, case);
        let lower = |sign: char| sign.is_ascii_lowercase() || sign == '_';
        assert!(case.name().chars().all(lower), "{case}");
    }
}

/// Ten rounds show cases that depend on timing. On a busy machine a case may sometimes miss its
/// fault, or report one that does not exist.
#[test]
#[ignore = "needs root"]
fn the_known_faults_of_joined_sockets_are_found() {
    const ROUNDS: usize = 10;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut found = Vec::new();
    for _ in 0..ROUNDS {
        let report = run();
        show(&report.findings);
        eprintln!("{report} in {:?}", report.took);
        assert!(report.unavailable.is_none());
        assert!(report.took < Duration::from_secs(10), "{:?}", report.took);
        // One fault of nine is enough to keep joining off.
        let is_known = release.starts_with("6.18.");
        assert!(
            !(is_known && report.passed()),
            "joining would be switched on"
        );
        found.extend(report.failed().map(|(case, _)| case));
    }
    if !release.starts_with("6.18.") {
        return;
    }
    for case in Case::all() {
        let times = found.iter().filter(|found| **found == case).count();
        let expected = match KNOWN_FAULTS.contains(&case) {
            true => times >= ROUNDS - 2,
            false => times <= 2,
        };
        assert!(expected, "{case} failed {times} times");
    }
}

#[test]
fn a_report_is_one_line() {
    let finding = |case, fault| Finding {
        case,
        fault,
        took: Duration::ZERO,
    };
    let fault = Fault::Behaviour {
        found: "no EAGAIN".into(),
    };
    let mut report = Report {
        findings: vec![finding(Case::Peek, None), finding(Case::WouldBlock, None)],
        unavailable: None,
        took: Duration::ZERO,
    };
    assert!(report.passed());
    let fine = "joined sockets behave like TCP sockets on this kernel (2 cases)";
    assert_eq!(report.to_string(), fine);
    report.findings[1].fault = Some(fault);
    assert!(!report.passed());
    let bad =
        "joined sockets do not behave like TCP sockets on this kernel (1 of 2 cases: would_block)";
    assert_eq!(report.to_string(), bad);
    report.findings.clear();
    assert!(!report.passed(), "no case has run");
}
