use super::*;

fn item(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend(body);
    bytes
}

fn chain(kind: &[u8], hook: u32) -> Vec<u8> {
    let number = item(HOOK_NUMBER, &hook.to_be_bytes());
    // The highest bit of a nested attribute's type may be set or not.
    let hook = item(CHAIN_HOOK | 0x8000, &number);
    let mut body = vec![0; GENERIC];
    body.extend([item(3, b"prerouting\0"), hook, item(CHAIN_TYPE, kind)].concat());
    message(CHAIN, &body)
}

#[test]
fn a_chain_that_translates_inbound_destinations_is_found() {
    let done = || message(NLMSG_DONE, &[0; 4]);
    let cases = [
        (chain(b"nat\0", 0), Chains::Redirect),
        (
            [chain(b"filter\0", 0), chain(b"nat\0", 0)].concat(),
            Chains::Redirect,
        ),
        ([chain(b"filter\0", 0), done()].concat(), Chains::End),
        // Translation of outbound connections does not matter.
        ([chain(b"nat\0", 3), done()].concat(), Chains::End),
        (chain(b"natural\0", 0), Chains::More),
        (message(NLMSG_ERROR, &[0xff; 20]), Chains::End),
        (Vec::new(), Chains::More),
    ];
    for (datagram, expected) in cases {
        assert_eq!(search_chains(&datagram), expected, "{datagram:?}");
    }
}

proptest::proptest! {
    #[test]
    fn corrupt_answers_are_harmless(bytes: Vec<u8>, at in 0_usize..80, with: u8) {
        search_chains(&bytes);
        let mut changed = chain(b"nat\0", 0);
        if let Some(byte) = changed.get_mut(at) {
            *byte = with;
        }
        search_chains(&changed);
    }
}

#[test]
#[ignore = "needs root"]
fn a_new_namespace_redirects_nothing() {
    let found = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        (legacy_tables(), nf_tables())
    });
    let (legacy, nf) = found.join().unwrap();
    assert!(!legacy);
    // A kernel without these tables answers with an error.
    assert!(!nf.unwrap_or(false));
}
