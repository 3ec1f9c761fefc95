use proptest::prelude::*;

use super::*;

fn to(address: &str) -> Result<Progress<Destination>, MessageError> {
    Ok(Progress::Done(Destination::Address(
        address.parse().unwrap(),
    )))
}

fn by_name(name: &[u8]) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&[5, 1, 0, NAME, length], name, &[0, 80]].concat()
}

#[test]
fn greetings() {
    let cases = [
        (&[][..], Ok(Progress::Needs(2))),
        (&[5], Ok(Progress::Needs(2))),
        (&[5, 2], Ok(Progress::Needs(4))),
        (&[5, 2, 1], Ok(Progress::Needs(4))),
        (&[5, 2, 1, 0], Ok(Progress::Done(()))),
        (&[5, 1, 0], Ok(Progress::Done(()))),
        (&[5, 1, 2], Err(MessageError::Methods)),
        (&[5, 0], Err(MessageError::Methods)),
        (&[4, 1, 0, 80], Err(MessageError::Version(4))),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(greeting(bytes), wanted, "{bytes:?}");
    }
}

#[test]
fn requests() {
    let v6 = [&[5, 1, 0, 4][..], &[0xfd; 16], &[1, 187]].concat();
    let mapped = [
        &[5, 1, 0, 4][..],
        &[0; 10],
        &[0xff, 0xff, 10, 0, 0, 1, 0, 80],
    ]
    .concat();
    let name = |name: &str| Ok(Progress::Done(Destination::Name(name.into(), 80)));
    let cases = [
        (vec![], Ok(Progress::Needs(4))),
        (vec![5, 1, 0], Ok(Progress::Needs(4))),
        (vec![5, 1, 0, 1, 10, 0, 0], Ok(Progress::Needs(10))),
        (vec![5, 1, 0, 1, 10, 0, 0, 1, 0, 80], to("10.0.0.1:80")),
        (
            v6.clone(),
            to("[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:443"),
        ),
        (v6[..20].to_vec(), Ok(Progress::Needs(22))),
        (mapped, to("10.0.0.1:80")),
        (vec![5, 1, 0, 3], Ok(Progress::Needs(5))),
        (vec![5, 1, 0, 3, 9], Ok(Progress::Needs(16))),
        (by_name(b"Shop.Default.svc."), name("shop.default.svc")),
        (by_name(b"10.0.0.1"), to("10.0.0.1:80")),
        (by_name(b"fd00::1"), to("[fd00::1]:80")),
        (by_name(b""), Err(MessageError::Name)),
        (by_name(b"."), Err(MessageError::Name)),
        (by_name(b"a b"), Err(MessageError::Name)),
        (by_name(b"a\0b"), Err(MessageError::Name)),
        (by_name(&[0xff]), Err(MessageError::Name)),
        (by_name(&[b'a'; 254]), Err(MessageError::Name)),
        (vec![5, 2, 0, 1], Err(MessageError::Command(2))),
        (vec![5, 3, 0, 1], Err(MessageError::Command(3))),
        (vec![5, 1, 0, 2], Err(MessageError::AddressType(2))),
        (vec![4], Err(MessageError::Version(4))),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(request(&bytes), wanted, "{bytes:?}");
    }
}

#[test]
fn refusals_say_why() {
    let cases = [
        (MessageError::Version(4), None),
        (MessageError::Methods, Some(0xff)),
        (MessageError::Command(2), Some(7)),
        (MessageError::AddressType(9), Some(8)),
        (MessageError::Name, Some(4)),
    ];
    for (error, code) in cases {
        let answer = error.answer();
        assert_eq!(answer.as_ref().map(|answer| answer[1]), code, "{error}");
        assert!(answer.is_none_or(|answer| answer[0] == 5));
    }
}

proptest! {
    /// With any bytes, a reader that provides the requested bytes terminates and never reads past
    /// the message.
    #[test]
    fn every_message_ends_and_no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), MAX_LENGTH), known in any::<bool>()) {
        let mut bytes = bytes;
        if known {
            bytes[0] = 5;
            bytes[1] = 1;
            bytes[3] %= 5;
        }
        let mut have = 0;
        while let Ok(Progress::Needs(total)) = request(&bytes[..have]) {
            prop_assert!(total > have && total <= MAX_LENGTH, "{have} then {total}");
            have = total;
        }
        have = 0;
        while let Ok(Progress::Needs(total)) = greeting(&bytes[..have]) {
            prop_assert!(total > have && total <= MAX_LENGTH, "{have} then {total}");
            have = total;
        }
    }
}
