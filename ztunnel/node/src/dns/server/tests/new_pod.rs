//! A pod whose workload the snapshot does not contain yet.

use super::super::forward::{read_frame, write_frame};
use super::*;

/// The last bytes of the answer with the service's address.
const ADDRESS: [u8; 4] = [10, 1, 0, 1];

#[test]
fn a_name_of_the_mesh_is_answered_after_the_workload_arrives() {
    run(async |world| {
        world.pod.has_workload.set(false);
        let mut stream = world.connect().await;
        for (id, name) in [(1, "web"), (2, "web.shop.svc.cluster.local")] {
            world.send(&query(id, name)).await;
        }
        write_frame(&mut stream, &query(3, "web")).await.unwrap();
        world.expect_no_reply().await;
        world.pod.wait_result.send_replace(Some(Ok(())));
        let mut ids = Vec::new();
        for _ in 0..2 {
            let answer = world.receive().await;
            assert!(answer.ends_with(&ADDRESS), "{answer:?}");
            ids.push(header(&answer).id);
        }
        ids.sort_unstable();
        assert_eq!(ids, [1, 2]);
        let answer = read_frame(&mut stream).await.unwrap();
        assert!(answer.ends_with(&ADDRESS), "{answer:?}");
        // Each query is counted once, with the labels of the workload.
        world.expect_count("istio_dns_requests_total", "udp", 2);
        world.expect_count("istio_dns_requests_total", "tcp", 1);
        world.expect_not_forwarded().await;
    });
}

#[test]
fn queries_that_do_not_depend_on_the_client_are_forwarded_at_once() {
    run(async |world| {
        world.pod.has_workload.set(false);
        let mut other_type = query(0, "web.shop.svc.cluster.local");
        let type_at = other_type.len() - 3;
        other_type[type_at] = 33;
        // With search domains, as resolver libraries send them first.
        let outside = ["www.example.com", "www.example.com.shop.svc.cluster.local"];
        let outside = outside.map(|name| query(7, name));
        for sent in outside.into_iter().chain([other_type]) {
            world.send(&sent).await;
            let (forwarded, server) = world.receive_forwarded().await;
            assert_eq!(forwarded[2..], sent[2..]);
            let answer = reply(&forwarded);
            world.resolver.send_to(&answer, server).await.unwrap();
            assert_eq!(world.receive().await[..2], sent[..2]);
        }
    });
}

#[test]
fn a_pod_without_a_workload_gets_no_answer_from_the_mesh() {
    run(async |world| {
        for (refusal, label) in [
            (DnsRefusal::UnknownWorkload, "unknown_workload"),
            (DnsRefusal::TooMany, "too_many"),
        ] {
            world.pod.has_workload.set(false);
            world.pod.wait_result.send_replace(Some(Err(refusal)));
            world.send(&query(9, "web")).await;
            assert_eq!(
                header(&world.receive().await).response_code,
                ResponseCode::ServFail
            );
            world.expect_refused(label, 1);
        }
        world.expect_not_forwarded().await;
    });
}
