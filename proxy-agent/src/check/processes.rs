//! The processes that this one sees: in a container those of the host only with its process ids.

use std::{fs, path::PathBuf};

use crate::kube_proxy;

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: u32,
    /// Its name, 15 bytes at most.
    pub(crate) name: String,
    /// Its control groups, as in `/proc/PID/cgroup`.
    pub(crate) cgroups: String,
    /// Program and arguments.
    pub(crate) arguments: Vec<String>,
}

impl Process {
    /// Whether it is kube-proxy.
    pub(crate) fn is_kube_proxy(&self) -> bool {
        kube_proxy::is_process(&self.name, &self.arguments)
    }

    /// Its group in the cgroup2 hierarchy.
    pub(super) fn cgroup2(&self) -> Option<&str> {
        self.cgroups.lines().find_map(|line| line.strip_prefix("0::"))
    }

    /// Its group in the hierarchy of a cgroup v1 controller.
    pub(super) fn cgroup1(&self, controller: &str) -> Option<&str> {
        self.cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == controller).then_some(path)
        })
    }
}

/// All of them but this one; one that ends meanwhile is left out.
pub(crate) fn list() -> Vec<Process> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| *id != own).filter_map(read).collect()
}

fn read(id: u32) -> Option<Process> {
    let folder = PathBuf::from(format!("/proc/{id}"));
    let name = fs::read_to_string(folder.join("comm")).ok()?.trim_end().to_owned();
    let cgroups = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
    let arguments = fs::read(folder.join("cmdline")).unwrap_or_default();
    let arguments = arguments.split(|byte| *byte == 0).filter(|text| !text.is_empty());
    let arguments = arguments.map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    Some(Process { id, name, cgroups, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_of_both_versions() {
        let cgroups = "7:net_cls,net_prio:/docker/x\n4:memory:/\n0::/kubepods/pod1\n".to_owned();
        let process = Process { cgroups, ..Process::default() };
        assert_eq!(process.cgroup2(), Some("/kubepods/pod1"));
        assert_eq!(process.cgroup1("net_prio"), Some("/docker/x"));
        assert_eq!(process.cgroup1("net"), None);
        assert_eq!(Process::default().cgroup2(), None);
    }

    #[test]
    fn others_are_listed() {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let mut child = child.unwrap();
        let found = list().into_iter().find(|process| process.id == child.id());
        let _ = child.kill();
        let _ = child.wait();
        assert!(found.is_some());
        assert!(list().iter().all(|process| process.id != std::process::id()));
    }
}
