//! Arbitrary bytes as an `istio.security.Authorization`. A policy that is decoded without warnings
//! decides as the documentation says. One with warnings allows no more and denies no less.
#![no_main]

use api::istio::security::Authorization;
use arbitrary::Unstructured;
use mesh::{Action, Interner, PolicyContext};
use prost::Message as _;
use upstream::ads::decode::decode_authorization;
use ztunnel_fuzz::fuzz_target;
use ztunnel_fuzz::naive::{self, Caller};

fuzz_target!(|bytes: &[u8]| {
    let mut texts = Interner::new();
    let Ok(decoded) = decode_authorization(bytes, &mut texts) else {
        return;
    };
    let wire = Authorization::decode(bytes).unwrap();
    let certain = decoded.warnings.is_empty();
    if certain {
        let again = decode_authorization(&wire.encode_to_vec(), &mut texts);
        assert_eq!(again.as_ref(), Ok(&decoded));
    }
    let mut choices = Unstructured::new(bytes);
    for _ in 0..4 {
        let Ok(caller) = choices.arbitrary::<Caller>() else {
            return;
        };
        let context = PolicyContext {
            source: caller.identity.as_ref(),
            source_ip: caller.source,
            destination: caller.destination,
            http: None,
        };
        let (ours, model) = (
            decoded.policy.matches(&context),
            naive::matches(&wire, &caller),
        );
        match decoded.policy.action {
            _ if certain => assert_eq!(ours, model, "{wire:?} {caller:?}"),
            Action::Allow => assert!(!ours || model, "{wire:?} {caller:?}"),
            Action::Deny => assert!(ours || !model, "{wire:?} {caller:?}"),
        }
    }
});
