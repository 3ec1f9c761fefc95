//! The decision about a connection that a pod opened. `mesh::route` decides by one view and the
//! inputs that are known. If it lacks an input, this module obtains the input and decides again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::super::connection::Connection;
use super::super::inputs::Inputs;
use super::super::pod_context::PodContext;
use super::super::resolve::ResolveError;
use super::error::OutboundError;
use crate::bpf::BackendChoice;
use crate::pods::{self, PeerEnd};
use mesh::fastpath;
use mesh::route::{Decision, OutboundRequest, Routed, choose_address, route};
use mesh::{ResourceKey, View, Workload};

/// The maximum number of host names to resolve for one connection: a waypoint's or a backend's, and
/// a gateway's.
const MAX_NAMES: usize = 3;

/// A connection that has a route.
pub(super) struct Decided {
    /// The view that the decision was made by.
    pub(super) view: Arc<View>,
    /// The client's workload.
    pub(super) source: Arc<Workload>,
    /// The route.
    pub(super) routed: Routed,
}

/// Decides the route of a connection. Another backend than the `failed` ones is preferred. Each decision uses one view: a change in between must not mix
/// two states of the mesh.
///
/// # Errors
/// When the connection is refused, or an input cannot be obtained.
pub(super) async fn decide(
    context: &PodContext,
    connection: &Connection,
    choice: BackendChoice,
    app: &TcpStream,
    failed: &[SocketAddr],
) -> Result<Decided, OutboundError> {
    let client_gone = || pods::peer_gone(app, PeerEnd::MayBeHalf);
    let random = context.worker.random();
    let mut inputs = Inputs::outbound(context, connection.accepted);
    let mut names = ResolvedNames::default();
    loop {
        let view = context.proxy.fast_path.view_owned();
        let Some(source) = context.client(&view.mesh) else {
            inputs.obtain_client(&view, client_gone()).await?;
            continue;
        };
        let mut except = kernel_backends(connection, choice, inputs.absent(), &view);
        except.extend_from_slice(failed);
        let request = OutboundRequest {
            except: &except,
            resolved: &names.addresses,
            absent: inputs.absent(),
            ..OutboundRequest::new(&source, connection.destination)
        };
        match route(&request, &view, random) {
            Decision::Route(routed) => {
                return Ok(Decided {
                    view,
                    source,
                    routed,
                });
            }
            Decision::Needs(missing) => inputs.obtain(missing, &view, client_gone()).await?,
            Decision::Resolve(hostname) => {
                names.require_room(&hostname)?;
                context.proxy.telemetry.dns().on_demand(&source, &hostname);
                names.resolve(context, connection, hostname, random).await?;
            }
            Decision::Refuse(error) => return Err(error.into()),
        }
    }
}

/// The backends of the fast-path entry, if the kernel has the entry and its random choice fell on a
/// backend outside the entry.
fn kernel_backends(
    connection: &Connection,
    choice: BackendChoice,
    absent: &[ResourceKey],
    view: &View,
) -> SmallVec<[SocketAddr; 8]> {
    if choice != BackendChoice::Unlisted {
        return SmallVec::new();
    }
    let entry = fastpath::entry_after_change(&connection.fast_path_key(), absent, view);
    let backends = entry.into_iter().flat_map(|entry| entry.backends);
    backends.map(|backend| backend.to).collect()
}

/// The host names that have been resolved for one connection, each with the chosen address.
#[derive(Default)]
struct ResolvedNames {
    addresses: SmallVec<[(Arc<str>, IpAddr); 1]>,
}

impl ResolvedNames {
    /// Fails if the connection has resolved too many names to resolve another one.
    fn require_room(&self, hostname: &Arc<str>) -> Result<(), OutboundError> {
        if self.addresses.len() < MAX_NAMES {
            return Ok(());
        }
        Err(OutboundError::TooManyNames {
            hostname: hostname.clone(),
        })
    }

    async fn resolve(
        &mut self,
        context: &PodContext,
        connection: &Connection,
        hostname: Arc<str>,
        random: u64,
    ) -> Result<(), OutboundError> {
        let resolver = &context.proxy.resolver;
        let found = resolver.resolve(&hostname, connection.pod).await?;
        let dialled = connection.destination.ip().to_canonical();
        let Some(address) = choose_address(&found, dialled, random) else {
            return Err(ResolveError::Empty { hostname }.into());
        };
        self.addresses.push((hostname, address));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
