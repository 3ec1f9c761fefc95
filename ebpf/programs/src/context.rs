//! Reading a program's context.
//!
//! The verifier accepts a load from a context only as "context plus a constant", in one
//! instruction. The compiler may compute the address first, to share it between the two families
//! or to copy four words as one, and the program then fails to load. Inline assembly keeps a load
//! in one instruction.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops, sk_msg_md};
use aya_ebpf::programs::SockAddrContext;
use ztunnel_ebpf_types::Address;

/// One word of a context, at a constant offset.
#[inline(always)]
fn word<const OFFSET: usize, C>(context: *const C) -> u32 {
    let value: u64;
    // SAFETY: the verifier checks that the offset is readable in this context.
    unsafe {
        asm!(
            "{value} = *(u32 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    value as u32
}

/// Four words in a row: an IPv6 address.
macro_rules! words {
    ($context:expr, $type:ty, $field:ident) => {{
        let context = $context;
        Address {
            words: [
                word::<{ offset_of!($type, $field) }, _>(context),
                word::<{ offset_of!($type, $field) + 4 }, _>(context),
                word::<{ offset_of!($type, $field) + 8 }, _>(context),
                word::<{ offset_of!($type, $field) + 12 }, _>(context),
            ],
        }
    }};
}

/// The address of the given family that a socket is bound to.
#[inline(always)]
pub fn source(sk: *const bpf_sock, v4: bool) -> Option<Address> {
    if v4 {
        let own = word::<{ offset_of!(bpf_sock, src_ip4) }, _>(sk);
        return (own != 0).then_some(Address::v4(own));
    }
    let own = words!(sk, bpf_sock, src_ip6);
    (!own.is(&Address::NONE)).then_some(own)
}

/// The port that a socket is bound to, in host byte order, or 0. Every call reads it again, because
/// `bpf_bind` changes it.
#[inline(always)]
pub fn local_port(sk: *const bpf_sock) -> u32 {
    let value: u64;
    // SAFETY: as in `word`.
    unsafe {
        asm!(
            "{value} = *(u32 *)({sk} + {offset})",
            value = out(reg) value,
            sk = in(reg) sk,
            offset = const offset_of!(bpf_sock, src_port),
            options(readonly, nostack, preserves_flags),
        );
    }
    value as u32
}

/// The source address of a datagram in sendmsg6, or [`Address::NONE`].
#[inline(always)]
pub fn message_source6(message: *const bpf_sock_addr) -> Address {
    words!(message, bpf_sock_addr, msg_src_ip6)
}

/// The two addresses of a socket, or of a SYN that looks for one.
pub struct Ends {
    pub local: Address,
    pub remote: Address,
}

const AF_INET: u32 = 2;

impl Ends {
    /// Of a socket in sock_ops. An AF_INET6 socket with an IPv4 peer has mapped addresses here.
    #[inline(always)]
    pub fn of_socket(ops: *const bpf_sock_ops) -> Self {
        if word::<{ offset_of!(bpf_sock_ops, family) }, _>(ops) == AF_INET {
            Self {
                local: Address::v4(word::<{ offset_of!(bpf_sock_ops, local_ip4) }, _>(ops)),
                remote: Address::v4(word::<{ offset_of!(bpf_sock_ops, remote_ip4) }, _>(ops)),
            }
        } else {
            Self {
                local: words!(ops, bpf_sock_ops, local_ip6),
                remote: words!(ops, bpf_sock_ops, remote_ip6),
            }
        }
    }

    /// Of the socket that sends a message. As in sock_ops, IPv4 may be in mapped form.
    #[inline(always)]
    pub fn of_message(message: *const sk_msg_md) -> Self {
        if word::<{ offset_of!(sk_msg_md, family) }, _>(message) == AF_INET {
            Self {
                local: Address::v4(word::<{ offset_of!(sk_msg_md, local_ip4) }, _>(message)),
                remote: Address::v4(word::<{ offset_of!(sk_msg_md, remote_ip4) }, _>(message)),
            }
        } else {
            Self {
                local: words!(message, sk_msg_md, local_ip6),
                remote: words!(message, sk_msg_md, remote_ip6),
            }
        }
    }

    /// Of a SYN in sk_lookup.
    #[inline(always)]
    pub fn of_lookup(lookup: *const bpf_sk_lookup) -> Self {
        if word::<{ offset_of!(bpf_sk_lookup, family) }, _>(lookup) == AF_INET {
            Self {
                local: Address::v4(word::<{ offset_of!(bpf_sk_lookup, local_ip4) }, _>(lookup)),
                remote: Address::v4(word::<{ offset_of!(bpf_sk_lookup, remote_ip4) }, _>(lookup)),
            }
        } else {
            Self {
                local: words!(lookup, bpf_sk_lookup, local_ip6),
                remote: words!(lookup, bpf_sk_lookup, remote_ip6),
            }
        }
    }
}

/// The destination in the IPv6 address hooks, read word by word for the verifier.
#[inline(always)]
pub fn destination6(ctx: &SockAddrContext) -> Address {
    let mut words = [0; 4];
    // SAFETY: the context is valid and the field readable in the address hooks of IPv6.
    unsafe {
        words[0] = (*ctx.sock_addr).user_ip6[0];
        words[1] = (*ctx.sock_addr).user_ip6[1];
        words[2] = (*ctx.sock_addr).user_ip6[2];
        words[3] = (*ctx.sock_addr).user_ip6[3];
    }
    Address { words }
}

/// Writes the destination in the IPv6 address hooks.
#[inline(always)]
pub fn set_destination6(ctx: &SockAddrContext, address: &Address) {
    // SAFETY: writable fields of the address hooks of IPv6.
    unsafe {
        (*ctx.sock_addr).user_ip6[0] = address.words[0];
        (*ctx.sock_addr).user_ip6[1] = address.words[1];
        (*ctx.sock_addr).user_ip6[2] = address.words[2];
        (*ctx.sock_addr).user_ip6[3] = address.words[3];
    }
}

/// A port in the form of the context: 16 bits in network byte order in the lower half of a word.
#[inline(always)]
pub fn network_port(port: u32) -> u32 {
    u32::from((port as u16).to_be())
}

/// An address in the form of the log.
#[inline(always)]
pub fn address_bytes(address: &Address) -> [u8; 16] {
    let mut octets = [0; 16];
    let mut index = 0;
    while index < 4 {
        let [a, b, c, d] = address.words[index].to_ne_bytes();
        octets[index * 4] = a;
        octets[index * 4 + 1] = b;
        octets[index * 4 + 2] = c;
        octets[index * 4 + 3] = d;
        index += 1;
    }
    octets
}
