//! Whether this kernel can join the two sockets of a connection correctly (acceleration).

use super::Check;
use crate::bpf::selftest::{self, Finding, Report};
use settings::{Acceleration, Settings};

pub(super) fn examine(settings: &Settings) -> Vec<Check> {
    checks(settings.acceleration, &selftest::run())
}

fn checks(setting: Acceleration, report: &Report) -> Vec<Check> {
    let mut checks = vec![summary(setting, report)];
    checks.extend(report.findings.iter().map(case));
    checks
}

fn summary(setting: Acceleration, report: &Report) -> Check {
    let name = "acceleration";
    let text = report.to_string();
    match setting {
        Acceleration::Off => Check::ok(name, format!("off by the settings; {text}")),
        _ if report.passed() => Check::ok(name, format!("on; {text}")),
        Acceleration::Auto => Check::ok(name, format!("off; {text}")),
        Acceleration::On if report.unavailable.is_some() => Check::warn(
            name,
            text,
            "set acceleration to auto: this kernel cannot join connections",
        ),
        Acceleration::On => Check::warn(
            name,
            format!("on by the settings; {text}"),
            "set acceleration to auto, unless every application of this node tolerates the failed \
             cases below",
        ),
    }
}

/// A failed case is only a warning: without acceleration the proxy is slower, but correct.
fn case(finding: &Finding) -> Check {
    let name = format!("acceleration.{}", finding.case);
    match &finding.fault {
        None => Check::ok(name, finding.case.proves()),
        Some(fault) => Check::warn(
            name,
            format!("{fault}; expected: {}", finding.case.proves()),
            "none needed while acceleration is auto or off",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bpf::selftest::{Case, Fault};
    use crate::doctor::Status;

    fn report(fault: Option<&str>) -> Report {
        Report {
            findings: vec![Finding {
                case: Case::Peek,
                fault: fault.map(|found| Fault::Behaviour {
                    found: found.to_owned(),
                }),
                took: Duration::ZERO,
            }],
            unavailable: None,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn a_faulty_kernel_is_not_a_failed_check() {
        use Acceleration::{Auto, Off, On};
        use Status::{Ok, Warn};
        for (setting, fault, expected, start) in [
            (Auto, None, [Ok, Ok], "on; "),
            (Auto, Some("gone"), [Ok, Warn], "off; "),
            (On, Some("gone"), [Warn, Warn], "on by the settings"),
            (Off, None, [Ok, Ok], "off by the settings"),
        ] {
            let checks = checks(setting, &report(fault));
            let statuses: Vec<_> = checks.iter().map(|check| check.status).collect();
            assert_eq!(statuses, expected);
            assert!(checks[0].detail.starts_with(start), "{}", checks[0].detail);
            assert_eq!(checks[1].name, "acceleration.peek");
        }
    }
}
