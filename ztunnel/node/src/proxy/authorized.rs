//! The authorized connections that the proxy carries. After a change they are authorized again, and
//! those that are no longer allowed are reset. `fastpath::FastPath` does the same for the
//! connections of the fast path, which the kernel lists.
//!
//! Each worker keeps the set of its own connections. Most changes concern none of its pods, so the
//! set first compares the policies that apply to a pod before and after the change.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use foldhash::{HashMap, HashMapExt as _};
use slab::Slab;

use super::policy::{Denied, Revoked};
use mesh::Identity;
use mesh::NetnsCookie;
use mesh::View;
use mesh::authorize::{InboundRequest, Verdict, authorize};
use mesh::inbound::{ClientReport, client_address};

/// The input of a connection's authorization, kept to repeat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AuthorizationContext {
    /// The namespace of the destination pod.
    pub(super) pod: NetnsCookie,
    /// The identity that the peer proved.
    pub(super) source: Option<Identity>,
    /// The peer's address.
    pub(super) peer: IpAddr,
    /// The client's address as the peer states it, if it differs from the peer's. Every
    /// authorization checks whether the peer may state it, because a waypoint can be withdrawn.
    pub(super) named: Option<IpAddr>,
    /// The destination address, as policies see it.
    pub(super) destination: SocketAddr,
}

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct AuthorizedConnections {
    entries: RefCell<Slab<Entry>>,
    /// The view of the last authorization of every connection whose `apart` is false.
    view: RefCell<Arc<View>>,
}

#[derive(Debug)]
struct Entry {
    admitted: AuthorizationContext,
    /// Whether the connection was authorized by another view than the set's.
    apart: bool,
    revoked: Option<Revoked>,
    waker: Option<Waker>,
}

/// A connection's entry in the set; removed when it is dropped.
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

    /// Adds a connection that was authorized by `judged_by`. If another view is in force by now,
    /// the connection is authorized by it, too, because `reauthorize` may already have run for that
    /// change.
    ///
    /// # Errors
    /// When the connection is no longer allowed.
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

    /// Authorizes again the connections that the change to `view` concerns.
    pub(super) fn reauthorize(&self, view: &Arc<View>) {
        let before = self.view.replace(view.clone());
        let mut concerned: HashMap<NetnsCookie, bool> = HashMap::new();
        let mut wakers = Vec::new();
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            let pod = entry.admitted.pod;
            let concerned = concerned
                .entry(pod)
                .or_insert_with(|| !same_policies(pod, &before, view));
            // The peers that may state a client's address can change without a policy change.
            if !*concerned && !entry.apart && entry.admitted.named.is_none() {
                continue;
            }
            entry.apart = false;
            if let Err(revoked) = judge(&entry.admitted, view) {
                entry.revoked = Some(revoked);
                wakers.extend(entry.waker.take());
            }
        }
        // After the borrow has ended: waking a task may drop it.
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl ConnectionGuard {
    /// Resolves when the connection is no longer allowed.
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

/// Whether the same policies, with the same content, apply to a pod in both views.
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

/// Connections of a pod that is no longer served stay allowed: they drain.
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
            ClientReport {
                identity: admitted.source.as_ref(),
                address: admitted.named,
            },
            workload,
            &view.mesh,
        ),
        destination: admitted.destination,
        http: None,
    };
    match authorize(&arrival, &view.mesh).verdict {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { by } => Err(Denied::new(by.as_deref()).into()),
    }
}

#[cfg(test)]
mod tests;
