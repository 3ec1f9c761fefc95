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

use super::Error;
use super::netlink::Netlink;
pub use super::netlink::{Existing, Prepared};
use super::netns::ip_address;
use super::sysctl::{disable, enable};
use crate::bpf::{CAPTURE_MARK, CAPTURE_MARK_MASK};

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

/// Whether the rule of deliveries matches a mark.
#[must_use]
pub const fn is_delivery_mark(mark: u32) -> bool {
    mark & DELIVERY_MARK_MASK == DELIVERY_MARK
}

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
        if !routing.add_local(family, DELIVERY_TABLE, &[])? {
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
    let present: Vec<IpAddr> = devices
        .iter()
        .flat_map(|one| one.addresses.clone())
        .collect();
    for family in families() {
        // First: a family that has no routes is refused.
        routing.add_rule(family, REFUSAL_PRIORITY, mark, Action::Unreachable)?;
        let first_of = |present: &[IpAddr]| {
            let mut usable = addresses.iter().filter(|address| present.contains(address));
            usable.find(|address| family_of(address) == family).copied()
        };
        let loopback = loopback_address(family);
        let source = first_of(&present).unwrap_or(loopback);
        let added = match routing.add_local(family, CAPTURE_TABLE, &[prefer(source)]) {
            // An IPv6 address cannot be used before it is known to be unique (RFC 4862, 5.4).
            Err(error) if error.is_invalid() && source != loopback => {
                routing.add_local(family, CAPTURE_TABLE, &[prefer(loopback)])?
            }
            added => added?,
        };
        if !added {
            continue;
        }
        for device in &devices {
            let Some(own) = first_of(&device.addresses) else {
                continue;
            };
            routing.add_for_device(family, device.index, own)?;
        }
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

/// A network device of the pod.
#[derive(Debug)]
struct Device {
    index: u32,
    addresses: Vec<IpAddr>,
}

/// The devices that have addresses, without loopback.
fn devices(loopback: u32) -> io::Result<Vec<Device>> {
    let mut devices: Vec<Device> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address.as_ref().and_then(ip_address) else {
            continue;
        };
        // A device that has gone meanwhile.
        let Ok(index) = nix::net::if_::if_nametoindex(interface.interface_name.as_str()) else {
            continue;
        };
        match devices.iter_mut().find(|device| device.index == index) {
            Some(device) => device.addresses.push(address),
            None if index != loopback => devices.push(Device {
                index,
                addresses: vec![address],
            }),
            None => {}
        }
    }
    Ok(devices)
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

    /// Makes every address local in a table, by the loopback device. False: the device does not have the
    /// family (`disable_ipv6`).
    fn add_local(
        &mut self,
        family: AddressFamily,
        table: u32,
        attributes: &[RouteAttribute],
    ) -> Result<bool, Error> {
        let route = route(family, table, self.loopback, attributes);
        let Err(error) = self.add(route, self.existing) else {
            return Ok(true);
        };
        match error.raw_os_error() {
            Some(libc::ENETDOWN) => Err(Error::LoopbackDown),
            Some(libc::EACCES) if family == AddressFamily::Inet6 => Ok(false),
            _ => Err(failed("local route")(error)),
        }
    }

    /// Makes every address local in the table of captured connections, for sockets that are bound to a
    /// device. These routes come and go with their devices: a missing one was not removed by a process.
    fn add_for_device(
        &mut self,
        family: AddressFamily,
        device: u32,
        source: IpAddr,
    ) -> Result<(), Error> {
        let attributes = [
            prefer(source),
            RouteAttribute::Priority(FIRST_DEVICE_METRIC + device),
        ];
        let route = route(family, CAPTURE_TABLE, device, &attributes);
        let Err(error) = self.netlink.request(route, self.existing) else {
            return Ok(());
        };
        match error.raw_os_error() {
            // The device is down, or has gone; its address is not known to be unique.
            Some(libc::ENETDOWN | libc::ENODEV | libc::EACCES | libc::EINVAL) => Ok(()),
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

fn route(
    family: AddressFamily,
    table: u32,
    device: u32,
    attributes: &[RouteAttribute],
) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.kind = RouteType::Local;
    message.header.scope = RouteScope::Host;
    message.header.protocol = RouteProtocol::Static;
    message.attributes = vec![RouteAttribute::Oif(device), RouteAttribute::Table(table)];
    message.attributes.extend_from_slice(attributes);
    RouteNetlinkMessage::NewRoute(message)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use netlink_packet_route::link::LinkAttribute;

    use super::super::netlab::{add_tentative_address, index, set_link_up, veth};
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

    /// A CNI plugin may not wait until the pod's address can be used.
    #[test]
    #[ignore = "needs root"]
    fn a_tentative_address_does_not_stop_the_preparation() {
        let prepare = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            set_loopback_up().unwrap();
            veth("pod0", vec![LinkAttribute::IfName("far0".into())]);
            let (pod, far) = (index("pod0"), index("far0"));
            set_link_up(pod);
            set_link_up(far);
            let address: IpAddr = "fd09::1".parse().unwrap();
            add_tentative_address(pod, address);
            prepare_capture(&[address], Existing::Replace)
        };
        let prepared = thread::spawn(prepare).join().unwrap();
        assert_eq!(prepared.unwrap(), Prepared::Now);
    }
}
