//! Keeps the kernel's address translation of a pod alive when its last rule goes.
//!
//! A node agent deletes its redirection rules when a pod leaves the mesh. With the last rule that needs
//! connection tracking, the kernel stops tracking in this namespace: the connections that the rules have
//! redirected are no longer translated, and the next packet of each finds no socket and is answered with a
//! reset. A table with one rule that only looks at the tracking state keeps tracking and translation alive,
//! and changes nothing. It ends with the namespace.
//!
//! The messages are those of linux/netfilter/nf_tables.h and nfnetlink.h.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`, and its `NFT_MSG_NEWTABLE`, `NFT_MSG_NEWCHAIN` and `NFT_MSG_NEWRULE`.
const NF_TABLES: u16 = 10;
const NEW_TABLE: u16 = NF_TABLES << 8;
const NEW_CHAIN: u16 = NF_TABLES << 8 | 3;
const NEW_RULE: u16 = NF_TABLES << 8 | 6;
/// `NFPROTO_INET`: IPv4 and IPv6.
const INET: u8 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NF_INET_LOCAL_OUT`. What matters is that the chain translates; the kernel translates in all hooks
/// then.
const OUTPUT: u32 = 3;
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY: i32 = -100;
/// `NFT_REG_1` and `NFT_CT_STATE`.
const REGISTER: u32 = 1;
const STATE: u32 = 0;

const TABLE: &[u8] = b"ztunnel\0";
const CHAIN: &[u8] = b"keep_translation\0";
/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// The messages that are acknowledged: table, chain, rule.
const ACKNOWLEDGED: usize = 3;

/// Adds the table to the network namespace of the calling thread, if it is not there.
///
/// # Errors
/// When the kernel has no nf_tables, or refuses.
pub fn keep_translation() -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&batch(), 0)?;
    let mut acknowledged = 0;
    while acknowledged < ACKNOWLEDGED {
        let (datagram, _kernel) = socket.recv_from_full()?;
        match acknowledgements(&datagram) {
            Ok(number) => acknowledged += number,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How many messages a datagram acknowledges.
///
/// # Errors
/// The first error in it, and when it is incomplete.
fn acknowledgements(datagram: &[u8]) -> io::Result<usize> {
    let (mut rest, mut number) = (datagram, 0);
    while let Some((&[a, b, c, d, e, f, ..], _)) = rest.split_first_chunk::<HEADER>() {
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let body = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        if u16::from_ne_bytes([e, f]) == NLMSG_ERROR {
            let code = body.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
            match i32::from_ne_bytes(*code) {
                0 => number += 1,
                error => return Err(io::Error::from_raw_os_error(-error)),
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    if number == 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(number)
}

/// One transaction: all of it, or nothing if the table exists.
fn batch() -> Vec<u8> {
    let hook = [
        attribute(1, &OUTPUT.to_be_bytes()),
        attribute(2, &PRIORITY.to_be_bytes()),
    ];
    let chain = [
        attribute(1, TABLE),
        attribute(3, CHAIN),
        attribute(4 | NESTED, &hook.concat()),
        attribute(7, b"nat\0"),
    ];
    let state = [
        attribute(1, &REGISTER.to_be_bytes()),
        attribute(2, &STATE.to_be_bytes()),
    ];
    let expression = [
        attribute(1, b"ct\0"),
        attribute(2 | NESTED, &state.concat()),
    ];
    let rule = [
        attribute(1, TABLE),
        attribute(2, CHAIN),
        attribute(4 | NESTED, &attribute(1 | NESTED, &expression.concat())),
    ];
    let create = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    [
        message(BATCH_BEGIN, NLM_F_REQUEST, 0, NF_TABLES, &[]),
        message(
            NEW_TABLE,
            create | NLM_F_EXCL,
            INET,
            0,
            &attribute(1, TABLE),
        ),
        message(NEW_CHAIN, create, INET, 0, &chain.concat()),
        message(NEW_RULE, create | NLM_F_APPEND, INET, 0, &rule.concat()),
        message(BATCH_END, NLM_F_REQUEST, 0, NF_TABLES, &[]),
    ]
    .concat()
}

/// A message with its `struct nfgenmsg`.
fn message(kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + 4 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port.
    bytes.extend([0; 8]);
    let [high, low] = resource.to_be_bytes();
    bytes.extend([family, 0, high, low]);
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::process::Command;
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};

    use super::super::is_redirected;
    use super::super::netlink::set_loopback_up;
    use super::*;

    fn nft(commands: &str) {
        let status = Command::new("nft").arg(commands).status().unwrap();
        assert!(status.success(), "{commands}");
    }

    /// Whether a redirected connection works after the rules have gone.
    fn survives(is_kept: bool) -> bool {
        let run = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            set_loopback_up().unwrap();
            nft(
                "add table ip t; add chain ip t out { type nat hook output priority -100; }; \
                 add rule ip t out tcp dport 8080 redirect to :15006",
            );
            if is_kept {
                keep_translation().unwrap();
                keep_translation().unwrap();
                assert!(!is_redirected(), "it is no rule that redirects");
            }
            let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 15006)).unwrap();
            let dialled = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
            let mut client = TcpStream::connect(dialled).unwrap();
            let (mut accepted, _) = server.accept().unwrap();
            for socket in [&client, &accepted] {
                let timeout = Some(Duration::from_secs(2));
                socket.set_read_timeout(timeout).unwrap();
            }
            nft("delete table ip t");
            let mut byte = [0];
            let exchanged = client
                .write_all(b"a")
                .and_then(|()| accepted.read_exact(&mut byte))
                .and_then(|()| accepted.write_all(b"b"))
                .and_then(|()| client.read_exact(&mut byte));
            exchanged.is_ok()
        };
        std::thread::spawn(run).join().unwrap()
    }

    #[test]
    #[ignore = "needs root"]
    fn redirected_connections_survive_the_end_of_the_rules() {
        assert!(survives(true));
    }

    /// Verifies the test above.
    #[test]
    #[ignore = "needs root"]
    fn without_the_table_they_break() {
        assert!(!survives(false));
    }

    #[test]
    fn an_error_of_the_kernel_is_returned() {
        let answer = |code: i32| {
            let mut bytes = message(NLMSG_ERROR, 0, 0, 0, &[0; 16]);
            bytes[HEADER..HEADER + 4].copy_from_slice(&code.to_ne_bytes());
            bytes
        };
        let acknowledged = [answer(0), answer(0)].concat();
        assert_eq!(acknowledgements(&acknowledged).unwrap(), 2);
        let refused = [answer(0), answer(-libc::EEXIST)].concat();
        let error = acknowledgements(&refused).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        for short in [&acknowledged[..HEADER + 2], &[]] {
            assert!(acknowledgements(short).is_err());
        }
    }
}
