//! Recognises `ip netns exec`, which hides the mounts of cgroups and of the BPF file system.
//!
//! It runs its command in a mount namespace of its own, where it replaces /sys, and everything that
//! is mounted below, by a sysfs of the network namespace. Its mount(2) names the network namespace
//! as the source, where every other sysfs has `sysfs` or `none` (iproute2, lib/namespace.c).

use std::fs;

/// The network namespace's name if this process runs under `ip netns exec`.
#[must_use]
pub fn ip_netns_exec() -> Option<String> {
    name_in(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The same for the text of a mountinfo file (proc_pid_mountinfo(5)).
fn name_in(mountinfo: &str) -> Option<String> {
    let mut sys = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (point == "/sys").then_some(filesystem)
    });
    // The last mount at a place hides the earlier ones.
    let mut filesystem = sys.next_back()?.split(' ');
    let (kind, source) = (filesystem.next()?, filesystem.next()?);
    let named = kind == "sysfs" && !matches!(source, "sysfs" | "none" | "/sys" | "sys");
    named.then(|| source.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";

    fn found(mounts: &str) -> Option<String> {
        name_in(&format!("{ROOT}{mounts}"))
    }

    #[test]
    fn a_host_and_a_container_are_not_taken_for_ip_netns_exec() {
        for mounts in [
            "22 21 0:20 / /sys rw,nosuid shared:2 - sysfs sysfs rw\n\
             23 22 0:21 / /sys/fs/cgroup rw,nosuid shared:3 - cgroup2 cgroup2 rw\n\
             24 22 0:22 / /sys/fs/bpf rw,nosuid shared:4 - bpf bpf rw\n",
            "22 21 0:20 / /sys ro,nosuid - sysfs sysfs ro\n\
             23 22 0:21 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
            "22 21 0:20 / /sys rw - sysfs none rw\n",
            "22 21 0:20 / /sys rw - tmpfs pods rw\n",
            "22 21 0:20 / /sys/class rw - sysfs pods rw\n",
            "",
        ] {
            assert_eq!(found(mounts), None, "{mounts}");
        }
    }

    #[test]
    fn ip_netns_exec_is_recognised_by_the_source_of_its_sysfs() {
        let replaced = "40 21 0:50 / /sys rw,relatime - sysfs node-a rw\n\
                        41 21 8:1 /etc/netns/node-a/hosts /etc/hosts rw - ext4 /dev/sda1 rw\n";
        assert_eq!(found(replaced).as_deref(), Some("node-a"));
        let over_another = "22 21 0:20 / /sys ro,nosuid master:2 - sysfs sysfs ro\n\
                            23 22 0:21 / /sys/fs/cgroup ro master:3 - cgroup2 cgroup2 rw\n\
                            40 22 0:50 / /sys ro,relatime - sysfs node-a ro\n";
        assert_eq!(found(over_another).as_deref(), Some("node-a"));
    }
}
