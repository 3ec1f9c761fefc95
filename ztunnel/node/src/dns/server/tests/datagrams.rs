//! Queries in datagrams.

use super::*;

#[test]
fn a_name_of_the_mesh_is_answered_by_the_server() {
    run(async |world| {
        let sent = query(0x1234, "wEb.sHop.svc.cluster.local");
        world.send(&sent).await;
        let answer = world.receive().await;
        assert_eq!(answer[..2], sent[..2]);
        assert_eq!(wire::question(&answer), wire::question(&sent));
        assert!(
            answer.ends_with(&[0, 0, 0, 30, 0, 4, 10, 1, 0, 1]),
            "{answer:?}"
        );
        world.expect_not_forwarded().await;
        world.expect_count("istio_dns_requests_total", "udp", 1);
    });
}

#[test]
fn another_name_is_forwarded_unchanged() {
    run(async |world| {
        let sent = query(0x1234, "wWw.example.com");
        world.send(&sent).await;
        let (forwarded, server) = world.receive_forwarded().await;
        assert_eq!(forwarded[2..], sent[2..]);
        world
            .resolver
            .send_to(&reply(&forwarded), server)
            .await
            .unwrap();
        assert_eq!(world.receive().await, reply(&sent));
        world.expect_count("istio_dns_upstream_requests_total", "udp", 1);
        world.expect_count(
            "istio_dns_upstream_request_duration_seconds_count",
            "udp",
            1,
        );
    });
}

#[test]
fn messages_that_are_not_plain_queries_are_forwarded() {
    run(async |world| {
        let mut update = query(0x1234, "web.shop.svc.cluster.local");
        update[2] = 0x28;
        let mut no_question = query(0x1234, "a");
        no_question.truncate(12);
        no_question[5] = 0;
        let mut other_type = query(0x1234, "web.shop.svc.cluster.local");
        let type_at = other_type.len() - 3;
        other_type[type_at] = 33;
        let mut with_more = [&query(0x1234, "a.b")[..], b"\xc0\xc0more"].concat();
        with_more[11] = 1;
        for sent in [update, no_question, other_type, with_more] {
            world.send(&sent).await;
            let (forwarded, server) = world.receive_forwarded().await;
            assert_eq!(forwarded[2..], sent[2..]);
            let mut answer = forwarded.clone();
            answer[2] |= 0x80;
            world.resolver.send_to(&answer, server).await.unwrap();
            assert_eq!(world.receive().await[..2], [0x12, 0x34]);
        }
    });
}

#[test]
fn only_the_answer_to_the_query_is_accepted() {
    run(async |world| {
        let sent = query(1, "www.example.com");
        world.send(&sent).await;
        let (forwarded, server) = world.receive_forwarded().await;
        let good = reply(&forwarded);
        let mut other_id = good.clone();
        other_id[0] ^= 1;
        let mut other_name = good.clone();
        other_name[13] = b'x';
        let mut not_a_response = good.clone();
        not_a_response[2] &= 0x7f;
        let mut no_question = good.clone();
        no_question[5] = 0;
        for bad in [other_id, other_name, not_a_response, no_question, vec![1]] {
            world.resolver.send_to(&bad, server).await.unwrap();
        }
        // The right answer from a wrong address.
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        stranger.send_to(&good, server).await.unwrap();
        world.expect_no_reply().await;
        world.resolver.send_to(&good, server).await.unwrap();
        assert_eq!(world.receive().await, reply(&sent));
    });
}

#[test]
fn each_forwarded_query_has_its_own_id_and_port() {
    run(async |world| {
        let (mut ids, mut ports) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let name = format!("host-{number}.example.com");
            world.send(&query(7, &name)).await;
            let (forwarded, server) = world.receive_forwarded().await;
            ids.push(header(&forwarded).id);
            ports.push(server.port());
        }
        ids.sort_unstable();
        ids.dedup();
        ports.sort_unstable();
        ports.dedup();
        assert!(ids.len() >= 18, "{ids:?}");
        assert_eq!(ports.len(), 20);
    });
}

#[test]
fn an_answer_is_cached() {
    run(async |world| {
        world.send(&query(1, "www.example.com")).await;
        let (forwarded, server) = world.receive_forwarded().await;
        world
            .resolver
            .send_to(&reply(&forwarded), server)
            .await
            .unwrap();
        world.receive().await;
        let again = query(2, "WWW.example.com");
        world.send(&again).await;
        assert_eq!(world.receive().await, reply(&again));
        world.expect_not_forwarded().await;
    });
}

#[test]
fn a_truncated_answer_is_returned_and_not_cached() {
    run(async |world| {
        for id in [1, 2] {
            world.send(&query(id, "www.example.com")).await;
            let (forwarded, server) = world.receive_forwarded().await;
            let mut truncated = forwarded.clone();
            truncated[2..4].copy_from_slice(&[0x83, 0x80]);
            world.resolver.send_to(&truncated, server).await.unwrap();
            let answer = world.receive().await;
            assert!(header(&answer).truncation);
            assert_eq!(answer[2..], truncated[2..]);
        }
    });
}

#[test]
fn a_silent_resolver_is_a_server_failure() {
    run_with_short_timeout(async |world| {
        let sent = query(9, "www.example.com");
        world.send(&sent).await;
        let answer = world.receive().await;
        assert_eq!(header(&answer).response_code, ResponseCode::ServFail);
        assert_eq!(wire::question(&answer), wire::question(&sent));
        world.expect_count("istio_dns_upstream_failures_total", "udp", 1);
    });
}

#[test]
fn an_unreachable_resolver_is_a_server_failure_at_once() {
    run(async |world| {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        world.pod.resolver.set(gone.local_addr().ok());
        drop(gone);
        world.send(&query(9, "www.example.com")).await;
        assert_eq!(
            header(&world.receive().await).response_code,
            ResponseCode::ServFail
        );
    });
}

#[test]
fn without_a_known_resolver_only_names_of_the_mesh_are_answered() {
    run(async |world| {
        world.pod.resolver.set(None);
        world.send(&query(9, "www.example.com")).await;
        assert_eq!(
            header(&world.receive().await).response_code,
            ResponseCode::ServFail
        );
        world.expect_refused("unknown_resolver", 1);
        world.send(&query(9, "web")).await;
        assert_eq!(
            header(&world.receive().await).response_code,
            ResponseCode::NoError
        );
    });
}
