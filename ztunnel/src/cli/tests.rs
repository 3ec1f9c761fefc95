use anyhow::bail;
use clap::CommandFactory;
use serde_json::json;

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
}

fn proxy(line: &str) -> ProxyArgs {
    match parse(line).unwrap() {
        Command::Proxy(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn refused(line: &str) -> String {
    parse(line).unwrap_err().to_string()
}

fn code(line: &str, roles: &Roles) -> ExitCode {
    run(line.split_whitespace().map(OsString::from), roles)
}

const SUCCEEDING: Roles = Roles {
    proxy: |_| Ok(()),
    check: |_| Ok(json!({ "node": "a" })),
    doctor: |_| Vec::new(),
    remove: |_| Ok(Removed::Pins("/d".into())),
    prepare: |_| Ok(NodePreparation::Mounted),
    unmount: |_| Ok(true),
};

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_arguments_of_istios_chart_are_accepted() {
    let args = proxy("ztunnel proxy ztunnel");
    assert_eq!(
        (args.config, args.overrides),
        (None, proxy::Overrides::default())
    );
    assert!(!args.take_over);
    assert!(proxy("ztunnel proxy --take-over").take_over);
}

#[test]
fn flags_are_parsed_into_their_types() {
    let args = proxy(
        "ztunnel proxy --config a.yaml --node a --threads 2 --log info,ztunnel::node::proxy=debug \
         --log-format json --admin 127.0.0.1:1 --metrics [::]:2 --readiness 0.0.0.0:3",
    );
    assert_eq!(args.config.as_deref(), Some(Path::new("a.yaml")));
    assert_eq!(args.overrides.node.as_deref(), Some("a"));
    assert_eq!(args.overrides.threads.map(Into::into), Some(2_usize));
    assert_eq!(
        args.overrides.log.unwrap().to_string(),
        "info,ztunnel::node::proxy=debug"
    );
    assert_eq!(args.overrides.metrics, Some("[::]:2".parse().unwrap()));
}

#[test]
fn a_usage_error_names_the_expected_values() {
    for (line, expected) in [
        ("ztunnel proxy waypoint", "[possible values: ztunnel]"),
        ("ztunnel proxy --log loud", "\"loud\" is not a level"),
        ("ztunnel proxy --log-format xml", "expected text or json"),
        ("ztunnel proxy --threads 0", "--threads"),
        ("ztunnel proxy --conf a.yaml", "--config"),
        ("ztunnel proxi", "proxy"),
        (
            "ztunnel config check -o xml",
            "[possible values: text, json]",
        ),
    ] {
        let text = refused(line);
        assert!(text.contains(expected), "{line}: {text}");
    }
}

#[test]
fn exit_codes_distinguish_failures_from_usage_errors() {
    let failing = Roles {
        proxy: |_| bail!("no"),
        check: |_| bail!("bad settings"),
        doctor: |_| {
            vec![Check {
                name: "a".to_owned(),
                status: ::node::doctor::Status::Fail,
                detail: "not there".to_owned(),
                remedy: None,
            }]
        },
        remove: |_| bail!("not permitted"),
        prepare: |_| bail!("not permitted"),
        unmount: |_| bail!("not permitted"),
    };
    for (line, roles, expected) in [
        ("ztunnel proxy", &SUCCEEDING, 0),
        ("ztunnel proxy", &failing, 1),
        ("ztunnel config check --config a.yaml", &SUCCEEDING, 0),
        ("ztunnel config check --config a.yaml", &failing, 1),
        ("ztunnel doctor", &SUCCEEDING, 0),
        ("ztunnel doctor --config a.yaml -o json", &failing, 1),
        ("ztunnel kernel remove", &SUCCEEDING, 0),
        ("ztunnel kernel remove --directory /x", &failing, 1),
        (
            "ztunnel kernel remove --config a.yaml --node a --log debug",
            &SUCCEEDING,
            0,
        ),
        ("ztunnel node prepare", &SUCCEEDING, 0),
        ("ztunnel node prepare", &failing, 1),
        ("ztunnel node cleanup --directory /x", &SUCCEEDING, 0),
        ("ztunnel node cleanup", &failing, 1),
        ("ztunnel version -o json", &failing, 0),
        ("ztunnel --version", &failing, 0),
        ("ztunnel proxy --help", &failing, 0),
        ("ztunnel", &SUCCEEDING, 2),
        ("ztunnel nonsense", &SUCCEEDING, 2),
    ] {
        assert_eq!(code(line, roles), ExitCode::from(expected), "{line}");
    }
}

#[test]
fn results_are_printed_as_text_and_as_json() {
    fn check(command: &str) -> String {
        let Command::Config(command) = parse(command).unwrap() else {
            panic!("{command}")
        };
        let mut out = Vec::new();
        config::run(&command, SUCCEEDING.check, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }
    assert_eq!(
        check("ztunnel config check -o json"),
        "{\n  \"node\": \"a\"\n}\n"
    );
    let text = check("ztunnel config check");
    assert_eq!(
        text,
        "# The settings are valid. With all defaults they are:\nnode: a\n"
    );

    let Command::Version(args) = parse("ztunnel version -o json").unwrap() else {
        panic!()
    };
    let mut out = Vec::new();
    version::run(&args, &mut out).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn what_was_removed_is_said_and_what_is_left_is_named() {
    fn said(removed: &Removed) -> String {
        let mut out = Vec::new();
        kernel::print_removed(removed, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }
    assert_eq!(
        said(&Removed::Pins("/d".into())),
        "capture by /d has ended\n"
    );
    let none = said(&Removed::None {
        directory: "/d".into(),
        elsewhere: vec!["/sys/fs/bpf/other".into()],
    });
    assert!(none.starts_with("nothing is pinned in /d: "), "{none}");
    assert!(
        none.contains("in /sys/fs/bpf/other: name it with --directory"),
        "{none}"
    );
}

#[test]
fn every_help_text_teaches_with_examples() {
    fn walk(command: &mut clap::Command, path: &str, bare: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        let help = command.render_long_help().to_string();
        for part in ["Examples:", "Exit codes:"] {
            if !help.contains(part) {
                bare.push(format!("{path}: {part}"));
            }
        }
        command
            .get_subcommands_mut()
            .filter(|sub| sub.get_name() != "help")
            .for_each(|sub| walk(sub, &path, bare));
    }
    let mut bare = Vec::new();
    walk(&mut Cli::command(), "", &mut bare);
    assert!(bare.is_empty(), "{bare:?}");
}
