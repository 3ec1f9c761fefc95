//! A pod whose workload the mesh does not know yet.

use super::super::forward::{read_frame, write_frame};
use super::super::*;
use super::{header, query, reply, run};

/// The last bytes of the answer with the service's address.
const ADDRESS: [u8; 4] = [10, 1, 0, 1];

#[test]
fn a_name_of_the_mesh_is_answered_when_the_workload_is_known() {
    run(async |world| {
        world.pod.known.set(false);
        let mut stream = world.connect().await;
        for (id, name) in [(1, "web"), (2, "web.shop.svc.cluster.local")] {
            world.ask(&query(id, name)).await;
        }
        write_frame(&mut stream, &query(3, "web")).await.unwrap();
        world.silence().await;
        world.pod.pushed.send_replace(Some(Ok(())));
        let mut told = Vec::new();
        for _ in 0..2 {
            let answer = world.told().await;
            assert!(answer.ends_with(&ADDRESS), "{answer:?}");
            told.push(header(&answer).id);
        }
        told.sort_unstable();
        assert_eq!(told, [1, 2]);
        let answer = read_frame(&mut stream).await.unwrap();
        assert!(answer.ends_with(&ADDRESS), "{answer:?}");
        // Each query is counted once, with the labels of the workload.
        world.asked("istio_dns_requests_total", "udp", 2);
        world.asked("istio_dns_requests_total", "tcp", 1);
        world.not_passed_on().await;
    });
}

#[test]
fn what_does_not_depend_on_who_asks_goes_to_the_resolver_at_once() {
    run(async |world| {
        world.pod.known.set(false);
        let mut other_type = query(0, "web.shop.svc.cluster.local");
        let kind = other_type.len() - 3;
        other_type[kind] = 33;
        // With search domains, as resolver libraries send them first.
        let foreign = ["www.example.com", "www.example.com.shop.svc.cluster.local"];
        let foreign = foreign.map(|name| query(7, name));
        for asked in foreign.into_iter().chain([other_type]) {
            world.ask(&asked).await;
            let (passed_on, server) = world.passed_on().await;
            assert_eq!(passed_on[2..], asked[2..]);
            let answer = reply(&passed_on);
            world.resolver.send_to(&answer, server).await.unwrap();
            assert_eq!(world.told().await[..2], asked[..2]);
        }
    });
}

#[test]
fn a_pod_that_stays_unknown_is_told_nothing_of_the_mesh() {
    run(async |world| {
        for (why, label) in [
            (DnsRefusal::UnknownWorkload, "unknown_workload"),
            (DnsRefusal::TooMany, "too_many"),
        ] {
            world.pod.known.set(false);
            world.pod.pushed.send_replace(Some(Err(why)));
            world.ask(&query(9, "web")).await;
            assert_eq!(header(&world.told().await).code(), 2);
            world.refused(label, 1);
        }
        world.not_passed_on().await;
    });
}
