//! The C library's resolver with captured DNS.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::world::in_namespace;
use super::Proxy;

/// The reply to a query: `192.0.2.99` for an IPv4 address, empty for anything else.
fn reply(query: &[u8]) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).unwrap() + 13;
    let mut reply = query[..name + 4].to_vec();
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
    if reply[name..name + 2] == [0, 1] {
        reply[7] = 1;
        // The queried name, A, IN, a TTL of one minute, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
    }
    reply
}

/// Runs a program that looks up a name with these resolvers in its resolv.conf. The `silent` one
/// does not reply. Returns the program's output and the resolvers that were queried.
fn look_up(
    proxy: &Proxy,
    program: &str,
    resolvers: &[&str],
    silent: Option<&str>,
) -> (String, Vec<String>) {
    let mut settings = tempfile::NamedTempFile::new().unwrap();
    for resolver in resolvers {
        writeln!(settings, "nameserver {resolver}").unwrap();
    }
    // On a busy machine a late reply must not make the program query the next resolver.
    writeln!(settings, "options timeout:5").unwrap();
    let path = settings.path().display();
    let script = format!("mount --bind {path} /etc/resolv.conf && exec {program}");
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut queried = Vec::new();
    for socket in [&proxy.v4, &proxy.v6] {
        let timeout = Some(Duration::from_millis(5));
        socket.set_read_timeout(timeout).unwrap();
    }
    while child.try_wait().unwrap().is_none() {
        for v4 in [true, false] {
            let Some((query, client, resolver)) = proxy.query(v4) else {
                continue;
            };
            let resolver = resolver.ip().to_string();
            if silent != Some(&resolver) {
                proxy.reply(&reply(&query), client);
            }
            if !queried.contains(&resolver) {
                queried.push(resolver);
            }
        }
    }
    let output = child.wait_with_output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), queried)
}

#[test]
#[ignore = "needs root"]
fn the_c_library_finds_names() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let all = ["192.0.2.1", "2001:db8::2", "192.0.2.3"];
        // Only the first one is queried if it replies.
        for (resolvers, silent, expected) in [
            (&all[..], None, &all[..1]),
            (&all[1..], None, &all[1..2]),
            (&all[..], Some("192.0.2.1"), &all[..2]),
        ] {
            let program = "getent ahosts a.name.example.";
            let (found, queried) = look_up(&proxy, program, resolvers, silent);
            assert!(found.contains("192.0.2.99"), "{resolvers:?}: {found}");
            assert_eq!(queried, expected);
        }
    });
}
