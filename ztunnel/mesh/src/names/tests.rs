//! What names mean, by example. A line is `who asks type name => answer`; the answer is the
//! addresses in their order by number, after `cname name` where there is one, or `nothing` for a
//! name without such an address, or `not mine`.

use super::*;
use crate::local;

const MESH: &str = r#"
workloads:
- { uid: shop, name: shop, namespace: shop, network: n1, clusterId: c1 }
- { uid: bank, name: bank, namespace: bank, network: n1, clusterId: c2 }
- { uid: far, name: far, namespace: shop, network: n2, clusterId: c1 }
- { uid: db0, name: db-0, namespace: shop, network: n1, clusterId: c1, workloadIps: ["10.0.0.10", "fd00::10"], services: { shop/db.shop.svc.cluster.local: {}, shop/db4.shop.svc.cluster.local: {}, shop/ext.example.com: {} } }
- { uid: db1, name: db-1, namespace: shop, network: n1, clusterId: c1, workloadIps: ["10.0.0.11"], services: { shop/db.shop.svc.cluster.local: {}, shop/web.shop.svc.cluster.local: {} } }
- { uid: db2, name: db-2, namespace: shop, network: n1, clusterId: c1, workloadIps: ["10.0.0.12"], status: Unhealthy, services: { shop/db.shop.svc.cluster.local: {}, shop/eager.shop.svc.cluster.local: {} } }
- { uid: db3, name: db-3, namespace: shop, network: n2, clusterId: c1, workloadIps: ["10.0.0.13"], services: { shop/db.shop.svc.cluster.local: {} } }
- { uid: twin1, name: twin-0, namespace: shop, network: n1, clusterId: c1, workloadIps: ["10.0.0.21"], services: { shop/twin.shop.svc.cluster.local: {} } }
- { uid: twin2, name: twin-0, namespace: shop, network: n1, clusterId: c2, workloadIps: ["10.0.0.22"], services: { shop/twin.shop.svc.cluster.local: {} } }
services:
- { name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: ["n1/10.1.0.1", "n1/fd01::1"] }
- { name: web, namespace: bank, hostname: web.bank.svc.cluster.local, vips: ["n1/10.1.0.2"] }
- { name: two, namespace: shop, hostname: two.shop.svc.cluster.local, vips: ["n1/10.1.0.4", "n1/10.1.0.5"] }
- { name: only4, namespace: shop, hostname: only4.shop.svc.cluster.local, vips: ["n1/10.1.0.6", "n1/fd01::6"], ipFamilies: IPv4Only }
- { name: only6, namespace: shop, hostname: only6.shop.svc.cluster.local, vips: ["n1/10.1.0.7", "n1/fd01::7"], ipFamilies: IPv6Only }
- { name: dual, namespace: shop, hostname: dual.shop.svc.cluster.local, vips: ["n1/10.1.0.8", "n1/fd01::8"], ipFamilies: Dual }
- { name: nets, namespace: shop, hostname: nets.shop.svc.cluster.local, vips: ["n1/10.1.0.9", "n2/10.2.0.9"] }
- { name: away, namespace: shop, hostname: away.shop.svc.cluster.local, vips: ["n2/10.2.0.10"] }
- { name: db, namespace: shop, hostname: db.shop.svc.cluster.local }
- { name: db4, namespace: shop, hostname: db4.shop.svc.cluster.local, ipFamilies: IPv4Only }
- { name: empty, namespace: shop, hostname: empty.shop.svc.cluster.local }
- { name: eager, namespace: shop, hostname: eager.shop.svc.cluster.local, loadBalancer: { healthPolicy: AllowAll } }
- { name: twin, namespace: shop, hostname: twin.shop.svc.cluster.local }
- { name: ext, namespace: shop, hostname: ext.example.com }
- { name: www, namespace: shop, hostname: www.example.com, vips: ["n1/240.0.0.1"] }
- { name: wild, namespace: shop, hostname: "*.example.org", vips: ["n1/240.0.0.2"] }
- { name: wilder, namespace: shop, hostname: "*.deep.example.org", vips: ["n1/240.0.0.3"] }
- { name: exact, namespace: shop, hostname: exact.example.org, vips: ["n1/240.0.0.4"] }
- { name: range, namespace: shop, hostname: range.example.com, ranges: ["n1/240.1.0.0/16"] }
- { name: range, namespace: shop, hostname: range.shop.svc.cluster.local, ranges: ["n1/240.2.0.0/16"] }
- { name: both, namespace: shop, hostname: both.example.com, vips: ["n1/240.0.0.5"], ranges: ["n1/240.3.0.0/16"] }
- { name: mine, namespace: shop, hostname: shared.example.com, vips: ["n1/240.0.0.6"] }
- { name: mine, namespace: bank, hostname: shared.example.com, vips: ["n1/240.0.0.7"] }
- { name: chief, namespace: zoo, hostname: chief.example.com, vips: ["n1/240.0.0.8"], canonical: true }
- { name: chief, namespace: ark, hostname: chief.example.com, vips: ["n1/240.0.0.9"] }
- { name: bare, namespace: shop, hostname: bare.example.com }
- { name: bare, namespace: zoo, hostname: bare.example.com, vips: ["n1/240.0.0.10"] }
- { name: secret, namespace: shop, hostname: secret.example.com, vips: ["n1/240.0.0.11"], visibility: Namespace }
- { name: short, namespace: shop, hostname: short, vips: ["n1/240.0.0.12"] }
- { name: other, namespace: shop, hostname: other.shop.svc.cluster.remote, vips: ["n1/240.0.0.13"] }
"#;

fn said(mesh: &Snapshot, question: &str, random: u64) -> String {
    let words: Vec<&str> = question.split_whitespace().collect();
    let [who, kind, name] = words[..] else {
        panic!("{question}");
    };
    let client = mesh.workload_by_uid(&crate::Uid(who.into())).unwrap();
    let family = match kind {
        "A" => Family::V4,
        "AAAA" => Family::V6,
        _ => panic!("{question}"),
    };
    match answer(
        mesh,
        "cluster.local",
        client,
        &Question { name, family },
        random,
    ) {
        Answer::NotMine => "not mine".to_owned(),
        Answer::NoData => "nothing".to_owned(),
        Answer::Records {
            mut addresses,
            canonical,
        } => {
            addresses.sort_unstable();
            let canonical = canonical.map(|name| format!("cname {name}"));
            let addresses = addresses.iter().map(ToString::to_string);
            canonical
                .into_iter()
                .chain(addresses)
                .collect::<Vec<_>>()
                .join(" ")
        }
    }
}

/// Whether it is known, without the workload, that the mesh may have an answer.
fn foreseen(mesh: &Snapshot, question: &str) -> bool {
    let (who, name) = question.split_once(' ').unwrap();
    let (_, name) = name.trim_start().split_once(' ').unwrap();
    let client = mesh.workload_by_uid(&crate::Uid(who.into())).unwrap();
    let namespace = Some(&*client.namespace);
    may_be_mine(mesh, "cluster.local", namespace, name.trim())
}

/// Checks a table, and that it has so many lines that a part of it cannot be lost.
fn check(lines: usize, table: &str) {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    let lines_of = || {
        let lines = table.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
    };
    let mut wrong = String::new();
    for line in lines_of() {
        let (question, expected) = line.split_once(" => ").unwrap();
        let found = said(&mesh, question, 1);
        // Of what is answered it must have been known before, without the workload.
        if found != "not mine" && !foreseen(&mesh, question) {
            wrong.push_str(&format!(
                "{question}\n    is answered and was not foreseen\n"
            ));
        }
        if found != expected {
            wrong.push_str(&format!("{question}\n    => {expected}\n    but {found}\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert_eq!(lines_of().count(), lines, "lines in the table");
}

#[test]
fn services_are_found_by_their_names() {
    check(
        18,
        "
        shop A web.shop.svc.cluster.local => 10.1.0.1
        shop AAAA web.shop.svc.cluster.local => fd01::1
        bank A web.shop.svc.cluster.local => 10.1.0.1
        # A service without an address of the kind has the name all the same.
        shop AAAA web.bank.svc.cluster.local => nothing
        shop A two.shop.svc.cluster.local => 10.1.0.4 10.1.0.5
        shop A www.example.com => 240.0.0.1
        shop AAAA www.example.com => nothing
        # What the mesh does not know is not said to be missing.
        shop A nobody.shop.svc.cluster.local => not mine
        shop A www.example.net => not mine
        shop A com => not mine
        shop A cluster.local => not mine
        shop A svc.cluster.local => not mine
        shop A shop.svc.cluster.local => not mine
        # Half a name is none.
        shop A eb.shop.svc.cluster.local => not mine
        shop A xwww.example.com => not mine
        # Another cluster's domain is no part of a short name.
        shop A other.shop.svc.cluster.remote => 240.0.0.13
        shop A other.shop.svc => not mine
        shop A other => not mine
        ",
    );
}

#[test]
fn kubernetes_short_names_are_expanded() {
    check(
        12,
        "
        shop A web => 10.1.0.1
        bank A web => 10.1.0.2
        shop A web.shop => 10.1.0.1
        shop A web.bank => 10.1.0.2
        bank A web.shop => 10.1.0.1
        shop A web.bank.svc => 10.1.0.2
        bank A two => not mine
        bank A two.shop => 10.1.0.4 10.1.0.5
        shop A web.zoo => not mine
        shop A web.shop.svc.cluster => not mine
        # A host may be called by one word.
        shop A short => 240.0.0.12
        shop AAAA short => nothing
        ",
    );
}

#[test]
fn search_domains_are_removed() {
    check(
        14,
        "
        shop A www.example.com.shop.svc.cluster.local => cname www.example.com 240.0.0.1
        shop A www.example.com.svc.cluster.local => cname www.example.com 240.0.0.1
        shop A www.example.com.cluster.local => cname www.example.com 240.0.0.1
        shop AAAA www.example.com.shop.svc.cluster.local => nothing
        # Those of another namespace are none of this client's.
        bank A www.example.com.shop.svc.cluster.local => not mine
        bank A www.example.com.bank.svc.cluster.local => cname www.example.com 240.0.0.1
        shop A web.bank.shop.svc.cluster.local => cname web.bank 10.1.0.2
        shop A web.bank.svc.shop.svc.cluster.local => cname web.bank.svc 10.1.0.2
        shop A web.bank.svc.cluster.local.shop.svc.cluster.local => cname web.bank.svc.cluster.local 10.1.0.2
        shop A web.bank.svc.svc.cluster.local => cname web.bank.svc 10.1.0.2
        # The name itself goes first.
        shop A two.shop.svc.cluster.local => 10.1.0.4 10.1.0.5
        # A wildcard has no name of its own to point to.
        shop A a.example.org.shop.svc.cluster.local => 240.0.0.2
        shop A www.example.net.shop.svc.cluster.local => not mine
        shop A short.shop.svc.cluster.local => cname short 240.0.0.12
        ",
    );
}

#[test]
fn wildcards_match_by_the_longest_suffix() {
    check(
        9,
        "
        shop A a.example.org => 240.0.0.2
        shop A b.a.example.org => 240.0.0.2
        shop A a.deep.example.org => 240.0.0.3
        shop A b.a.deep.example.org => 240.0.0.3
        shop A deep.example.org => 240.0.0.2
        shop A exact.example.org => 240.0.0.4
        shop AAAA a.example.org => nothing
        # It stands for at least one label.
        shop A example.org => not mine
        shop A aexample.org => not mine
        ",
    );
}

#[test]
fn addresses_are_of_the_family_and_the_clients_network() {
    check(
        15,
        "
        shop A only4.shop.svc.cluster.local => 10.1.0.6
        shop AAAA only4.shop.svc.cluster.local => nothing
        shop A only6.shop.svc.cluster.local => nothing
        shop AAAA only6.shop.svc.cluster.local => fd01::7
        shop A dual.shop.svc.cluster.local => 10.1.0.8
        shop AAAA dual.shop.svc.cluster.local => fd01::8
        shop A db4.shop.svc.cluster.local => 10.0.0.10
        shop AAAA db4.shop.svc.cluster.local => nothing
        # An address means something in its own network only.
        shop A nets.shop.svc.cluster.local => 10.1.0.9
        far A nets.shop.svc.cluster.local => 10.2.0.9
        shop A away.shop.svc.cluster.local => nothing
        far A away.shop.svc.cluster.local => 10.2.0.10
        # A range is no address.
        shop A range.example.com => not mine
        shop A range.shop.svc.cluster.local => not mine
        shop A both.example.com => 240.0.0.5
        ",
    );
}

#[test]
fn headless_services_return_their_pods() {
    check(
        22,
        "
        # Who is not healthy is left out, and who is in another network.
        shop A db.shop.svc.cluster.local => 10.0.0.10 10.0.0.11
        shop AAAA db.shop.svc.cluster.local => fd00::10
        far A db.shop.svc.cluster.local => 10.0.0.13
        shop A db => 10.0.0.10 10.0.0.11
        bank A db.shop => 10.0.0.10 10.0.0.11
        # Unless the service wants them.
        shop A eager => 10.0.0.12
        shop A empty.shop.svc.cluster.local => nothing
        # Outside Kubernetes a service without addresses is somebody else's to resolve.
        shop A ext.example.com => not mine
        shop A db-0.db.shop.svc.cluster.local => 10.0.0.10
        shop AAAA db-0.db.shop.svc.cluster.local => fd00::10
        shop AAAA db-1.db.shop.svc.cluster.local => nothing
        shop A db-1.db.shop.svc => 10.0.0.11
        shop A db-1.db.shop => 10.0.0.11
        shop A db-1.db => 10.0.0.11
        bank A db-1.db.shop => 10.0.0.11
        bank A db-1.db => not mine
        shop A db-2.db.shop.svc.cluster.local => not mine
        shop A db-9.db.shop.svc.cluster.local => not mine
        # A pod has no name behind a service with an address.
        shop A db-1.web.shop.svc.cluster.local => not mine
        # Of two pods with one name the one of the client's cluster is meant.
        shop A twin-0.twin.shop.svc.cluster.local => 10.0.0.21
        bank A twin-0.twin.shop.svc.cluster.local => 10.0.0.22
        shop A db-1.db.shop.shop.svc.cluster.local => cname db-1.db.shop 10.0.0.11
        ",
    );
}

#[test]
fn of_one_name_in_several_namespaces_the_clients_own_is_used() {
    check(
        7,
        "
        shop A shared.example.com => 240.0.0.6
        bank A shared.example.com => 240.0.0.7
        # Where the client's own namespace has none, the canonical one.
        shop A chief.example.com => 240.0.0.8
        # One without an address does not stand in the way of one that has some.
        shop A bare.example.com => 240.0.0.10
        shop A secret.example.com => 240.0.0.11
        far A secret.example.com => nothing
        bank A secret.example.com => not mine
        ",
    );
}

#[test]
fn which_names_the_mesh_may_answer_is_known_without_the_workload() {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    let may = |namespace, name| may_be_mine(&mesh, "cluster.local", namespace, name);
    for name in [
        "www.example.net",
        "www.example.net.shop.svc.cluster.local",
        "www.example.net.svc.cluster.local",
        "absent.shop.svc.cluster.local",
        "absent",
        "",
    ] {
        assert!(!may(Some("shop"), name), "{name}");
    }
    // Which service of which namespace answers depends on the workload.
    for name in [
        "web",
        "web.bank",
        "db-0.db",
        "secret.example.com",
        "x.example.org",
    ] {
        assert!(may(Some("shop"), name), "{name}");
    }
    assert!(!may(Some("zoo"), "web"));
    // Without a namespace any short name may be one.
    assert!(may(None, "absent"));
    assert!(!may(None, ""));
}

#[test]
fn the_random_number_orders_the_addresses() {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    let client = mesh.workload_by_uid(&crate::Uid("shop".into()));
    let first = |random| {
        let question = Question {
            name: "two.shop.svc.cluster.local",
            family: Family::V4,
        };
        match answer(&mesh, "cluster.local", client.unwrap(), &question, random) {
            Answer::Records { addresses, .. } => addresses[0].to_string(),
            other => panic!("{other:?}"),
        }
    };
    let thrown: Vec<String> = (0..100).map(first).collect();
    let fours = thrown.iter().filter(|first| *first == "10.1.0.4").count();
    assert!((20..80).contains(&fours), "{fours} of 100");
    assert_eq!(first(7), first(7));
}

#[test]
fn an_empty_name_is_not_in_the_mesh() {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    let client = mesh.workload_by_uid(&crate::Uid("shop".into()));
    let family = Family::V4;
    for name in ["", ".", "..", "a..b", ".web", "web."] {
        let question = Question { name, family };
        let found = answer(&mesh, "cluster.local", client.unwrap(), &question, 0);
        assert_eq!(found, Answer::NotMine, "{name:?}");
    }
}
