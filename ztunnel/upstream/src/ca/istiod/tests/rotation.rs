//! Changes while the client runs: a restart of the control plane, and rotations of the roots.

use super::control_plane::Leaf;
use super::*;

#[tokio::test]
async fn a_broken_connection_is_opened_again() {
    let world = World::new();
    let client = world.client();
    client.issue(&identity("a")).await.unwrap();
    let World {
        mesh,
        authority,
        control_plane,
        files: _files,
    } = world;
    let reserved_port = control_plane.stop().await;
    let error = client.issue(&identity("a")).await.unwrap_err();
    assert_eq!(error.reason(), "ca_unavailable", "{error}");
    let again = ControlPlane::serve_again(reserved_port, &authority, NAME, signs(&mesh));
    client.issue(&identity("a")).await.unwrap();
    assert_eq!(again.requests().len(), 1);
}

#[tokio::test]
async fn the_root_of_the_control_plane_may_change() {
    let world = World::new();
    let client = world.client();
    client.issue(&identity("a")).await.unwrap();
    // While the file is damaged, its last valid content stays in use.
    world.write("root.pem", "-----BEGIN CERT");
    client.issue(&identity("a")).await.unwrap();
    let (next, root) = (Authority::new("next"), world.path("root.pem"));
    let World {
        mesh,
        control_plane,
        files,
        ..
    } = world;
    let reserved_port = control_plane.stop().await;
    let again = ControlPlane::serve_again(reserved_port, &next, NAME, signs(&mesh));
    let error = client.issue(&identity("a")).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    std::fs::write(root, &next.root).unwrap();
    client.issue(&identity("a")).await.unwrap();
    assert_eq!(again.requests().len(), 1);
    drop(files);
}

/// A control plane during a root rotation: it signs with one root and sends both.
fn sends_both(signs: &Arc<Authority>, other: &Arc<Authority>) -> Box<Script> {
    let (signs, other) = (signs.clone(), other.clone());
    answers(move |received| {
        let leaf = signs.sign(&received.csr, Leaf::default());
        Ok(vec![leaf, other.root.clone() + &signs.root])
    })
}

#[tokio::test]
async fn peers_of_two_roots_accept_each_other_when_answers_hold_both() {
    // Both roots have the same name, as those of a control plane.
    let (old, new) = (Authority::new("mesh"), Authority::new("mesh"));
    let (old, new) = (Arc::new(old), Arc::new(new));
    let before = World::with(old.clone(), sends_both(&old, &new));
    let after = World::with(new.clone(), sends_both(&new, &old));
    let (before, after) = (store(before.client()), store(after.client()));
    let (a, b) = (identity("a"), identity("b"));
    handshake((&before, &a), (&after, &b)).await.unwrap();
    handshake((&after, &a), (&before, &b)).await.unwrap();
}

#[tokio::test]
async fn peers_of_two_roots_accept_each_other_when_the_file_of_mesh_roots_holds_both() {
    let (before, after) = (World::new(), World::new());
    let with_file = |world: &World| {
        world.write("mesh.pem", &world.mesh.root);
        let config = Config {
            mesh_roots: Some(world.path("mesh.pem")),
            ..world.config()
        };
        store(IstiodCa::new(config).unwrap())
    };
    let (old, new) = (with_file(&before), with_file(&after));
    let (a, b) = (identity("a"), identity("b"));
    let error = handshake((&old, &a), (&new, &b)).await.unwrap_err();
    assert_eq!(error.reason(), "unknown_issuer");

    append(&before.path("mesh.pem"), &after.mesh.root);
    append(&after.path("mesh.pem"), &before.mesh.root);
    let serial = old.get(&a).await.unwrap().serial().to_owned();
    old.renew_all();
    new.renew_all();
    let mut outcome = Err(error);
    for _ in 0..200 {
        outcome = handshake((&old, &a), (&new, &b)).await;
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    outcome.unwrap();
    handshake((&new, &b), (&old, &a)).await.unwrap();
    assert_ne!(old.get(&a).await.unwrap().serial(), serial);
}

#[tokio::test]
async fn a_root_in_the_answer_and_in_the_file_is_trusted_once() {
    let world = World::new();
    world.write("mesh.pem", &world.mesh.root);
    let client = IstiodCa::new(Config {
        mesh_roots: Some(world.path("mesh.pem")),
        ..world.config()
    });
    let client = client.unwrap();
    let issued = client.issue(&identity("a")).await.unwrap();
    assert_eq!(issued.roots.len(), 1);
    append(&world.path("mesh.pem"), &Authority::new("next").root);
    let issued = client.issue(&identity("a")).await.unwrap();
    assert_eq!(issued.roots.len(), 2);
    // While the bundle is damaged, its last valid content stays in use.
    world.write("mesh.pem", "");
    let issued = client.issue(&identity("a")).await.unwrap();
    assert_eq!(issued.roots.len(), 2);
}
