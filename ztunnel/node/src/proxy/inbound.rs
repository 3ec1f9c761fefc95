//! An inbound connection: in a tunnel of a peer, or as plaintext.
//!
//! accept → discover → authorize → deliver with the client's address → relay → report. The
//! destination's node is authoritative: it evaluates every policy, whatever the client's node
//! decided.

mod admit;
mod caller;
mod claimed_client;
mod deliver;
mod discover;
mod error;
mod tunnel_server;

use std::rc::Rc;

use super::connection::Accepted;
use super::pod_context::PodContext;
use super::relay;
use crate::pods::{self, PeerEnd};

use admit::{Delivered, admit};
use caller::InboundCaller;
pub(super) use tunnel_server::serve_tunnels;

/// Handles one plaintext connection that the kernel programs redirected to the proxy, or that a
/// rule inside the pod redirected.
pub(super) async fn carry_plain(context: Rc<PodContext>, accepted: Accepted) {
    let Accepted {
        stream,
        peer,
        accepted_at,
    } = accepted;
    let Ok((destination, redirected)) = pods::dialled_of(&stream) else {
        return;
    };
    if redirected {
        context.set_redirected();
    }
    let client_gone = pods::peer_gone(&stream, PeerEnd::MayBeHalf);
    // Boxed and given its inputs, so that their memory is freed while the connection is open.
    let admitted = Box::pin(admit(
        &context,
        InboundCaller {
            connection: context.connection(peer, destination, accepted_at),
            tunnel: None,
        },
        client_gone,
    ));
    match admitted.await {
        Ok(delivered) => {
            let Delivered { app, guard, report } = delivered;
            let (series, revoked) = (report.series(), guard.revoked());
            let ended = relay::plain(stream, app, context.copy_mode(), series, revoked).await;
            report.end(&ended);
        }
        Err(_status) => context.refusals.reset(stream).await,
    }
}
