//! Routing in a pod's network namespace, for two kinds of connections that stay inside it.
//!
//! Delivery: the proxy connects to an application with the client's address. The socket is transparent
//! and marked. `tcp_fwmark_accept` copies its mark to the application's accepted socket, so replies to
//! the client's address return to the proxy instead of leaving the pod. `fwmark_reflect` does the same
//! for resets that no socket sends.
//!
//! Capture: the programs mark an application's socket, and its packets return to the pod, where the
//! proxy's listener gets them. A second rule, behind the first, refuses what has no route there.
//!
//! Each kind has a routing table that makes every address local. Their rules come before all others but
//! that of local addresses: VPN sidecars add rules that match every packet. The setup is idempotent, uses
//! netlink, and ends with the namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use ztunnel_ebpf_types::{CAPTURE_MARK, CAPTURE_MARK_MASK};

use super::Error;
use super::netlink::Netlink;
pub use super::netlink::{Existing, Prepared};
use super::netns::interface_addresses;
use super::sysctl::{disable, enable};

/// The mark of delivery sockets; Istio's rules inside the pod use the same value for this purpose.
pub const DELIVERY_MARK: u32 = 0x111;
const DELIVERY_MARK_MASK: u32 = 0xfff;
const DELIVERY_TABLE: u32 = 15006;
const CAPTURE_TABLE: u32 = 15001;

// The rule of local addresses has the priority 0.
const DELIVERY_PRIORITY: u32 = 1;
const CAPTURE_PRIORITY: u32 = 2;
const REFUSAL_PRIORITY: u32 = 3;

/// The routes by the pod's devices, for sockets that are bound to one. Their metrics, this number and the
/// device's index, are behind that of the route by the loopback device.
const FIRST_DEVICE_METRIC: u32 = 2048;

const FWMARK_ACCEPT: &str = "net/ipv4/tcp_fwmark_accept";
/// A reset that the kernel sends because no socket listens gets the mark of the packet that it answers
/// (Documentation/networking/ip-sysctl.rst). Without the mark the reset leaves the pod towards the
/// client, and the proxy waits for an answer in vain.
const FWMARK_REFLECT_V4: &str = "net/ipv4/fwmark_reflect";
const FWMARK_REFLECT_V6: &str = "net/ipv6/fwmark_reflect";

/// Connections in the queue of a listener that closes move to another listener on the same port,
/// such as that of the process which takes over, instead of being reset (Linux 5.14).
const MIGRATE: &str = "net/ipv4/tcp_migrate_req";

/// Connection tracking does not begin in the middle of a connection. It would take a packet of a
/// connection that is older than the rules of a node agent for a new connection, and the rules would
/// redirect it: the connections that a pod has open when it joins the mesh would break. When a pod joins
/// for the first time, its rules are older than this setting by part of a second, and connections that
/// send in between do break. The setting stays when the pod leaves
/// (Documentation/networking/nf_conntrack-sysctl.rst).
const TRACK_OPEN_CONNECTIONS: &str = "net/netfilter/nf_conntrack_tcp_loose";

/// Prepares the network namespace of the calling thread for deliveries. Existing objects stay as they
/// are.
///
/// # Errors
/// When the kernel refuses an object; the error names it.
pub fn prepare_delivery() -> Result<Prepared, Error> {
    enable(FWMARK_ACCEPT)?;
    enable(MIGRATE)?;
    disable(TRACK_OPEN_CONNECTIONS)?;
    enable(FWMARK_REFLECT_V4)?;
    if has_v6() {
        enable(FWMARK_REFLECT_V6)?;
    }
    let mut routing = Routing::open(Existing::Keep)?;
    for family in families() {
        if !routing.add_route(family, DELIVERY_TABLE, routing.loopback, &[])? {
            continue;
        }
        let mark = Mark {
            value: DELIVERY_MARK,
            mask: DELIVERY_MARK_MASK,
        };
        routing.add_rule(
            family,
            DELIVERY_PRIORITY,
            mark,
            Action::Table(DELIVERY_TABLE),
        )?;
    }
    Ok(routing.prepared)
}

/// Prepares the network namespace of the calling thread, whose pod has these addresses, for capture by
/// mark. The first address of a family is the source of connections that the application has not bound
/// to another one: `existing` says whether routes with another source are replaced.
///
/// # Errors
/// When the kernel refuses an object; the error names it.
pub fn prepare_capture(addresses: &[IpAddr], existing: Existing) -> Result<Prepared, Error> {
    let mark = Mark {
        value: CAPTURE_MARK,
        mask: CAPTURE_MARK_MASK,
    };
    let mut routing = Routing::open(existing)?;
    let devices = devices(routing.loopback).map_err(failed("network devices"))?;
    let present = interface_addresses().map_err(failed("addresses"))?;
    for family in families() {
        let mut usable = addresses.iter().filter(|address| present.contains(address));
        let own = usable.find(|address| family_of(address) == family).copied();
        let mut attributes = vec![prefer(own.unwrap_or_else(|| loopback_address(family)))];
        let added = routing.add_route(family, CAPTURE_TABLE, routing.loopback, &attributes);
        let added = match added {
            // An IPv6 address cannot be used before it is known to be unique (RFC 4862, 5.4).
            Err(error) if own.is_some() && error.is_invalid() => {
                attributes = vec![prefer(loopback_address(family))];
                routing.add_route(family, CAPTURE_TABLE, routing.loopback, &attributes)?
            }
            added => added?,
        };
        if !added {
            continue;
        }
        for device in &devices {
            let metric = RouteAttribute::Priority(FIRST_DEVICE_METRIC + device);
            attributes.push(metric);
            match routing.add_route(family, CAPTURE_TABLE, *device, &attributes) {
                // The loopback device's address is no source there.
                Err(error) if own.is_none() && error.is_invalid() => {}
                added => drop(added?),
            }
            attributes.pop();
        }
        routing.add_rule(family, REFUSAL_PRIORITY, mark, Action::Unreachable)?;
        routing.add_rule(family, CAPTURE_PRIORITY, mark, Action::Table(CAPTURE_TABLE))?;
    }
    Ok(routing.prepared)
}

fn has_v6() -> bool {
    std::path::Path::new("/proc/thread-self/net/if_inet6").exists()
}

fn families() -> impl Iterator<Item = AddressFamily> {
    let v6 = has_v6().then_some(AddressFamily::Inet6);
    [AddressFamily::Inet].into_iter().chain(v6)
}

/// The indexes of the devices, without loopback.
fn devices(loopback: u32) -> io::Result<Vec<u32>> {
    let all = nix::net::if_::if_nameindex()?;
    let indexes = all.iter().map(|device| device.index());
    Ok(indexes.filter(|index| *index != loopback).collect())
}

fn family_of(address: &IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn loopback_address(family: AddressFamily) -> IpAddr {
    match family {
        AddressFamily::Inet => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The source of connections that the application has not bound to an address. Without it the kernel
/// would choose the destination, as for other local routes.
fn prefer(source: IpAddr) -> RouteAttribute {
    RouteAttribute::PrefSource(match source {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    })
}

/// The mark that a rule matches.
#[derive(Debug, Clone, Copy)]
struct Mark {
    value: u32,
    mask: u32,
}

/// What a rule does.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// Look the route up in this table.
    Table(u32),
    /// There is no route.
    Unreachable,
}

/// Adds routes and rules, and remembers whether one was missing.
struct Routing {
    netlink: Netlink,
    loopback: u32,
    existing: Existing,
    prepared: Prepared,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Route { what, source }
}

impl Routing {
    fn open(existing: Existing) -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::open().map_err(failed("route"))?,
            loopback: nix::net::if_::if_nametoindex("lo")
                .map_err(|errno| failed("loopback device")(errno.into()))?,
            existing,
            prepared: Prepared::Before,
        })
    }

    fn add(&mut self, message: RouteNetlinkMessage, existing: Existing) -> io::Result<()> {
        if self.netlink.request(message, existing)? == Prepared::Now {
            self.prepared = Prepared::Now;
        }
        Ok(())
    }

    /// Makes every address local in a table, by a device. False: the device does not have the family, or
    /// is down.
    fn add_route(
        &mut self,
        family: AddressFamily,
        table: u32,
        device: u32,
        attributes: &[RouteAttribute],
    ) -> Result<bool, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        message.header.protocol = RouteProtocol::Static;
        message.attributes = vec![RouteAttribute::Oif(device), RouteAttribute::Table(table)];
        message.attributes.extend_from_slice(attributes);
        let Err(error) = self.add(RouteNetlinkMessage::NewRoute(message), self.existing) else {
            return Ok(true);
        };
        match error.raw_os_error() {
            Some(libc::ENETDOWN) if device == self.loopback => Err(Error::LoopbackDown),
            // The device is down; it has gone; it has no IPv6 (`disable_ipv6`).
            Some(libc::ENETDOWN | libc::ENODEV) => Ok(false),
            Some(libc::EACCES) if family == AddressFamily::Inet6 => Ok(false),
            _ => Err(failed("local route")(error)),
        }
    }

    fn add_rule(
        &mut self,
        family: AddressFamily,
        priority: u32,
        mark: Mark,
        action: Action,
    ) -> Result<(), Error> {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.attributes = vec![
            RuleAttribute::Priority(priority),
            RuleAttribute::FwMark(mark.value),
            RuleAttribute::FwMask(mark.mask),
        ];
        match action {
            Action::Table(table) => {
                message.header.action = RuleAction::ToTable;
                message.attributes.push(RuleAttribute::Table(table));
            }
            Action::Unreachable => message.header.action = RuleAction::Unreachable,
        }
        let added = self.add(RouteNetlinkMessage::NewRule(message), Existing::Keep);
        added.map_err(failed("routing rule"))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::super::netlink::set_loopback_up;
    use super::*;

    /// As in the namespace of a sandbox that the container runtime has removed.
    #[test]
    #[ignore = "needs root"]
    fn a_namespace_whose_loopback_is_down_is_told_from_a_missing_capability() {
        let prepared = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let down = prepare_delivery();
            set_loopback_up().unwrap();
            let delivery = [prepare_delivery(), prepare_delivery()].map(Result::unwrap);
            let capture = [(), ()].map(|()| prepare_capture(&[], Existing::Keep).unwrap());
            (down, delivery, capture)
        });
        let (down, delivery, capture) = prepared.join().unwrap();
        assert!(matches!(down, Err(Error::LoopbackDown)), "{down:?}");
        assert_eq!(delivery, [Prepared::Now, Prepared::Before]);
        assert_eq!(capture, [Prepared::Now, Prepared::Before]);
    }
}
