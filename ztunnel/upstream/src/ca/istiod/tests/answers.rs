//! Answers of the authority that are accepted, and the errors for those that are refused.

use std::time::SystemTime;

use rcgen::ExtendedKeyUsagePurpose;

use super::super::request::CertificateRequest;
use super::control_plane::{Leaf, ReceivedRequest};
use super::*;

/// Creates the answer to a request.
type Answer = fn(&Authority, &ReceivedRequest) -> Vec<String>;

fn csr_of_another_key(account: &str) -> String {
    let certificate = CertificateRequest::new(&identity(account), Requester::Node).unwrap();
    let config = Config::new("https://istiod");
    let request = certificate.message(&config, &MetadataMap::new()).unwrap();
    request.into_inner().csr
}

async fn issue_with(answer: Answer) -> Result<Issued, IssueError> {
    let mesh = Arc::new(Authority::new("mesh"));
    let signing = mesh.clone();
    let script = answers(move |received| Ok(answer(&signing, received)));
    World::with(mesh, script)
        .client()
        .issue(&identity("a"))
        .await
}

#[tokio::test]
async fn a_chain_may_be_split_into_texts_in_many_ways() {
    let cases: [(&str, Answer); 6] = [
        ("as the control plane sends it", |mesh, received| {
            let issuing = mesh.intermediate("issuing");
            let leaf = issuing.sign(&received.csr, Leaf::default());
            vec![leaf, issuing.root.clone(), mesh.root.clone()]
        }),
        ("leaf and intermediate together", |mesh, received| {
            let issuing = mesh.intermediate("issuing");
            let leaf = issuing.sign(&received.csr, Leaf::default());
            vec![leaf + &issuing.root, mesh.root.clone()]
        }),
        ("intermediate and root together", |mesh, received| {
            let issuing = mesh.intermediate("issuing");
            let leaf = issuing.sign(&received.csr, Leaf::default());
            vec![leaf, issuing.root.clone() + &mesh.root]
        }),
        ("all in one", |mesh, received| {
            let issuing = mesh.intermediate("issuing");
            let leaf = issuing.sign(&received.csr, Leaf::default());
            vec![leaf + &issuing.root + &mesh.root]
        }),
        ("an empty part in the middle", |mesh, received| {
            let issuing = mesh.intermediate("issuing");
            let leaf = issuing.sign(&received.csr, Leaf::default());
            let parts = [leaf, issuing.root, "\n".to_owned(), mesh.root.clone()];
            parts.into()
        }),
        ("an intermediate as the root", |mesh, received| {
            let top = mesh.intermediate("top");
            let issuing = top.intermediate("issuing");
            let leaf = issuing.sign(&received.csr, Leaf::default());
            vec![leaf, issuing.root, top.root]
        }),
    ];
    for (case, answer) in cases {
        let issued = issue_with(answer)
            .await
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!((issued.chain.len(), issued.roots.len()), (2, 1), "{case}");
    }
}

async fn assert_refused(cases: &[(&str, Answer)]) {
    for (expected, answer) in cases {
        let error = issue_with(*answer).await.err();
        let error = error.unwrap_or_else(|| panic!("accepted: {expected}"));
        assert_eq!(error.reason(), "ca_unusable", "{error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn the_error_describes_an_invalid_answer() {
    let cases: [(&str, Answer); 7] = [
        ("no certificate and no root", |_, _| vec![]),
        ("no certificate and no root", |_, _| vec![String::new()]),
        ("1 certificate and no root", |mesh, received| {
            vec![mesh.sign(&received.csr, Leaf::default())]
        }),
        (
            "part 2 of 2 of the answer holds no certificate",
            |mesh, received| {
                let leaf = mesh.sign(&received.csr, Leaf::default());
                vec![leaf, "garbage".to_owned()]
            },
        ),
        (
            "part 1 of 2 of the answer cannot be parsed",
            |mesh, received| {
                let leaf = mesh.sign(&received.csr, Leaf::default());
                vec![leaf.replace("MII", "M!!"), mesh.root.clone()]
            },
        ),
        ("cannot be decoded", |mesh, _| {
            let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
            vec![nonsense.to_owned(), mesh.root.clone()]
        }),
        ("more than 128 certificates", |mesh, received| {
            let leaf = mesh.sign(&received.csr, Leaf::default());
            vec![leaf, mesh.root.repeat(128)]
        }),
    ];
    assert_refused(&cases).await;
}

#[tokio::test]
async fn a_certificate_that_peers_would_refuse_is_refused() {
    let cases: [(&str, Answer); 6] = [
        (
            "sa/b instead of spiffe://cluster.local",
            |mesh, received| {
                let leaf = mesh.sign_as(&received.csr, identity("b").as_str());
                vec![leaf, mesh.root.clone()]
            },
        ),
        ("for another key", |mesh, _| {
            let leaf = mesh.sign(&csr_of_another_key("a"), Leaf::default());
            vec![leaf, mesh.root.clone()]
        }),
        ("UnknownIssuer", |mesh, received| {
            let leaf = mesh.sign(&received.csr, Leaf::default());
            vec![leaf, Authority::new("mesh").root]
        }),
        ("expired", |mesh, received| {
            let not_after = SystemTime::now() - Duration::from_secs(10);
            let leaf = Leaf {
                not_after,
                ..Leaf::default()
            };
            vec![mesh.sign(&received.csr, leaf), mesh.root.clone()]
        }),
        ("not valid yet", |mesh, received| {
            let not_before = SystemTime::now() + Duration::from_secs(100);
            let leaf = Leaf {
                not_before,
                ..Leaf::default()
            };
            vec![mesh.sign(&received.csr, leaf), mesh.root.clone()]
        }),
        ("InvalidPurpose", |mesh, received| {
            let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let leaf = Leaf {
                usages,
                ..Leaf::default()
            };
            vec![mesh.sign(&received.csr, leaf), mesh.root.clone()]
        }),
    ];
    assert_refused(&cases).await;
}

#[tokio::test]
async fn a_huge_answer_is_not_read() {
    let error = issue_with(|mesh, received| {
        let leaf = mesh.sign(&received.csr, Leaf::default());
        vec![leaf, "x".repeat(3 << 20)]
    });
    let error = error.await.unwrap_err();
    assert_eq!(error.reason(), "ca_unusable");
    assert!(error.to_string().contains("524288 bytes"), "{error}");
}

#[tokio::test]
async fn a_timeout_ends_the_request_and_the_next_one_uses_a_new_connection() {
    let mesh = Arc::new(Authority::new("mesh"));
    let signing = mesh.clone();
    let script: Box<Script> = Box::new(move |received| {
        let leaf = signing.sign(&received.csr, Leaf::default());
        let slow = received.on_behalf_of.as_deref() == Some(identity("slow").as_str());
        let pause = Duration::from_secs(if slow { 60 } else { 0 });
        (pause, Ok(vec![leaf, signing.root.clone()]))
    });
    let world = World::with(mesh, script);
    let client = world.client();
    let error = client.issue(&identity("slow")).await.unwrap_err();
    assert_eq!(error.reason(), "ca_unavailable");
    client.issue(&identity("a")).await.unwrap();
    let received = world.control_plane.requests();
    assert_eq!(received.len(), 2);
    assert_ne!(received[0].from, received[1].from, "{error}");
}
