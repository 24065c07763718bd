//! `--cgroup-root`: is it cgroup2, and above kubelet and pods? Are cgroup v1 classes in use that hide it?

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{finding::Finding, processes::Process};

const ROOT: &str = "cgroup root";
const CLASSES: &str = "net_cls, net_prio";

/// State of the directory.
#[derive(Debug)]
pub(super) struct Facts {
    /// `--cgroup-root`, or where cgroup2 is mounted; `None` if nowhere.
    pub(super) path: Option<PathBuf>,
    pub(super) is_cgroup2: io::Result<bool>,
    /// Whether it is the root of the hierarchy.
    pub(super) is_hierarchy_root: bool,
    /// Its path within the hierarchy, as `/proc/PID/cgroup` has it.
    within: Option<String>,
    /// Where cgroup2 is mounted.
    mounts: Vec<PathBuf>,
    /// cgroup v1 controllers that are mounted.
    v1_controllers: Vec<String>,
}

pub(super) fn gather(path: Option<&Path>) -> Facts {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<Mount> = table.lines().filter_map(Mount::parse).collect();
    let of_version_2 = || mounts.iter().filter(|mount| mount.kind == "cgroup2");
    let path = path.map(Path::to_owned).or_else(|| of_version_2().next().map(|mount| mount.at.clone()));
    let stat = path.as_deref().map_or(Err(nix::Error::ENOENT), statfs);
    let v1 = mounts.iter().filter(|mount| mount.kind == "cgroup");
    Facts {
        is_cgroup2: stat.map(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC).map_err(Into::into),
        // Every other cgroup has this file.
        is_hierarchy_root: path.as_ref().is_some_and(|path| !path.join("cgroup.type").exists()),
        within: path.as_deref().and_then(|path| {
            let path = path.canonicalize().ok()?;
            let above = of_version_2().filter(|mount| path.starts_with(&mount.at));
            let mount = above.max_by_key(|mount| mount.at.components().count())?;
            Some(join(&mount.root, path.strip_prefix(&mount.at).ok()?.to_str()?))
        }),
        mounts: of_version_2().map(|mount| mount.at.clone()).collect(),
        v1_controllers: v1.flat_map(|mount| mount.options.split(',').map(str::to_owned)).collect(),
        path,
    }
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    /// Which directory of the file system is mounted.
    root: String,
    at: PathBuf,
    kind: String,
    /// Of the file system.
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut file_system = file_system.split(' ');
        Some(Self {
            root: mount.next()?.to_owned(),
            at: mount.next()?.into(),
            kind: file_system.next()?.to_owned(),
            options: file_system.nth(1)?.to_owned(),
        })
    }
}

fn join(root: &str, rest: &str) -> String {
    let root = root.trim_end_matches('/');
    if rest.is_empty() && !root.is_empty() { root.to_owned() } else { format!("{root}/{rest}") }
}

/// Whether a cgroup is `root` or below it. Both paths are relative to this process' cgroup namespace; a path outside of it begins
/// with `/..`.
fn is_below(group: &str, root: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let ups = |parts: &[String]| parts.iter().take_while(|part| *part == "..").count();
    let (group, root) = (parts(group), parts(root));
    if ups(&root) == root.len() {
        // The namespace's own root or above.
        return ups(&group) <= root.len();
    }
    group.starts_with(&root)
}

pub(super) fn assess(facts: &Facts, processes: &[Process]) -> Finding {
    let Some(path) = &facts.path else {
        return Finding::fail(
            ROOT,
            "no cgroup2 hierarchy is mounted",
            "`mount -t cgroup2 none /sys/fs/cgroup`, or name it with --cgroup-root",
        )
        .that_ends_the_agent();
    };
    let shown = path.display();
    match &facts.is_cgroup2 {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::fail(ROOT, format!("{shown} does not exist"), elsewhere(facts))
                .that_ends_the_agent();
        }
        Err(error) => return Finding::unknown(ROOT, format!("cannot look at {shown}: {error}")),
        Ok(false) => {
            let seen = format!("{shown} is not cgroup2");
            return Finding::fail(ROOT, seen, elsewhere(facts)).that_ends_the_agent();
        }
        Ok(true) => {}
    }
    if facts.is_hierarchy_root {
        return Finding::pass(ROOT, format!("{shown}: the root of the hierarchy, above every process"));
    }
    let Some(within) = &facts.within else {
        return Finding::unknown(ROOT, format!("{shown}: its path within the hierarchy is not known"));
    };
    let outside: Vec<&Process> = processes
        .iter()
        .filter(|process| process.cgroup2().is_some_and(|group| !is_below(group, within)))
        .collect();
    let is_pod = |process: &&&Process| process.cgroups.contains("kubepods");
    let advice = "mount the host's hierarchy and name its root: --cgroup-root /host/cgroup";
    let not_root = format!("{shown} is not the root of the hierarchy");
    if let Some(process) =
        outside.iter().find(|process| process.name == "kubelet").or(outside.iter().find(is_pod))
    {
        let seen = format!("{not_root}, and not above {} (process {})", process.name, process.id);
        return Finding::fail(ROOT, seen, advice);
    }
    let seen = match outside.len() {
        0 => format!("{not_root}; all {} processes that are visible are below it", processes.len()),
        count => format!("{not_root}: {count} of {} visible processes are not served", processes.len()),
    };
    Finding::warn(ROOT, seen, advice)
}

fn elsewhere(facts: &Facts) -> String {
    match facts.mounts.first() {
        Some(at) => format!("cgroup2 is mounted at {0}: --cgroup-root {0}", at.display()),
        None => "`mount -t cgroup2 none /sys/fs/cgroup/unified`, and name it with --cgroup-root".to_owned(),
    }
}

/// `net_cls` and `net_prio` take the place of a socket's cgroup in kernels before 5.15 (`8520e224f547`): once a class is set, programs
/// see all sockets in the hierarchy's root.
pub(super) fn assess_classes(facts: &Facts, processes: &[Process], version: Option<(u32, u32)>) -> Finding {
    const CONTROLLERS: [&str; 2] = ["net_cls", "net_prio"];
    let is_mounted = |name: &&str| facts.v1_controllers.iter().any(|controller| controller == name);
    let Some(controller) = CONTROLLERS.into_iter().find(is_mounted) else {
        return Finding::pass(CLASSES, "neither net_cls nor net_prio is mounted");
    };
    let in_group = |process: &&Process| process.cgroup1(controller).is_some_and(|group| group != "/");
    let Some(process) = processes.iter().find(in_group) else {
        return Finding::pass(
            CLASSES,
            format!("{controller} is mounted, and no visible process is in a group of it"),
        );
    };
    let seen = format!("{controller} is in use, by {} (process {}) for one", process.name, process.id);
    if version.is_some_and(|version| version >= (5, 15)) || facts.is_hierarchy_root {
        return Finding::pass(CLASSES, seen);
    }
    Finding::warn(
        CLASSES,
        seen,
        "before Linux 5.15 sockets lose their cgroup then: name the root of the hierarchy with --cgroup-root, or do without net_cls and \
         net_prio (`cgroup_no_v1=net_cls,net_prio` on the kernel's command line)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    fn process(id: u32, name: &str, cgroups: &str) -> Process {
        Process { id, name: name.to_owned(), cgroups: cgroups.to_owned(), ..Process::default() }
    }

    fn facts(is_hierarchy_root: bool, within: &str) -> Facts {
        Facts {
            path: Some("/cg".into()),
            is_cgroup2: Ok(true),
            is_hierarchy_root,
            within: Some(within.to_owned()),
            mounts: vec!["/sys/fs/cgroup/unified".into()],
            v1_controllers: Vec::new(),
        }
    }

    #[test]
    fn groups_as_seen_from_a_namespace() {
        for (group, root, expected) in [
            ("/kubepods/a", "/", true),
            ("/kubepods/a", "/kubepods", true),
            ("/kubepods-b", "/kubepods", false),
            ("/../../init.scope", "/", false),
            ("/../../init.scope", "/../..", true),
            ("/", "/../..", true),
            ("/../../../init.scope", "/../..", false),
            ("/../../init.scope", "/../../init.scope", true),
            ("/../../system.slice", "/../../init.scope", false),
            ("/", "/../../init.scope", false),
        ] {
            assert_eq!(is_below(group, root), expected, "{group} below {root}");
        }
        for (root, rest, expected) in
            [("/", "", "/"), ("/", "a/b", "/a/b"), ("/../..", "", "/../.."), ("/../..", "a", "/../../a")]
        {
            assert_eq!(join(root, rest), expected);
        }
    }

    #[test]
    fn roots() {
        let all = [process(1, "systemd", "0::/init.scope\n"), process(9, "sh", "0::/a/b\n")];
        let kubelet = process(5, "kubelet", "0::/system.slice/kubelet.service\n");
        let pod = process(6, "nginx", "0::/kubepods.slice/pod1\n");
        for (facts, processes, expected) in [
            (facts(true, "/"), &[kubelet.clone()][..], State::Pass),
            (facts(false, "/a"), &all, State::Warn),
            (facts(false, "/a"), &all[1..], State::Warn),
            (facts(false, "/a"), &[kubelet], State::Fail),
            (facts(false, "/a"), &[pod], State::Fail),
            (Facts { is_cgroup2: Ok(false), ..facts(false, "/") }, &[], State::Fail),
            (Facts { path: None, ..facts(false, "/") }, &[], State::Fail),
            (
                Facts { is_cgroup2: Err(io::ErrorKind::NotFound.into()), ..facts(false, "/") },
                &[],
                State::Fail,
            ),
        ] {
            let finding = assess(&facts, processes);
            assert_eq!(finding.state, expected, "{finding:?}");
        }
        let wrong = assess(&Facts { is_cgroup2: Ok(false), ..facts(false, "/") }, &[]);
        assert!(wrong.advice.unwrap().contains("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn classes_matter_on_old_kernels_below_the_root() {
        let with =
            |is_root| Facts { v1_controllers: vec!["rw".into(), "net_cls".into()], ..facts(is_root, "/a") };
        let used = [process(7, "dockerd", "3:net_cls:/docker\n")];
        let unused = [process(7, "dockerd", "3:net_cls:/\n")];
        for (facts, processes, version, expected) in [
            (facts(false, "/a"), &used[..], (5, 10), State::Pass),
            (with(false), &unused, (5, 10), State::Pass),
            (with(false), &used, (5, 10), State::Warn),
            (with(true), &used, (5, 10), State::Pass),
            (with(false), &used, (5, 15), State::Pass),
        ] {
            assert_eq!(
                assess_classes(&facts, processes, Some(version)).state,
                expected,
                "{processes:?} {version:?}"
            );
        }
    }

    #[test]
    fn lines_of_the_mount_table() {
        let line = "31 24 0:27 /../.. /host/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(
            (mount.root.as_str(), mount.at.to_str(), mount.kind.as_str()),
            ("/../..", Some("/host/cgroup"), "cgroup2")
        );
        assert_eq!(mount.options, "rw,nsdelegate");
        assert!(Mount::parse("31 24 0:27 /").is_none());
    }
}
