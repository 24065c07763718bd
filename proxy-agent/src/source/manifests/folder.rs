//! The combined contents of the folder's files, and how they change.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::OsString,
    fmt,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::documents::{self, Content, Format, Notice, Object};
use crate::{
    folder_watch::Touched,
    model::objects::{Change, Kind, ObjectName},
    source::convert::Mirrored,
};

/// A file that just changed may still be being written: inotify, or the next check, will show it.
const FRESH: Duration = Duration::from_millis(500);

/// The folder as it was read last.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The one Node that is for us.
    node: String,
    /// By name: their order decides between duplicates.
    files: BTreeMap<OsString, File>,
    served: BTreeMap<Key, Change>,
    problems: BTreeSet<String>,
    notices: BTreeSet<LogNotice>,
    listed: bool,
}

/// The result of reading the folder.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The differences; at first, complete lists.
    pub(super) changes: Vec<Change>,
    /// Problems that were not there before.
    pub(super) new_problems: Vec<String>,
    /// Parts without effect that were not there before.
    pub(super) new_notices: Vec<LogNotice>,
    /// One of the problems there are.
    pub(super) worst: Option<String>,
    /// The folder was read completely, at least once.
    pub(super) complete: bool,
}

/// A log line about a part of a file that has no effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogNotice {
    pub(super) text: String,
    /// Probably a mistake.
    pub(super) is_warning: bool,
}

/// Which object is served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    ThisNode,
    Listed(Kind, ObjectName),
}

impl Key {
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::ThisNode => None,
            Self::Listed(kind, _) => Some(*kind),
        }
    }

    /// The object is not defined any more.
    fn gone(self) -> Change {
        match self {
            Self::ThisNode => Change::NodeGone,
            Self::Listed(Kind::Service, name) => Change::ServiceGone(name),
            Self::Listed(Kind::EndpointSlice, name) => Change::EndpointSliceGone(name),
            Self::Listed(Kind::ServiceCidr, name) => Change::ServiceCidrGone(name),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisNode => f.write_str("the Node"),
            Self::Listed(Kind::ServiceCidr, name) => write!(f, "ServiceCIDR {}", name.name),
            Self::Listed(kind, name) => write!(f, "{kind:?} {name}"),
        }
    }
}

/// Which object is defined.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Object(Key),
    /// `v1` Endpoints, which stand for EndpointSlices.
    Endpoints(ObjectName),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(key) => key.fmt(f),
            Self::Endpoints(name) => write!(f, "Endpoints {name}"),
        }
    }
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: Vec<Defined>,
    problems: Vec<String>,
    ignored: Vec<Notice>,
}

/// Distinguishes two states of a file, cheaply.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    size: u64,
    device: u64,
    inode: u64,
}

#[derive(Debug)]
struct Defined {
    name: Name,
    line: u64,
    content: Content,
    /// From before the file was broken.
    stale: bool,
}

impl Folder {
    pub(super) fn new(path: PathBuf, node: String) -> Self {
        Self {
            path,
            node,
            files: BTreeMap::new(),
            served: BTreeMap::new(),
            problems: BTreeSet::new(),
            notices: BTreeSet::new(),
            listed: false,
        }
    }

    /// Reads the changed files. A folder that cannot be read changes nothing.
    pub(super) fn read(&mut self, touched: &Touched) -> Reading {
        let (mut problems, mut notices) = (Vec::new(), BTreeSet::new());
        let changes = match self.read_files(touched) {
            Ok(()) => self.evaluate(&mut problems, &mut notices),
            Err(error) => {
                let kept = if self.listed { "everything stays as it was" } else { "waiting for it" };
                problems.push(format!("cannot read the folder {}: {error}; {kept}", self.path.display()));
                Vec::new()
            }
        };

        let new_problems =
            problems.iter().filter(|problem| !self.problems.contains(*problem)).cloned().collect();
        let worst = problems.first().cloned();
        self.problems = problems.into_iter().collect();
        let new_notices = notices.difference(&self.notices).cloned().collect();
        self.notices = notices;
        Reading { changes, new_problems, new_notices, worst, complete: self.listed }
    }

    fn read_files(&mut self, touched: &Touched) -> io::Result<()> {
        // A file that is being replaced may be missing in the list (readdir(3) leaves that open). So known files are opened by
        // their names.
        let mut names: BTreeSet<OsString> = self.files.keys().cloned().collect();
        for entry in std::fs::read_dir(&self.path)? {
            names.insert(entry?.file_name());
        }
        let mut present = BTreeSet::new();
        for name in names {
            let Some(format) = format_of(&name) else { continue };
            let path = self.path.join(&name);
            let stamp = match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() => Stamp::of(&metadata),
                Ok(_) => continue,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(_) => None,
            };
            present.insert(name.clone());

            let touched = touched.includes(&name);
            let file = self.files.entry(name).or_default();
            let changed = stamp.is_none() || file.stamp != stamp;
            let settled = !self.listed || !stamp.as_ref().is_some_and(Stamp::is_fresh);
            if touched || (changed && settled) {
                file.stamp = stamp;
                match std::fs::read_to_string(&path) {
                    Ok(text) => file.update(&path.display().to_string(), &text, format, &self.node),
                    Err(error) => file.unreadable(format!("{}: {error}; {KEPT}", path.display())),
                }
            }
        }
        self.files.retain(|name, _| present.contains(name));
        Ok(())
    }

    /// Puts the files together and finds the differences from last time.
    fn evaluate(&mut self, problems: &mut Vec<String>, notices: &mut BTreeSet<LogNotice>) -> Vec<Change> {
        let mut defined: BTreeMap<&Name, String> = BTreeMap::new();
        let mut served = BTreeMap::new();
        let mut mirrored: Vec<(String, &Mirrored)> = Vec::new();
        // Present contents come before the earlier contents of files that are broken now.
        for stale in [false, true] {
            for (name, file) in &self.files {
                let path = self.path.join(name).display().to_string();
                for object in file.objects.iter().filter(|object| object.stale == stale) {
                    let name = &object.name;
                    let place = format!("{path}:{}", object.line);
                    match defined.entry(name) {
                        Entry::Vacant(entry) => drop(entry.insert(place.clone())),
                        Entry::Occupied(_) if stale => continue,
                        Entry::Occupied(first) => {
                            let first = first.get();
                            problems.push(format!("{place}: {name} is ignored: it is already in {first}"));
                            continue;
                        }
                    }
                    match (name, &object.content) {
                        (_, Content::Change(Change::ServiceGone(_) | Change::EndpointSliceGone(_))) => {}
                        (Name::Object(key), Content::Change(change)) => {
                            served.insert(key.clone(), change.clone());
                        }
                        (_, Content::Change(_)) => {}
                        (_, Content::Endpoints(object)) => mirrored.push((place, object)),
                    }
                }
            }
        }
        mirror(mirrored, &mut served, notices);
        for (name, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            let path = self.path.join(name).display().to_string();
            notices.extend(file.notices(&path));
        }

        let before = std::mem::replace(&mut self.served, served);
        if self.listed {
            return differences(before, &self.served);
        }
        self.listed = true;
        let of = |kind| {
            let objects = self.served.iter().filter(move |(key, _)| key.kind() == kind);
            objects.map(|(_, change)| change.clone())
        };
        let list = |kind| {
            std::iter::once(Change::ListStart(kind)).chain(of(Some(kind))).chain([Change::ListDone(kind)])
        };
        let lists = [Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice].into_iter().flat_map(list);
        of(None).chain(lists).collect()
    }
}

/// Notices of one file that are logged: a dump of a whole cluster has thousands.
const MOST_NOTICES: usize = 50;

const KEPT: &str = "its previous definitions are kept";

impl File {
    fn update(&mut self, path: &str, text: &str, format: Format, node: &str) {
        let parsed = documents::parse(text, format, node);
        let before = std::mem::take(&mut self.objects);
        self.problems.clear();
        self.ignored = parsed.ignored;

        for Object { line, content, problems } in parsed.objects {
            let Some(name) = name_of(&content) else {
                continue;
            };
            self.problems.extend(problems.iter().map(|what| format!("{path}:{line}: {name}: {what}")));
            self.objects.push(Defined { name, line, content, stale: false });
        }
        for documents::Problem { line, column, what } in &parsed.problems {
            self.problems.push(format!("{path}:{line}:{column}: {what}; {KEPT}"));
        }
        if !parsed.problems.is_empty() {
            let now: BTreeSet<_> = self.objects.iter().map(|object| object.name.clone()).collect();
            let lost = before.into_iter().filter(|object| !now.contains(&object.name));
            self.objects.extend(lost.map(|object| Defined { stale: true, ..object }));
        }
    }

    /// The parts that have no effect, warnings first; beyond [`MOST_NOTICES`] only how many there are.
    fn notices(&self, path: &str) -> Vec<LogNotice> {
        let mut ignored: Vec<&Notice> = self.ignored.iter().collect();
        ignored.sort_by_key(|notice| !notice.is_warning);
        let shown = ignored.iter().take(MOST_NOTICES).map(|Notice { line, what, is_warning }| LogNotice {
            text: format!("{path}:{line}: {what}"),
            is_warning: *is_warning,
        });
        let rest = ignored.len().saturating_sub(MOST_NOTICES);
        let rest = (rest > 0)
            .then(|| LogNotice { text: format!("{path}: {rest} more parts are ignored"), is_warning: false });
        shown.chain(rest).collect()
    }

    fn unreadable(&mut self, problem: String) {
        self.problems = vec![problem];
        for object in &mut self.objects {
            object.stale = true;
        }
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Option<Self> {
        let modified = metadata.modified().ok()?;
        Some(Self { modified, size: metadata.size(), device: metadata.dev(), inode: metadata.ino() })
    }

    fn is_fresh(&self) -> bool {
        self.modified.elapsed().is_ok_and(|age| age < FRESH)
    }
}

fn format_of(name: &OsString) -> Option<Format> {
    let name = name.to_str().filter(|name| !name.starts_with('.'))?;
    match name.rsplit_once('.')?.1 {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// Serves the endpoints of Endpoints objects, where their Service has no EndpointSlices.
fn mirror(
    mirrored: Vec<(String, &Mirrored)>,
    served: &mut BTreeMap<Key, Change>,
    notices: &mut BTreeSet<LogNotice>,
) {
    let sliced: BTreeSet<ObjectName> = served
        .values()
        .filter_map(|change| match change {
            Change::EndpointSlice(slice) => Some(slice.service.clone()),
            _ => None,
        })
        .collect();
    for (place, Mirrored { service, slices }) in mirrored {
        if sliced.contains(service) {
            let text = format!("{place}: Endpoints {service} is ignored: the Service has EndpointSlices");
            notices.insert(LogNotice { text, is_warning: false });
            continue;
        }
        for slice in slices {
            let key = Key::Listed(Kind::EndpointSlice, slice.name.clone());
            served.insert(key, Change::EndpointSlice(slice.clone()));
        }
    }
}

fn name_of(content: &Content) -> Option<Name> {
    match content {
        Content::Change(change) => key_of(change).map(Name::Object),
        Content::Endpoints(mirrored) => Some(Name::Endpoints(mirrored.service.clone())),
    }
}

fn key_of(change: &Change) -> Option<Key> {
    let (kind, name) = match change {
        Change::Service(service) => (Kind::Service, &service.name),
        Change::ServiceGone(name) => (Kind::Service, name),
        Change::EndpointSlice(slice) => (Kind::EndpointSlice, &slice.name),
        Change::EndpointSliceGone(name) => (Kind::EndpointSlice, name),
        Change::ServiceCidr(cidr) => (Kind::ServiceCidr, &cidr.name),
        Change::ServiceCidrGone(name) => (Kind::ServiceCidr, name),
        Change::Node(_) | Change::NodeGone => return Some(Key::ThisNode),
        Change::ListStart(_) | Change::ListDone(_) => return None,
    };
    Some(Key::Listed(kind, name.clone()))
}

fn differences(mut before: BTreeMap<Key, Change>, now: &BTreeMap<Key, Change>) -> Vec<Change> {
    let mut changes = Vec::new();
    for (key, change) in now {
        if before.remove(key).as_ref() != Some(change) {
            changes.push(change.clone());
        }
    }
    changes.extend(before.into_keys().map(Key::gone));
    changes
}
