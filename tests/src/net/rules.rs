//! The iptables or nftables rules of Istio's node agent (istio-cni) in the pods of an ambient mesh. They
//! redirect connections that the eBPF programs capture, too, so both have to work in one pod.
//!
//! The rules of each address family, as of Istio 1.27 to 1.30 (`cni/pkg/iptables` and
//! `cni/pkg/nftables` of istio/istio):
//!
//! - Inbound: TCP to an address other than loopback is redirected to port 15006 (REDIRECT, so that
//!   connection tracking has the original destination). Exempt: port 15008, packets with the proxy's
//!   mark 0x539 (mask 0xfff), and kubelet's probes, whose source the node translates to 169.254.7.127
//!   or fd16:9254:7127:1337:ffff:ffff:ffff:ffff.
//! - Outbound: TCP to an address other than loopback is redirected to port 15001. Exempt: the mark
//!   0x539, the mark 0x111, answers to probes, and packets that leave by the loopback device. With DNS
//!   capture, port 53 is redirected to 15053 first, UDP on every device but loopback.
//! - An inbound packet with the mark 0x539 (only on loopback: a mark does not leave its namespace)
//!   marks its connection with 0x111; outbound packets of this connection get the mark, and a routing
//!   rule (priority 32764, table 100) routes them to loopback.
//! - With DNS capture, the proxy's own queries have a connection tracking zone of their own.
//!
//! The agent uses iptables, in the variant of the node (legacy or nft), or nft (`nativeNftables`). It
//! adds the rules before it announces a pod. Istio 1.20 to 1.23 could use TPROXY instead of REDIRECT for
//! inbound connections (an `ISTIO_PRERT` chain in mangle); this module does not implement that.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{Family, Host};

/// The program that creates the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// `iptables-legacy`.
    Legacy,
    /// `iptables-nft`.
    IptablesNft,
    /// `nft`.
    Nft,
}

const PROXY: &str = "0x539/0xfff";
const PASS: &str = "0x111/0xfff";

impl Rules {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Legacy, Self::IptablesNft, Self::Nft];

    /// Installs the rules in a pod.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn install(self, pod: &Host) -> Result<()> {
        for (flag, any) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            let rule = "rule add fwmark 0x111/0xfff pref 32764 lookup 100";
            ip(pod, flag, rule)?;
            ip(
                pod,
                flag,
                &format!("route add local {any} dev lo table 100"),
            )?;
        }
        for family in Family::BOTH {
            match self {
                Self::Legacy => restore(pod, "legacy", family, &iptables_rules(family))?,
                Self::IptablesNft => restore(pod, "nft", family, &iptables_rules(family))?,
                Self::Nft => nft(pod, &nft_rules(family))?,
            }
        }
        Ok(())
    }

    /// Removes the rules.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn remove(self, pod: &Host) -> Result<()> {
        for family in Family::BOTH {
            match self {
                Self::Legacy => restore(pod, "legacy", family, &iptables_removal())?,
                Self::IptablesNft => restore(pod, "nft", family, &iptables_removal())?,
                Self::Nft => nft(pod, &nft_removal(family))?,
            }
        }
        for flag in ["-4", "-6"] {
            ip(
                pod,
                flag,
                "rule del fwmark 0x111/0xfff pref 32764 lookup 100",
            )?;
            ip(pod, flag, "route flush table 100")?;
        }
        Ok(())
    }
}

/// The addresses of loopback and of probes, in the syntax of rules.
fn addresses(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("127.0.0.1/32", "169.254.7.127"),
        Family::V6 => ("::1/128", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
    }
}

fn iptables_rules(family: Family) -> String {
    let (loopback, probe) = addresses(family);
    format!(
        "*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark {PROXY} -j CONNMARK --set-xmark {PASS}
-A ISTIO_OUTPUT -m connmark --mark {PASS} -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -s {probe} -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -d {probe} -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark {PROXY} -m udp --dport 53 -j REDIRECT --to-port 15053
-A ISTIO_OUTPUT ! -d {loopback} -p tcp --dport 53 -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark {PASS} -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15001
COMMIT
*raw
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p udp -m mark --mark {PROXY} -m udp --dport 53 -j CT --zone 1
-A ISTIO_PRERT -p udp -m mark ! --mark {PROXY} -m udp --sport 53 -j CT --zone 1
COMMIT
"
    )
}

fn iptables_removal() -> String {
    ["mangle", "nat", "raw"]
        .map(|table| {
            format!(
                "*{table}
-D PREROUTING -j ISTIO_PRERT
-D OUTPUT -j ISTIO_OUTPUT
-F ISTIO_PRERT
-F ISTIO_OUTPUT
-X ISTIO_PRERT
-X ISTIO_OUTPUT
COMMIT
"
            )
        })
        .concat()
}

/// The rules for nft. The agent has tables of the family `inet`; here each address family has its own.
fn nft_rules(family: Family) -> String {
    let (loopback, probe) = addresses(family);
    let ip = table_family(family);
    format!(
        "table {ip} istio-ambient-nat {{
  chain prerouting {{ type nat hook prerouting priority -100
    meta l4proto tcp {ip} saddr {probe} counter accept
    {ip} daddr != {loopback} tcp dport != 15008 mark and 0xfff != 0x539 counter redirect to :15006
  }}
  chain output {{ type nat hook output priority -100
    meta l4proto tcp {ip} daddr {probe} counter accept
    oifname != lo mark and 0xfff != 0x539 udp dport 53 counter redirect to :15053
    {ip} daddr != {loopback} tcp dport 53 mark and 0xfff != 0x539 counter redirect to :15053
    meta l4proto tcp mark and 0xfff == 0x111 counter accept
    oifname lo {ip} daddr != {loopback} counter accept
    meta l4proto tcp {ip} daddr != {loopback} mark and 0xfff != 0x539 counter redirect to :15001
  }}
}}
table {ip} istio-ambient-mangle {{
  chain prerouting {{ type filter hook prerouting priority -150
    meta mark and 0xfff == 0x539 counter ct mark set ct mark and 0xfffff000 or 0x111
  }}
  chain output {{ type route hook output priority -150
    ct mark and 0xfff == 0x111 counter meta mark set ct mark
  }}
}}
table {ip} istio-ambient-raw {{
  chain prerouting {{ type filter hook prerouting priority -300
    udp sport 53 meta mark and 0xfff != 0x539 counter ct zone set 1
  }}
  chain output {{ type filter hook output priority -300
    udp dport 53 meta mark and 0xfff == 0x539 counter ct zone set 1
  }}
}}
"
    )
}

fn nft_removal(family: Family) -> String {
    let ip = table_family(family);
    ["nat", "mangle", "raw"]
        .map(|table| format!("delete table {ip} istio-ambient-{table}\n"))
        .concat()
}

fn table_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn restore(pod: &Host, form: &str, family: Family, rules: &str) -> Result<()> {
    let command = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let mut command = Command::new(format!("{command}-{form}-restore"));
    run(pod, command.arg("--noflush"), rules)
}

fn nft(pod: &Host, rules: &str) -> Result<()> {
    run(pod, Command::new("nft").args(["-f", "-"]), rules)
}

fn ip(pod: &Host, flag: &str, arguments: &str) -> Result<()> {
    run(
        pod,
        Command::new("ip").arg(flag).args(arguments.split(' ')),
        "",
    )
}

/// Runs a program in a pod, with `input` as its standard input.
fn run(pod: &Host, command: &mut Command, input: &str) -> Result<()> {
    let output = pod.enter(|| -> Result<_> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| {
            format!(
                "starting {command:?}; Debian has it in the packages iptables, nftables, iproute2"
            )
        })?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that refuses the rules may not read all of them. Its message is more useful
            // than the broken pipe.
            drop(stdin.write_all(input.as_bytes()));
        }
        Ok(child.wait_with_output()?)
    })?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} in {}: {message}",
        pod.name
    );
    Ok(())
}
