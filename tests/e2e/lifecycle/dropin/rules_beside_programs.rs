//! A proxy with rules beside a running proxy with programs, and the node agent between them.

use std::time::Duration;

use serde_json::json;
use ztunnel_tests::net::{Family, Rules, World};
use ztunnel_tests::traffic::Kind;

use super::{Cluster, pod_uid};
use crate::assertions::{self, HTTP, LIMIT, expect_answer};

/// During a change from programs to rules the new proxy starts while the old one still serves the pods.
/// It must not take the node agent from the old one: the agent announces new pods to the process that
/// connected last.
#[test]
fn a_proxy_with_rules_leaves_the_node_agent_to_a_running_proxy_with_programs() {
    let world = World::two_nodes().unwrap();
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        Rules::IptablesNft.install(pod).unwrap();
    }
    let mut cluster = Cluster::start(&world);
    let (here, there) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [here, there].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    expect_answer(here, there.at(Family::V4, HTTP));
    let (proxy, agent) = (cluster.mesh.proxy("a"), &mut cluster.agents[0]);
    let rules = json!("rules");
    proxy.settings.capture.extra.insert("by".to_owned(), rules);
    let mut beside = proxy.launch_another(&["--take-over"]).unwrap();
    agent.accept_standby().unwrap();
    for pod in &world.node("a").pods {
        let refused = agent.add(pod, &pod_uid(pod)).unwrap_err();
        assert!(
            format!("{refused:#}").contains("eBPF programs"),
            "{refused:#}"
        );
    }
    // It closes its connection instead of an answer.
    drop(agent.snapshot_sent());
    let line = proxy.wait_for_log("the node agent is left to it", LIMIT);
    line.unwrap();
    for _ in 0..20 {
        expect_answer(here, there.at(Family::V4, HTTP));
        expect_answer(there, here.at(Family::V6, HTTP));
    }
    // It does not come back while the other proxy serves the pods.
    assert!(agent.accept_within(Duration::from_secs(3)).is_err());
    assert!(beside.terminate(LIMIT).unwrap().success());
    expect_answer(here, there.at(Family::V4, HTTP));
    assertions::assert_all_running(&mut cluster.mesh);
}
