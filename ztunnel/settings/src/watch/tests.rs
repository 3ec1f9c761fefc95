//! Every kind of change of a file is reported once.

use std::os::unix::fs::symlink;

use futures::FutureExt as _;
use tempfile::TempDir;

use super::*;

/// Longer than a change may take to be reported.
const SOON: Duration = Duration::from_secs(5);
/// Long enough that a second report would have come.
const NOTHING: Duration = Duration::from_millis(600);

async fn expect_one(watcher: &mut Watcher, what: &str) {
    assert!(
        timeout(SOON, watcher.changed()).await.is_ok(),
        "not noticed: {what}"
    );
    assert!(
        timeout(NOTHING, watcher.changed()).await.is_err(),
        "noticed twice: {what}"
    );
}

fn world() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("settings.yaml");
    std::fs::write(&file, "one").unwrap();
    (directory, file)
}

#[tokio::test]
async fn writing_in_place_renaming_over_removing_and_coming_back() {
    let (directory, file) = world();
    let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
    std::fs::write(&file, "two").unwrap();
    expect_one(&mut watcher, "in place").await;

    let fresh = directory.path().join("settings.yaml.new");
    std::fs::write(&fresh, "three").unwrap();
    std::fs::rename(&fresh, &file).unwrap();
    expect_one(&mut watcher, "renamed over").await;

    std::fs::write(&file, "four").unwrap();
    expect_one(&mut watcher, "in place after a rename").await;

    std::fs::remove_file(&file).unwrap();
    expect_one(&mut watcher, "removed").await;
    std::fs::write(&file, "five").unwrap();
    expect_one(&mut watcher, "come back").await;
}

#[tokio::test]
async fn quick_successive_writes_are_one_change() {
    let (_directory, file) = world();
    let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
    let writer = file.clone();
    let writes = tokio::spawn(async move {
        for number in 0..10 {
            std::fs::write(&writer, format!("number {number}")).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(timeout(SOON, watcher.changed()).await.is_ok());
    writes.await.unwrap();
    let mut reports = 1;
    while timeout(NOTHING, watcher.changed()).await.is_ok() {
        reports += 1;
    }
    // On a busy machine there may be a quiet moment between two of them.
    assert!(reports <= 3, "{reports}");
}

#[tokio::test]
async fn the_same_contents_again_and_other_files_are_no_change() {
    let (directory, file) = world();
    let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
    std::fs::write(&file, "one").unwrap();
    std::fs::write(directory.path().join("other"), "x").unwrap();
    assert!(timeout(NOTHING, watcher.changed()).await.is_err());
}

#[tokio::test]
async fn a_config_map_is_updated() {
    // As kubelet does it: settings.yaml -> ..data/settings.yaml, ..data -> a directory by date.
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let publish = |name: &str, contents: &str| {
        std::fs::create_dir(root.join(name)).unwrap();
        std::fs::write(root.join(name).join("settings.yaml"), contents).unwrap();
        symlink(name, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    publish("..2026_01", "one");
    let file = root.join("settings.yaml");
    symlink("..data/settings.yaml", &file).unwrap();
    let mut watcher = Watcher::new(&[file]).unwrap();
    publish("..2026_02", "two");
    std::fs::remove_dir_all(root.join("..2026_01")).unwrap();
    expect_one(&mut watcher, "first update").await;
    publish("..2026_03", "three");
    std::fs::remove_dir_all(root.join("..2026_02")).unwrap();
    expect_one(&mut watcher, "second update").await;
}

#[tokio::test]
async fn a_swapped_link_and_a_written_target_are_reported() {
    let (directory, one) = world();
    let elsewhere = tempfile::tempdir().unwrap();
    let two = elsewhere.path().join("two.yaml");
    std::fs::write(&two, "two").unwrap();
    let link = directory.path().join("link.yaml");
    symlink(&one, &link).unwrap();
    let mut watcher = Watcher::new(std::slice::from_ref(&link)).unwrap();
    let fresh = directory.path().join("fresh");
    symlink(&two, &fresh).unwrap();
    std::fs::rename(&fresh, &link).unwrap();
    expect_one(&mut watcher, "swapped").await;
    std::fs::write(&two, "three").unwrap();
    expect_one(&mut watcher, "written behind the link").await;
}

#[tokio::test]
async fn several_files_and_a_change_of_targets() {
    let (directory, one) = world();
    let two = directory.path().join("mesh.yaml");
    let mut watcher = Watcher::new(&[one.clone(), two.clone()]).unwrap();
    std::fs::write(&two, "appears").unwrap();
    expect_one(&mut watcher, "the second file").await;
    watcher.retarget(std::slice::from_ref(&one)).unwrap();
    std::fs::write(&two, "again").unwrap();
    assert!(timeout(NOTHING, watcher.changed()).await.is_err());
    std::fs::write(&one, "two").unwrap();
    expect_one(&mut watcher, "the first file").await;
}

#[tokio::test]
async fn a_change_whose_report_was_cancelled_is_reported_later() {
    let (_directory, file) = world();
    let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
    std::fs::write(&file, "two").unwrap();
    // The wait is cancelled after the event has arrived and before it is reported.
    let until = Instant::now() + SOON;
    while !watcher.pending && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(watcher.changed().now_or_never().is_none());
    }
    assert!(watcher.pending, "not noticed");
    expect_one(&mut watcher, "cancelled").await;
}

#[test]
fn a_missing_directory_is_named() {
    let error = Watcher::new(&[PathBuf::from("/nowhere/settings.yaml")]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot watch directory /nowhere: "),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_beside_it_that_is_written_all_the_time_delays_nothing() {
    let (directory, file) = world();
    let mut log = std::fs::File::create(directory.path().join("log")).unwrap();
    let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
    let mut noise = async || {
        loop {
            std::io::Write::write_all(&mut log, b"line\n").unwrap();
            tokio::time::sleep(QUIET / 10).await;
        }
    };
    // It does not even wake the watcher, so it cannot keep a change from being finished.
    let events = watcher.events.clone();
    tokio::select! {
        () = events.notified() => panic!("woken by another file"),
        () = noise() => {}
        () = tokio::time::sleep(NOTHING) => {}
    }
    std::fs::write(&file, "two").unwrap();
    tokio::select! {
        () = watcher.changed() => {}
        () = noise() => {}
        () = tokio::time::sleep(SOON) => panic!("not noticed"),
    }
}
