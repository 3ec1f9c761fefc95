//! Restart, removal, and two proxies on one machine.

use std::os::fd::AsFd as _;
use std::time::Instant;

use super::super::{Error, Installed, Kernel, Missing, captured_pods_below, is_captured, sys};
use super::world::{World, at, config, dial, in_namespace, this_namespace};

#[test]
#[ignore = "needs root"]
fn a_new_proxy_takes_over_without_a_gap() {
    in_namespace(|| {
        let mut world = World::new();
        world.kernel = Kernel::open(&config(world.directory.clone())).unwrap();
        assert_eq!(world.kernel.enrolled().unwrap(), [world.cookie]);
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert_eq!(world.captured().unwrap().1, at("192.0.2.1:80"));
        world.enroll();
        let _app = dial(at("[2001:db8::1]:80")).unwrap();
        assert_eq!(world.captured().unwrap().1, at("[2001:db8::1]:80"));
    });
}

#[test]
#[ignore = "needs root"]
fn a_withdrawn_pod_is_free_and_can_come_back() {
    in_namespace(|| {
        let world = World::new();
        world.kernel.withdraw(world.cookie).unwrap();
        world.kernel.withdraw(world.cookie).unwrap();
        assert!(world.kernel.enrolled().unwrap().is_empty());
        let server = super::world::listen(at("10.9.0.2:8080"));
        let _app = dial(at("10.9.0.2:8080")).unwrap();
        assert!(super::world::accept(&server).is_some());
        world.enroll();
        let _app = dial(at("10.9.0.2:8080")).unwrap();
        assert!(world.captured().is_some());
    });
}

#[test]
#[ignore = "needs root"]
fn a_proxy_without_programs_sees_capture_by_others() {
    in_namespace(|| {
        let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let captured = || is_captured(netns.as_fd()).unwrap();
        assert!(!captured());
        let world = World::new();
        assert!(captured());
        assert_eq!(captured_pods_below(&world.directory), 1);
        world.kernel.withdraw(world.cookie).unwrap();
        assert!(!captured());
        assert_eq!(captured_pods_below(&world.directory), 0);
        world.enroll();
        assert!(captured());
        Kernel::remove_pins(&world.directory).unwrap();
        assert!(!captured());
        assert_eq!(captured_pods_below(&world.directory), 0);
    });
}

#[test]
#[ignore = "needs root"]
fn a_namespace_that_no_longer_exists_is_withdrawn() {
    let world = in_namespace(World::new);
    let mut pin = world.pins().join("netns");
    pin.push(world.cookie.to_string());
    assert!(pin.exists());
    let directory = world.directory.clone();
    let temporary = world.leave();
    // The kernel tears namespaces down a little later.
    for _ in 0..100 {
        let kernel = Kernel::open(&config(directory.clone())).unwrap();
        if kernel.enrolled().unwrap().is_empty() {
            assert!(!pin.exists());
            Kernel::remove_pins(&directory).unwrap();
            drop(temporary);
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Kernel::remove_pins(&directory).unwrap();
    panic!("still enrolled");
}

#[test]
#[ignore = "needs root"]
fn the_process_that_was_active_last_and_is_alive_becomes_active_next() {
    in_namespace(|| {
        let world = World::new();
        let maps = &world.kernel.maps;
        let locks = &world.kernel.process_locks;
        let becomes_active = |process: u32| {
            maps.adopt_previous_proxy(locks).unwrap();
            maps.configure(|config| config.process = process).unwrap();
            let lock = locks.lock(process).unwrap();
            maps.forget_ended_proxies(process, locks).unwrap();
            lock
        };
        let is_next = |process| maps.was_active_last(process, locks).unwrap();
        let _first = becomes_active(1_000_001);
        assert!(is_next(1_000_001), "it is active");
        let second = becomes_active(1_000_002);
        assert!(is_next(1_000_001));
        drop(becomes_active(1_000_003));
        assert!(is_next(1_000_002));
        assert!(
            !is_next(1_000_001),
            "a process that was active later is alive"
        );
        // The order of a dead process does not count.
        let second_again = becomes_active(1_000_002);
        drop(becomes_active(1_000_004));
        assert!(!is_next(1_000_001));
        drop((second, second_again));
        assert!(is_next(1_000_001), "all others have ended");
        maps.configure(|config| config.process = 0).unwrap();
    });
}

#[test]
#[ignore = "needs root"]
fn removing_the_pins_ends_capture_and_leaves_no_files() {
    in_namespace(|| {
        let world = World::new();
        Kernel::remove_pins(&world.directory).unwrap();
        let server = super::world::listen(at("10.9.0.2:8080"));
        let _app = dial(at("10.9.0.2:8080")).unwrap();
        assert!(super::world::accept(&server).is_some());
        assert_eq!(std::fs::read_dir(&world.directory).unwrap().count(), 0);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(world.directory.to_str().unwrap()));
    });
}

#[test]
#[ignore = "needs root"]
fn two_proxies_on_one_machine_do_not_interfere() {
    in_namespace(|| {
        let world = World::new();
        // On the same file system, which then is not unmounted with the second's pins.
        let other = world.directory.join("other");
        let second = Kernel::open(&config(other.clone())).unwrap();
        assert!(second.enrolled().unwrap().is_empty());
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert!(world.captured().is_some());
        Kernel::remove_pins(&other).unwrap();
        assert!(!other.exists());
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert!(world.captured().is_some());
    });
}

#[test]
#[ignore = "needs root"]
fn the_proxys_own_namespace_can_be_a_pod() {
    in_namespace(|| {
        let world = World::new();
        assert_eq!(world.cookie, this_namespace());
        let _again = Kernel::open(&config(world.directory.clone())).unwrap();
        assert_eq!(world.kernel.enrolled().unwrap(), [world.cookie]);
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert!(world.captured().is_some(), "captured still");
    });
}

#[test]
#[ignore = "needs root"]
fn decisions_are_logged_while_a_forwarder_exists() {
    in_namespace(|| {
        let world = World::new();
        LINES.lock().unwrap().clear();
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
        let mut forwarder = world.kernel.log_forwarder().unwrap();
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert!(world.captured().is_some());
        let _app = dial(at("[2001:db8::1]:80")).unwrap();
        assert!(world.captured().is_some());
        forwarder.flush();
        let lines = std::mem::take(&mut *LINES.lock().unwrap());
        for part in ["::ffff:192.0.2.1 port 80", "2001:db8::1 port 80"] {
            assert!(lines.iter().any(|line| line.contains(part)), "{lines:?}");
        }
        drop(forwarder);
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert!(world.captured().is_some());
    });
}

static LINES: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

struct Recorder;

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

/// A measurement without a bound: `--nocapture` prints it.
#[test]
#[ignore = "needs root"]
fn time_to_open() {
    in_namespace(|| {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("pins");
        let mut first = Vec::new();
        let mut again = Vec::new();
        for _ in 0..20 {
            for times in [&mut first, &mut again] {
                let begin = Instant::now();
                let _kernel = Kernel::open(&config(directory.clone())).unwrap();
                times.push(begin.elapsed());
            }
            Kernel::remove_pins(&directory).unwrap();
        }
        for (name, times) in [("first", &mut first), ("takeover", &mut again)] {
            times.sort();
            eprintln!("{name}: best {:?}, median {:?}", times[0], times[10]);
        }
    });
}

#[test]
fn errors_name_the_object_and_the_remedy() {
    let error = Error::Attach {
        program: "capture4",
        target: "the cgroup /sys/fs/cgroup".into(),
        source: std::io::Error::from_raw_os_error(libc::EPERM),
    };
    let text = error.to_string();
    for part in ["capture4", "/sys/fs/cgroup", "capabilities"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(error.reason(), "attach");
    let mut missing = config("/tmp/nowhere".into());
    missing.cgroup = Some("/no/such/cgroup".into());
    let text = Kernel::open(&missing).unwrap_err().to_string();
    assert!(text.contains("/no/such/cgroup"), "{text}");
}

/// Another process removes pins, or detaches programs, while the proxy runs.
#[test]
#[ignore = "needs root"]
fn what_another_process_removes_is_restored() {
    in_namespace(|| {
        let world = World::new();
        let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let of_pod = world.pins().join("netns").join(world.cookie.to_string());
        let of_cgroup = world.pins().join("links/capture4");
        let restore_pod = || {
            let restored = world.kernel.restore_pod(netns.as_fd(), world.cookie);
            restored.unwrap().map(|installed| installed.missing)
        };
        let check_captured = || {
            let _app = dial(at("192.0.2.1:80")).unwrap();
            assert_eq!(world.captured().unwrap().1, at("192.0.2.1:80"));
        };
        assert_eq!(world.kernel.restore().unwrap(), []);
        assert_eq!(restore_pod(), None);

        for pin in [&of_pod, &of_cgroup] {
            std::fs::remove_file(pin).unwrap();
        }
        check_captured();
        let capture4 = |missing| Installed {
            name: "capture4",
            missing,
        };
        assert_eq!(world.kernel.restore().unwrap(), [capture4(Missing::Pin)]);
        assert_eq!(restore_pod(), Some(Missing::Pin));
        assert!(of_pod.exists() && of_cgroup.exists());

        for pin in [&of_pod, &of_cgroup] {
            sys::detach(sys::open_pin(pin).unwrap().as_fd()).unwrap();
        }
        assert!(!is_captured(netns.as_fd()).unwrap());
        assert_eq!(
            world.kernel.restore().unwrap(),
            [capture4(Missing::Program)]
        );
        assert_eq!(restore_pod(), Some(Missing::Program));
        assert!(is_captured(netns.as_fd()).unwrap());
        check_captured();

        // With all links.
        std::fs::remove_dir_all(world.pins().join("links")).unwrap();
        assert!(world.kernel.restore().unwrap().len() >= 6);
        check_captured();

        // A map keeps its content.
        let map = world.pins().join("PODS");
        std::fs::remove_file(&map).unwrap();
        let pods = Installed {
            name: "PODS",
            missing: Missing::Pin,
        };
        assert_eq!(world.kernel.restore().unwrap(), [pods]);
        let next = Kernel::load(&config(world.directory.clone())).unwrap();
        assert_eq!(next.enrolled().unwrap(), [world.cookie]);

        // Something else in the place of a pin: the program stays attached.
        std::fs::remove_file(&of_cgroup).unwrap();
        std::fs::create_dir(&of_cgroup).unwrap();
        world.kernel.restore().unwrap_err();
        check_captured();
        std::fs::remove_dir(&of_cgroup).unwrap();
        assert_eq!(world.kernel.restore().unwrap(), [capture4(Missing::Pin)]);
        check_captured();
    });
}

/// A node has up to 250 pods, each with an instance of `inbound`; a takeover loads all of them.
#[test]
#[ignore = "needs root"]
fn instances_for_the_pods_of_a_full_node_are_loaded() {
    in_namespace(|| {
        let world = World::new();
        let began = Instant::now();
        let object = world.kernel.object();
        let instances: Vec<_> = (1..=250)
            .map(|cookie| object.load_inbound(mesh::NetnsCookie(cookie)).unwrap())
            .collect();
        println!("{} instances in {:?}", instances.len(), began.elapsed());
    });
}
