//! Queries in datagrams.

use super::super::*;
use super::{header, query, reply, run, run_with_little_patience};

#[test]
fn a_name_of_the_mesh_is_answered_here() {
    run(async |world| {
        let asked = query(0x1234, "wEb.sHop.svc.cluster.local");
        world.ask(&asked).await;
        let told = world.told().await;
        assert_eq!(told[..2], asked[..2]);
        assert_eq!(wire::question(&told), wire::question(&asked));
        assert!(
            told.ends_with(&[0, 0, 0, 30, 0, 4, 10, 1, 0, 1]),
            "{told:?}"
        );
        world.not_passed_on().await;
        world.asked("istio_dns_requests_total", "udp", 1);
    });
}

#[test]
fn another_name_goes_to_the_resolver_as_it_came() {
    run(async |world| {
        let asked = query(0x1234, "wWw.example.com");
        world.ask(&asked).await;
        let (passed_on, server) = world.passed_on().await;
        assert_eq!(passed_on[2..], asked[2..]);
        world
            .resolver
            .send_to(&reply(&passed_on), server)
            .await
            .unwrap();
        assert_eq!(world.told().await, reply(&asked));
        world.asked("istio_dns_upstream_requests_total", "udp", 1);
        world.asked(
            "istio_dns_upstream_request_duration_seconds_count",
            "udp",
            1,
        );
    });
}

#[test]
fn what_is_not_understood_goes_there_too() {
    run(async |world| {
        let mut update = query(0x1234, "web.shop.svc.cluster.local");
        update[2] = 0x28;
        let mut no_question = query(0x1234, "a");
        no_question.truncate(12);
        no_question[5] = 0;
        let mut other_type = query(0x1234, "web.shop.svc.cluster.local");
        let kind = other_type.len() - 3;
        other_type[kind] = 33;
        let mut with_more = [&query(0x1234, "a.b")[..], b"\xc0\xc0more"].concat();
        with_more[11] = 1;
        for asked in [update, no_question, other_type, with_more] {
            world.ask(&asked).await;
            let (passed_on, server) = world.passed_on().await;
            assert_eq!(passed_on[2..], asked[2..]);
            let mut answer = passed_on.clone();
            answer[2] |= 0x80;
            world.resolver.send_to(&answer, server).await.unwrap();
            assert_eq!(world.told().await[..2], [0x12, 0x34]);
        }
    });
}

#[test]
fn only_the_answer_to_the_very_query_counts() {
    run(async |world| {
        let asked = query(1, "www.example.com");
        world.ask(&asked).await;
        let (passed_on, server) = world.passed_on().await;
        let good = reply(&passed_on);
        let mut other_id = good.clone();
        other_id[0] ^= 1;
        let mut other_name = good.clone();
        other_name[13] = b'x';
        let mut no_response = good.clone();
        no_response[2] &= 0x7f;
        let mut no_question = good.clone();
        no_question[5] = 0;
        for bad in [other_id, other_name, no_response, no_question, vec![1]] {
            world.resolver.send_to(&bad, server).await.unwrap();
        }
        // The right answer from a wrong address.
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        stranger.send_to(&good, server).await.unwrap();
        world.silence().await;
        world.resolver.send_to(&good, server).await.unwrap();
        assert_eq!(world.told().await, reply(&asked));
    });
}

#[test]
fn ids_and_ports_are_not_those_of_before() {
    run(async |world| {
        let (mut ids, mut ports) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let name = format!("host-{number}.example.com");
            world.ask(&query(7, &name)).await;
            let (passed_on, server) = world.passed_on().await;
            ids.push(header(&passed_on).id);
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
fn an_answer_is_kept() {
    run(async |world| {
        world.ask(&query(1, "www.example.com")).await;
        let (passed_on, server) = world.passed_on().await;
        world
            .resolver
            .send_to(&reply(&passed_on), server)
            .await
            .unwrap();
        world.told().await;
        let again = query(2, "WWW.example.com");
        world.ask(&again).await;
        assert_eq!(world.told().await, reply(&again));
        world.not_passed_on().await;
    });
}

#[test]
fn a_truncated_answer_is_passed_on_and_not_kept() {
    run(async |world| {
        for id in [1, 2] {
            world.ask(&query(id, "www.example.com")).await;
            let (passed_on, server) = world.passed_on().await;
            let mut cut = passed_on.clone();
            cut[2..4].copy_from_slice(&[0x83, 0x80]);
            world.resolver.send_to(&cut, server).await.unwrap();
            let told = world.told().await;
            assert!(header(&told).is_truncated());
            assert_eq!(told[2..], cut[2..]);
        }
    });
}

#[test]
fn a_resolver_that_is_silent_is_a_failure() {
    run_with_little_patience(async |world| {
        let asked = query(9, "www.example.com");
        world.ask(&asked).await;
        let told = world.told().await;
        assert_eq!(header(&told).code(), 2);
        assert_eq!(wire::question(&told), wire::question(&asked));
        world.asked("istio_dns_upstream_failures_total", "udp", 1);
    });
}

#[test]
fn a_resolver_that_is_not_there_is_a_failure_at_once() {
    run(async |world| {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        world.pod.resolver.set(gone.local_addr().ok());
        drop(gone);
        world.ask(&query(9, "www.example.com")).await;
        assert_eq!(header(&world.told().await).code(), 2);
    });
}

#[test]
fn where_the_resolver_is_not_known_names_of_the_mesh_are() {
    run(async |world| {
        world.pod.resolver.set(None);
        world.ask(&query(9, "www.example.com")).await;
        assert_eq!(header(&world.told().await).code(), 2);
        world.refused("unknown_resolver", 1);
        world.ask(&query(9, "web")).await;
        assert_eq!(header(&world.told().await).code(), 0);
    });
}
