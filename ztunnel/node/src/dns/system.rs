//! The resolver of the proxy's own container, for datagrams that redirection rules inside a pod bring
//! to the proxy: a rule does not keep a datagram's original resolver. In a cluster the pods use the
//! same resolver. It is contacted from inside the pod, where a loopback address would reach another
//! process, so loopback resolvers are skipped.

use std::net::{IpAddr, SocketAddr};

const FILE: &str = "/etc/resolv.conf";
const PORT: u16 = 53;

/// The first usable resolver of the system's configuration, if it has one.
#[must_use]
pub fn system_resolver() -> Option<SocketAddr> {
    std::fs::read_to_string(FILE)
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "cannot read {FILE}: of the DNS queries that redirection rules inside pods bring \
                 to the proxy, only those for names of the mesh are answered"
            );
        })
        .ok()
        .and_then(|text| first_usable(&text))
}

fn first_usable(text: &str) -> Option<SocketAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next().filter(|keyword| *keyword == "nameserver")?;
        let address: IpAddr = words.next()?.parse().ok()?;
        let is_local = address.is_loopback() || address.is_unspecified();
        (!is_local).then(|| SocketAddr::new(address, PORT))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_usable_resolver_is_chosen() {
        for (text, expected) in [
            (
                "nameserver 10.96.0.10\nnameserver 10.96.0.11\n",
                Some("10.96.0.10:53"),
            ),
            (
                "search a.b\n# nameserver 1.1.1.1\n  nameserver\tfd00::a \n",
                Some("[fd00::a]:53"),
            ),
            (
                "nameserver fe80::1%eth0\nnameserver nonsense\nnameserver 1.2.3.4",
                Some("1.2.3.4:53"),
            ),
            (
                "nameserver 127.0.0.53\nnameserver ::1\nnameserver 0.0.0.0\nnameserver 192.0.2.1",
                Some("192.0.2.1:53"),
            ),
            ("options ndots:5\n", None),
            ("", None),
        ] {
            let expected = expected.map(|resolver| resolver.parse().unwrap());
            assert_eq!(first_usable(text), expected, "{text:?}");
        }
    }
}
