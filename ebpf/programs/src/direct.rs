//! The direct lane at the source: a call that the proxy has judged before goes by itself.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use ztunnel_ebpf_types::{Address, BACKENDS, Backend, Call, Config, Cookie, Saved, Verdict};

use crate::maps::{VERDICTS, is_crowded, owner};

/// What is known about a call.
pub enum Choice {
    /// Nothing that counts: the proxy judges.
    Unknown,
    /// The proxy chooses, among the backends that are not direct.
    Elsewhere,
    /// It goes here.
    Direct(Backend),
}

/// Looks for a verdict about a call, and rolls the dice where it names several backends.
#[inline(always)]
pub fn choose(config: &Config, cookie: Cookie, address: &Address, port: u32) -> Choice {
    let call = Call {
        cookie,
        address: *address,
        port,
        zero: 0,
    };
    // SAFETY: what is read here may be of an entry that was given to another call meanwhile: it is
    // copied once, and asked for again before the SYN leaves, see `holds`.
    let Some(verdict) = (unsafe { VERDICTS.get(&call) }) else {
        return Choice::Unknown;
    };
    if verdict.epoch != config.epoch || is_crowded() {
        return Choice::Unknown;
    }
    let Some(backend) = roll(verdict) else {
        return Choice::Elsewhere;
    };
    let backend = *backend;
    // Whoever has this address now must be the pod that was judged, or nobody's pod still.
    if owner(&backend.address) != backend.server || backend.address.is_v4() != address.is_v4() {
        return Choice::Unknown;
    }
    Choice::Direct(backend)
}

/// Whether the verdict that let a socket go still holds. Asked when the connection is written down
/// and its SYN has not left: a change either finds the connection written down, or this finds the
/// verdict gone. An application can put any time between its `connect()` and the SYN (Fast Open).
#[inline(always)]
pub fn holds(config: &Config, cookie: Cookie, saved: &Saved) -> bool {
    let call = Call {
        cookie,
        address: saved.address,
        port: saved.port,
        zero: 0,
    };
    // SAFETY: as in `choose`; an entry that changes its owner now is one that was removed.
    let Some(verdict) = (unsafe { VERDICTS.get(&call) }) else {
        return false;
    };
    if verdict.epoch != config.epoch {
        return false;
    }
    let mut index = 0;
    while index < BACKENDS {
        let backend = &verdict.backends[index];
        if backend.weight != 0
            && backend.address.is(&saved.peer)
            && u32::from(backend.port) == saved.peer_port
            && backend.server == saved.server
        {
            return true;
        }
        index += 1;
    }
    false
}

#[inline(always)]
fn roll(verdict: &'static Verdict) -> Option<&'static Backend> {
    let first = &verdict.backends[0];
    if verdict.count == 1 && first.weight == verdict.total {
        return Some(first);
    }
    // SAFETY: no arguments.
    let mut dice = (unsafe { bpf_get_prandom_u32() })
        .checked_rem(verdict.total)
        .unwrap_or(0);
    let mut index = 0;
    while index < BACKENDS {
        let backend = &verdict.backends[index];
        // Those behind the last one have no weight.
        if dice < backend.weight {
            return Some(backend);
        }
        dice -= backend.weight;
        index += 1;
    }
    None
}
