//! Whether a node agent is used, and its socket.

use super::super::NodeAgent;
use super::{GOOD, complaint, load};

#[test]
fn an_agent_is_used_if_its_socket_is_set_or_inpod_is_enabled() {
    let file = "\nnodeAgent: { socket: /of/file.sock }\n";
    let uds = ("INPOD_UDS", "/of/environment.sock");
    let (on, off) = (("INPOD_ENABLED", "true"), ("INPOD_ENABLED", "false"));
    for (text, variables, expected) in [
        ("", &[][..], None),
        ("\nnodeAgent: {}\n", &[], None),
        (file, &[], Some("/of/file.sock")),
        ("", &[uds], Some("/of/environment.sock")),
        (file, &[uds], Some("/of/environment.sock")),
        ("", &[on], Some(NodeAgent::SOCKET)),
        (file, &[on], Some("/of/file.sock")),
        (file, &[on, uds], Some("/of/environment.sock")),
        (file, &[off, uds], None),
    ] {
        let settings = load(&format!("{GOOD}{text}"), variables).unwrap();
        let socket = settings.node_agent.map(|agent| agent.socket);
        assert_eq!(
            socket.as_deref(),
            expected.map(std::path::Path::new),
            "{text} {variables:?}"
        );
    }
}

#[test]
fn a_dedicated_proxy_has_no_agent() {
    let text = GOOD.replace("pods:\n- {", "#");
    let variables = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "default/a/a"),
        ("INPOD_ENABLED", "true"),
    ];
    assert_eq!(
        complaint(&text, &variables),
        "nodeAgent.socket: not possible in mode dedicated, which serves one workload on a machine \
         of its own"
    );
}
