//! IPv4 and IPv6, and addresses that are ranges.

use super::check;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1", "fd00::1"], protocol: HBONE }
- { uid: dual, name: dual, serviceAccount: d, workloadIps: ["10.0.1.1", "fd00::11"], protocol: HBONE, services: { default/dual: {}, default/four: {}, default/six: {}, default/auto: {}, default/declared: {} } }
- { uid: six, name: six, serviceAccount: s, workloadIps: ["fd00::12"], protocol: HBONE, services: { default/only6: {}, default/four: {}, default/onlywrong: {} } }
- { uid: four, name: four, serviceAccount: f, workloadIps: ["10.0.1.3"], protocol: HBONE, services: { default/only4: {} } }
- { uid: turned, name: turned, serviceAccount: t, workloadIps: ["fd00::14", "10.0.1.4"], protocol: HBONE, services: { default/turned: {} } }
services:
- { name: dual, hostname: dual, vips: ["/10.1.0.1", "/fd01::1"], ports: { 80: 80 } }
- { name: four, hostname: four, vips: ["/10.1.0.2", "/fd01::2"], ports: { 80: 80 }, ipFamilies: IPv4Only }
- { name: six, hostname: six, vips: ["/10.1.0.3", "/fd01::3"], ports: { 80: 80 }, ipFamilies: IPv6Only }
- { name: only6, hostname: only6, vips: ["/10.1.0.4", "/fd01::4"], ports: { 80: 80 } }
- { name: only4, hostname: only4, vips: ["/10.1.0.5", "/fd01::5"], ports: { 80: 80 } }
- { name: turned, hostname: turned, vips: ["/10.1.0.6", "/fd01::6"], ports: { 80: 80 } }
- { name: onlywrong, hostname: onlywrong, vips: ["/10.1.0.7"], ports: { 80: 80 }, ipFamilies: IPv4Only }
- { name: declared, hostname: declared, vips: ["/10.1.0.8", "/fd01::8"], ports: { 80: 80 }, ipFamilies: Dual }
"#;

#[test]
fn the_dialled_family_is_preferred() {
    check(
        MESH,
        17,
        "
        src -> 10.1.0.1:80 => tunnel dual@10.0.1.1:15008 for 10.0.1.1:80 as d of dual
        src -> [fd01::1]:80 => tunnel dual@[fd00::11]:15008 for [fd00::11]:80 as d of dual
        src -> 10.1.0.8:80 => tunnel dual@10.0.1.1:15008 for 10.0.1.1:80 as d of declared
        src -> [fd01::8]:80 => tunnel dual@[fd00::11]:15008 for [fd00::11]:80 as d of declared
        src -> 10.1.0.6:80 => tunnel turned@10.0.1.4:15008 for 10.0.1.4:80 as t of turned
        src -> [fd01::6]:80 => tunnel turned@[fd00::14]:15008 for [fd00::14]:80 as t of turned
        # The families that the service allows take precedence.
        src -> 10.1.0.2:80 => tunnel dual@10.0.1.1:15008 for 10.0.1.1:80 as d of four
        src -> [fd01::2]:80 => tunnel dual@10.0.1.1:15008 for 10.0.1.1:80 as d of four
        src roll 1 -> [fd01::2]:80 => tunnel dual@10.0.1.1:15008 for 10.0.1.1:80 as d of four
        src -> 10.1.0.3:80 => tunnel dual@[fd00::11]:15008 for [fd00::11]:80 as d of six
        src -> [fd01::3]:80 => tunnel dual@[fd00::11]:15008 for [fd00::11]:80 as d of six
        src -> 10.1.0.7:80 => refused no_address: no backend of service default/onlywrong has a host name or an address of a family that the service allows
        # If no address is of the dialled family, another family is used.
        src -> 10.1.0.4:80 => tunnel six@[fd00::12]:15008 for [fd00::12]:80 as s of only6
        src -> [fd01::5]:80 => tunnel four@10.0.1.3:15008 for 10.0.1.3:80 as f of only4
        # A workload that was dialled by its address is reached at that address.
        src -> [fd00::11]:80 => tunnel dual@[fd00::11]:15008 for [fd00::11]:80 as d
        src -> 10.0.1.1:80 => tunnel dual@10.0.1.1:15008 for 10.0.1.1:80 as d
        src -> [::ffff:10.1.0.2]:80 => tunnel dual@10.0.1.1:15008 for 10.0.1.1:80 as d of four
        ",
    );
}
