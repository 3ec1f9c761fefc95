//! The record layer of an established session against a naive peer: what the peer sent as data is
//! what is read, in any pieces; what breaks the protocol ends the session and gives out nothing
//! that was not sent.
#![no_main]

use std::cell::RefCell;

use arbitrary::Arbitrary;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use libfuzzer_sys::fuzz_target;
use ztunnel::fuzzing::tls::{Looked, Receiver, Schedules};

const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// Good data with padding.
    Data {
        length: u16,
        padding: u8,
    },
    KeyUpdate {
        answer: bool,
    },
    CloseNotify,
    /// A sealed record with anything inside.
    Sealed(u8, &'a [u8]),
    /// Bytes that nobody sealed.
    Raw(&'a [u8]),
    /// A good record, damaged.
    Damaged {
        at: u8,
        with: u8,
    },
    /// The reader looks.
    Read(u16),
    Park,
}

/// Seals as RFC 8446, section 5.2 says.
struct Peer {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Peer {
    fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = content.to_vec();
        inner.push(kind);
        inner.resize(inner.len() + padding, 0);
        let length = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let header = [DATA, 3, 3, length[0], length[1]];
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let key = &self.key;
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner)
            .unwrap();
        [&header[..], &inner].concat()
    }
}

thread_local! {
    static SCHEDULES: RefCell<Option<Schedules>> = const { RefCell::new(None) };
}

struct Session {
    receiver: Receiver,
    schedules: Schedules,
    /// On the way to the receiver.
    wire: Vec<u8>,
    read: Vec<u8>,
    over: bool,
}

impl Session {
    /// Lets the receiver have what is on the wire, and reads until there is no more.
    fn look(&mut self, room: usize) {
        // A byte at a time would take all day where much is waiting.
        let room = room.max(1 + self.wire.len() / 1024);
        while !self.over {
            let count = self.receiver.arrive(&self.wire);
            self.wire.drain(..count);
            match self
                .receiver
                .read(&mut self.schedules, room, &mut self.read)
            {
                Err(_) | Ok(Looked::Closed) => self.over = true,
                Ok(Looked::Full) => {}
                Ok(Looked::Hungry) if self.wire.is_empty() => break,
                Ok(Looked::Hungry) => {}
            }
            if self.receiver.answer().is_err() {
                self.over = true;
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let kept = SCHEDULES.with_borrow_mut(Option::take);
    let schedules = kept.unwrap_or_else(|| ztunnel_fuzz::block_on(Schedules::new()));
    let mut peer = Peer {
        key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[5; 32]).unwrap()),
        iv: [6; 12],
        sequence: 0,
    };
    let mut session = Session {
        receiver: Receiver::new([5; 32], [6; 12]).unwrap(),
        schedules,
        wire: Vec::new(),
        read: Vec::new(),
        over: false,
    };
    let mut sent = Vec::new();
    // The naive peer can say what is read as long as it keeps to the protocol.
    let (mut sure, mut updated, mut fruitless) = (true, false, 0_u8);
    for step in steps {
        match step {
            Step::Data { length, padding } => {
                let content: Vec<u8> = (0..length % 16385)
                    .map(|at| (at % 251) as u8 ^ length as u8)
                    .collect();
                if sure {
                    fruitless = if content.is_empty() { fruitless + 1 } else { 0 };
                    sure = fruitless <= 32;
                }
                if sure {
                    sent.extend_from_slice(&content);
                }
                let padding = usize::from(padding).min(16640 - 17 - content.len());
                let record = peer.seal(DATA, &content, padding);
                session.wire.extend(record);
            }
            Step::KeyUpdate { answer } => {
                let record = peer.seal(HANDSHAKE, &[24, 0, 0, 1, u8::from(answer)], 0);
                session.wire.extend(record);
                fruitless = fruitless.saturating_add(1);
                sure = sure && fruitless <= 32;
                updated = true;
                if let Some((key, iv)) = session.schedules.next_of_peer() {
                    let key = UnboundKey::new(&AES_128_GCM, &key).unwrap();
                    peer = Peer {
                        key: LessSafeKey::new(key),
                        iv,
                        sequence: 0,
                    };
                } else {
                    sure = false;
                }
            }
            Step::CloseNotify => {
                let record = peer.seal(ALERT, &[1, 0], 0);
                session.wire.extend(record);
                session.look(1 << 16);
                sure = false;
            }
            Step::Sealed(kind, content) if content.len() <= 16384 => {
                let record = peer.seal(kind, content, 0);
                session.wire.extend(record);
                sure = false;
                updated = true;
            }
            Step::Sealed(..) => {}
            Step::Raw(bytes) => {
                sure = sure && bytes.is_empty();
                session.wire.extend_from_slice(bytes);
            }
            Step::Damaged { at, with } => {
                let mut record = peer.seal(DATA, b"never to be read", 0);
                let at = usize::from(at) % record.len();
                record[at] ^= with | 1;
                session.wire.extend(record);
                sure = false;
            }
            Step::Read(room) => session.look(usize::from(room)),
            Step::Park => session.receiver.park(),
        }
        let count = session.read.len().min(sent.len());
        assert_eq!(session.read[..count], sent[..count]);
    }
    session.look(1 << 14);
    if sure {
        assert!(!session.over, "a peer that keeps to the protocol is heard");
        assert_eq!(session.read, sent);
    }
    // After a key update the two schedules may have gone apart.
    if !updated {
        SCHEDULES.set(Some(session.schedules));
    }
});
