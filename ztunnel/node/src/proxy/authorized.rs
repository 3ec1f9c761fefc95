//! Connections that policy let in and the proxy carries: after a change they are judged again, and
//! those that may not be open any more are cut, in the manner of the direct lane, where the kernel
//! knows what is open (`direct::FastPath`).
//!
//! A worker keeps the set of its own connections. Most changes concern none of its pods: what is
//! compared first is which policies apply to a pod, before and after.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use foldhash::{HashMap, HashMapExt as _};
use slab::Slab;

use super::policy::Denied;
use mesh::Identity;
use mesh::NetnsCookie;
use mesh::View;
use mesh::authorize::{InboundRequest, Verdict, authorize};
use mesh::inbound::client_address;

/// What a connection was let in as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AuthorizationContext {
    /// The namespace of the pod it arrived at.
    pub(super) pod: NetnsCookie,
    /// The identity that its peer proved.
    pub(super) source: Option<Identity>,
    /// Its peer's address.
    pub(super) peer: IpAddr,
    /// The address for which the peer says it speaks, if it is another one. Whether it may is
    /// judged each time: a waypoint can be withdrawn.
    pub(super) named: Option<IpAddr>,
    /// What its client gets to, as policies see it.
    pub(super) destination: SocketAddr,
}

/// Why a connection that was open is so no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Revoked {
    /// A policy refuses it by now.
    #[error("no longer allowed: {0}")]
    Denied(#[from] Denied),
    /// Nobody knows whose policies to ask.
    #[error("no longer allowed: the pod's workload is not in the mesh any more")]
    UnknownWorkload,
    /// Whoever is at the other end of a tunnel may not prove who it is any more.
    #[error("no longer allowed: the certificate of the tunnel's peer was revoked")]
    Certificate,
}

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct AuthorizedConnections {
    entries: RefCell<Slab<Entry>>,
    /// The view that all of them were judged by last, but for those that say otherwise.
    view: RefCell<Arc<View>>,
}

#[derive(Debug)]
struct Entry {
    admitted: AuthorizationContext,
    /// Judged by another view than the set's.
    apart: bool,
    revoked: Option<Revoked>,
    waker: Option<Waker>,
}

/// A connection's place in the set, while it is open.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    set: Rc<AuthorizedConnections>,
    key: usize,
}

impl AuthorizedConnections {
    /// An empty set.
    pub(super) fn new(view: Arc<View>) -> Rc<Self> {
        Rc::new(Self {
            entries: RefCell::default(),
            view: RefCell::new(view),
        })
    }

    /// Takes a connection in that `judged_by` allowed. Where another view is in force by `now`, that
    /// one is asked too: the change may have been looked through before the connection was here.
    ///
    /// # Errors
    /// When it may not be open any more.
    pub(super) fn admit(
        self: &Rc<Self>,
        admitted: AuthorizationContext,
        judged_by: &Arc<View>,
        now: &Arc<View>,
    ) -> Result<ConnectionGuard, Revoked> {
        if !Arc::ptr_eq(judged_by, now) {
            judge(&admitted, now)?;
        }
        let entry = Entry {
            admitted,
            apart: !Arc::ptr_eq(now, &self.view.borrow()),
            revoked: None,
            waker: None,
        };
        Ok(ConnectionGuard {
            set: self.clone(),
            key: self.entries.borrow_mut().insert(entry),
        })
    }

    /// Judges again what the change to `view` concerns.
    pub(super) fn reauthorize(&self, view: &Arc<View>) {
        let before = self.view.replace(view.clone());
        let mut concerned: HashMap<NetnsCookie, bool> = HashMap::new();
        let mut wakers = Vec::new();
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            let pod = entry.admitted.pod;
            let concerned = concerned
                .entry(pod)
                .or_insert_with(|| !same_policies(pod, &before, view));
            // Who speaks for whom is no policy, and may have changed all the same.
            if !*concerned && !entry.apart && entry.admitted.named.is_none() {
                continue;
            }
            entry.apart = false;
            if let Err(revoked) = judge(&entry.admitted, view) {
                entry.revoked = Some(revoked);
                wakers.extend(entry.waker.take());
            }
        }
        // After the borrow has ended: a task may be dropped when it is woken.
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl ConnectionGuard {
    /// Resolves when the connection may not be open any more.
    pub(super) async fn revoked(&self) -> Revoked {
        poll_fn(|cx| self.poll_revoked(cx)).await
    }

    fn poll_revoked(&self, cx: &Context<'_>) -> Poll<Revoked> {
        let mut entries = self.set.entries.borrow_mut();
        let Some(entry) = entries.get_mut(self.key) else {
            return Poll::Pending;
        };
        if let Some(revoked) = entry.revoked.take() {
            return Poll::Ready(revoked);
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        drop(self.set.entries.borrow_mut().try_remove(self.key));
    }
}

/// Whether the same policies, in the same wording, apply to a pod in both views.
fn same_policies(pod: NetnsCookie, before: &View, after: &View) -> bool {
    let (Some(was), Some(is)) = (before.workload(pod), after.workload(pod)) else {
        return false;
    };
    let (mut was, mut is) = (before.mesh.policies_for(was), after.mesh.policies_for(is));
    loop {
        match (was.next(), is.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) if Arc::ptr_eq(one, other) => {}
            _ => return false,
        }
    }
}

/// What a pod that is no longer served here has open is left to drain.
fn judge(admitted: &AuthorizationContext, view: &View) -> Result<(), Revoked> {
    if view.pod(admitted.pod).is_none() {
        return Ok(());
    }
    let workload = view
        .workload(admitted.pod)
        .ok_or(Revoked::UnknownWorkload)?;
    let arrival = InboundRequest {
        workload,
        source: admitted.source.as_ref(),
        source_ip: client_address(
            admitted.peer,
            (admitted.source.as_ref(), admitted.named),
            workload,
            &view.mesh,
        ),
        destination: admitted.destination,
    };
    match authorize(&arrival, &view.mesh).verdict {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { by } => Err(Denied::new(by.as_deref()).into()),
    }
}

#[cfg(test)]
mod tests;
