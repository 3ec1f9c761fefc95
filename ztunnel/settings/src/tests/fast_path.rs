//! The settings of the fast path.

use super::super::{Acceleration, PathOverride, SameNode};
use super::{GOOD, complaint, load};
use mesh::Uid;

#[test]
fn the_default_is_the_fast_path_with_automatic_acceleration() {
    let settings = load(GOOD, &[]).unwrap();
    assert_eq!(settings.same_node, SameNode::Direct);
    assert_eq!(settings.acceleration, Acceleration::Auto);
    assert_eq!(settings.overrides, []);
    assert_eq!(settings.capture.verdicts, 16_384);

    let text = format!(
        "{GOOD}\nsameNode: tunnel\nacceleration: on\ncapture: {{ verdicts: 1048576 }}\n\
         overrides:\n\
         - {{ workload: cluster1//v1/Pod/default/a, sameNode: direct, acceleration: off }}\n\
         - {{ workload: not/known/yet, acceleration: \"on\" }}\n"
    );
    let settings = load(&text, &[]).unwrap();
    assert_eq!(settings.same_node, SameNode::Tunnel);
    assert_eq!(settings.acceleration, Acceleration::On);
    assert_eq!(settings.capture.verdicts, 1_048_576);
    let entry = |uid: &str, same_node, acceleration| PathOverride {
        workload: Uid(uid.into()),
        same_node,
        acceleration,
    };
    assert_eq!(
        settings.overrides,
        [
            entry(
                "cluster1//v1/Pod/default/a",
                Some(SameNode::Direct),
                Some(Acceleration::Off)
            ),
            entry("not/known/yet", None, Some(Acceleration::On)),
        ]
    );
    assert_eq!(settings.warnings, Vec::<String>::new());
}

#[test]
fn the_environment_takes_precedence_over_the_file() {
    let text = format!("{GOOD}\nsameNode: direct\nacceleration: on\n");
    let variables = [
        ("ZTUNNEL_SAME_NODE", "tunnel"),
        ("ZTUNNEL_ACCELERATION", "off"),
        ("ZTUNNEL_CAPTURE_VERDICTS", "16"),
    ];
    let settings = load(&text, &variables).unwrap();
    assert_eq!(settings.same_node, SameNode::Tunnel);
    assert_eq!(settings.acceleration, Acceleration::Off);
    assert_eq!(settings.capture.verdicts, 16);
}

#[test]
fn exemptions_without_effect_are_warned_about() {
    let text = |by: &str| {
        format!(
            "{GOOD}\ncapture: {{ by: {by}, exemptPorts: [25], exemptSources: [192.0.2.0/24] }}\n"
        )
    };
    let warnings = load(&text("rules"), &[]).unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("capture.exemptPorts: "));
    assert!(warnings[1].starts_with("capture.exemptSources: "));
    let programs = load(&text("programs"), &[]).unwrap();
    assert_eq!(programs.warnings, Vec::<String>::new());
    let bare = load(&format!("{GOOD}\ncapture: {{ by: rules }}\n"), &[]).unwrap();
    assert_eq!(bare.warnings, Vec::<String>::new());
}

#[test]
fn an_override_that_changes_nothing_is_warned_about() {
    let settings = load(&format!("{GOOD}\noverrides: [{{ workload: a }}]\n"), &[]).unwrap();
    assert_eq!(
        settings.warnings,
        ["overrides[0]: changes nothing; it sets neither sameNode nor acceleration"]
    );
}

#[test]
fn they_serialize_in_the_notation_of_the_file() {
    let text =
        format!("{GOOD}\nacceleration: off\noverrides: [{{ workload: a, sameNode: tunnel }}]\n");
    let shown = serde_json::to_value(load(&text, &[]).unwrap()).unwrap();
    assert_eq!(shown["sameNode"], "direct");
    assert_eq!(shown["acceleration"], "off");
    assert_eq!(shown["capture"]["verdicts"], 16_384);
    assert_eq!(
        shown["overrides"],
        serde_json::json!([{ "workload": "a", "sameNode": "tunnel" }])
    );
}

#[test]
fn invalid_values_and_their_messages() {
    for (line, message) in [
        (
            "sameNode: fast",
            "sameNode: \"fast\" is not one of direct, tunnel (line 9)",
        ),
        (
            "acceleration: true",
            "acceleration: invalid type: boolean `true`, expected auto, on or off (line 9)",
        ),
        (
            "acceleration: always",
            "acceleration: \"always\" is not one of auto, on, off (line 9)",
        ),
        (
            "accelaration: auto",
            "accelaration: unknown field, did you mean \"acceleration\"? (line 9)",
        ),
        (
            "overrides: [{ sameNode: direct }]",
            "overrides[0]: missing field `workload` (line 9)",
        ),
        (
            "overrides: [{ workload: a, samenode: direct }]",
            "overrides[0].samenode: unknown field, did you mean \"sameNode\"? (line 9)",
        ),
        (
            "overrides: [{ workload: a }, { workload: b, acceleration: no }]",
            "overrides[1].acceleration: \"no\" is not one of auto, on, off (line 9)",
        ),
        (
            "overrides: [{ workload: '', acceleration: off }]",
            "overrides[0].workload: must not be empty",
        ),
        (
            "overrides: [{ workload: a, sameNode: direct }, { workload: b, sameNode: direct }, { workload: a, acceleration: off }]",
            "overrides[2].workload: \"a\" is already listed at overrides[0].workload",
        ),
    ] {
        assert_eq!(complaint(&format!("{GOOD}{line}\n"), &[]), message);
    }
}
