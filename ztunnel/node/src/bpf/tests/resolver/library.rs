//! What the C library's own resolver makes of captured DNS.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::world::in_namespace;
use super::Proxy;

/// Answers a question for an address with `192.0.2.99`, any other with nothing.
fn reply(question: &[u8]) -> Vec<u8> {
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap() + 13;
    let mut reply = question[..name + 4].to_vec();
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
    if reply[name..name + 2] == [0, 1] {
        reply[7] = 1;
        // The name of the question, A, IN, a minute, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
    }
    reply
}

/// What a program says that looks up a name with these resolvers in its resolv.conf. The one that
/// is `deaf` does not answer. Says also who was asked.
fn look_up(
    proxy: &Proxy,
    program: &str,
    resolvers: &[&str],
    deaf: Option<&str>,
) -> (String, Vec<String>) {
    let mut settings = tempfile::NamedTempFile::new().unwrap();
    for resolver in resolvers {
        writeln!(settings, "nameserver {resolver}").unwrap();
    }
    // A busy machine may answer late: who is asked next must not be due to that.
    writeln!(settings, "options timeout:5").unwrap();
    let path = settings.path().display();
    let script = format!("mount --bind {path} /etc/resolv.conf && exec {program}");
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = Vec::new();
    for socket in [&proxy.v4, &proxy.v6] {
        let patience = Some(Duration::from_millis(5));
        socket.set_read_timeout(patience).unwrap();
    }
    while child.try_wait().unwrap().is_none() {
        for v4 in [true, false] {
            let Some((question, client, resolver)) = proxy.question(v4) else {
                continue;
            };
            let resolver = resolver.ip().to_string();
            if deaf != Some(&resolver) {
                proxy.answer(&reply(&question), client);
            }
            if !asked.contains(&resolver) {
                asked.push(resolver);
            }
        }
    }
    let output = child.wait_with_output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), asked)
}

#[test]
#[ignore = "needs root"]
fn the_c_library_finds_names() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let all = ["192.0.2.1", "2001:db8::2", "192.0.2.3"];
        // Only the first is asked while it answers.
        for (resolvers, deaf, expected) in [
            (&all[..], None, &all[..1]),
            (&all[1..], None, &all[1..2]),
            (&all[..], Some("192.0.2.1"), &all[..2]),
        ] {
            let program = "getent ahosts a.name.example.";
            let (found, asked) = look_up(&proxy, program, resolvers, deaf);
            assert!(found.contains("192.0.2.99"), "{resolvers:?}: {found}");
            assert_eq!(asked, expected);
        }
    });
}
