//! What the folder's files say together, and how that changes.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::OsString,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{
    documents::{self, Format, Object},
    events::Touched,
};
use crate::{
    model::objects::{Change, Kind, ObjectName},
    source::convert::Converted,
};

/// A file that just changed may still be being written: inotify, or the next look, will tell.
const FRESH: Duration = Duration::from_millis(500);

/// The folder as it was read last.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// By name: their order decides between duplicates.
    files: BTreeMap<OsString, File>,
    served: BTreeMap<Key, Change>,
    problems: BTreeSet<String>,
    listed: bool,
}

/// What came of reading the folder.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// What is different; at first, two complete lists.
    pub(super) changes: Vec<Change>,
    /// Problems that were not there before.
    pub(super) new_problems: Vec<String>,
    /// One of the problems there are.
    pub(super) worst: Option<String>,
    /// The folder was read completely, at least once.
    pub(super) complete: bool,
}

type Key = (Kind, ObjectName);

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    objects: Vec<Defined>,
    problems: Vec<String>,
}

/// Tells two states of a file apart, cheaply.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    size: u64,
    device: u64,
    inode: u64,
}

#[derive(Debug)]
struct Defined {
    key: Key,
    line: u64,
    converted: Converted,
    /// From before the file was broken.
    stale: bool,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            served: BTreeMap::new(),
            problems: BTreeSet::new(),
            listed: false,
        }
    }

    /// Reads what changed. A folder that cannot be read changes nothing.
    pub(super) fn read(&mut self, touched: &Touched) -> Reading {
        let mut problems = Vec::new();
        let changes = match self.read_files(touched) {
            Ok(()) => self.evaluate(&mut problems),
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
        Reading { changes, new_problems, worst, complete: self.listed }
    }

    fn read_files(&mut self, touched: &Touched) -> io::Result<()> {
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
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
                    Ok(text) => file.update(&path.display().to_string(), &text, format),
                    Err(error) => file.unreadable(format!("{}: {error}; {KEPT}", path.display())),
                }
            }
        }
        self.files.retain(|name, _| present.contains(name));
        Ok(())
    }

    /// Puts the files together and finds what is different from last time.
    fn evaluate(&mut self, problems: &mut Vec<String>) -> Vec<Change> {
        let mut defined: BTreeMap<&Key, String> = BTreeMap::new();
        let mut served = BTreeMap::new();
        // What is written now comes before what was written in files that are broken now.
        for stale in [false, true] {
            for (name, file) in &self.files {
                let path = self.path.join(name).display().to_string();
                for object in file.objects.iter().filter(|object| object.stale == stale) {
                    let (kind, name) = &object.key;
                    let place = format!("{path}:{}", object.line);
                    match defined.entry(&object.key) {
                        Entry::Vacant(entry) => drop(entry.insert(place)),
                        Entry::Occupied(_) if stale => continue,
                        Entry::Occupied(first) => {
                            let first = first.get();
                            problems.push(format!(
                                "{place}: {kind:?} {name} is ignored: it is already in {first}"
                            ));
                            continue;
                        }
                    }
                    if !matches!(
                        object.converted.change,
                        Change::ServiceGone(_) | Change::EndpointSliceGone(_)
                    ) {
                        served.insert(object.key.clone(), object.converted.change.clone());
                    }
                }
            }
        }
        problems.extend(self.files.values().flat_map(|file| &file.problems).cloned());

        let before = std::mem::replace(&mut self.served, served);
        if self.listed {
            return differences(before, &self.served);
        }
        self.listed = true;
        let list = |kind| {
            let objects =
                self.served.iter().filter(move |((k, _), _)| *k == kind).map(|(_, change)| change.clone());
            std::iter::once(Change::ListStart(kind)).chain(objects).chain([Change::ListDone(kind)])
        };
        list(Kind::Service).chain(list(Kind::EndpointSlice)).collect()
    }
}

const KEPT: &str = "what it defined before is kept";

impl File {
    fn update(&mut self, path: &str, text: &str, format: Format) {
        let parsed = documents::parse(text, format);
        let before = std::mem::take(&mut self.objects);
        self.problems.clear();

        for Object { line, converted } in parsed.objects {
            let Some(key) = key_of(&converted.change) else {
                continue;
            };
            let (kind, name) = &key;
            let problems = converted.problems.iter();
            self.problems.extend(problems.map(|what| format!("{path}:{line}: {kind:?} {name}: {what}")));
            self.objects.push(Defined { key, line, converted, stale: false });
        }
        for documents::Problem { line, column, what } in &parsed.problems {
            self.problems.push(format!("{path}:{line}:{column}: {what}; {KEPT}"));
        }
        if !parsed.problems.is_empty() {
            let now: BTreeSet<_> = self.objects.iter().map(|object| object.key.clone()).collect();
            let lost = before.into_iter().filter(|object| !now.contains(&object.key));
            self.objects.extend(lost.map(|object| Defined { stale: true, ..object }));
        }
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

fn key_of(change: &Change) -> Option<Key> {
    match change {
        Change::Service(service) => Some((Kind::Service, service.name.clone())),
        Change::ServiceGone(name) => Some((Kind::Service, name.clone())),
        Change::EndpointSlice(slice) => Some((Kind::EndpointSlice, slice.name.clone())),
        Change::EndpointSliceGone(name) => Some((Kind::EndpointSlice, name.clone())),
        Change::ServiceCidr(cidr) => Some((Kind::ServiceCidr, cidr.name.clone())),
        Change::ServiceCidrGone(name) => Some((Kind::ServiceCidr, name.clone())),
        Change::Node(_) | Change::NodeGone | Change::ListStart(_) | Change::ListDone(_) => None,
    }
}

fn differences(mut before: BTreeMap<Key, Change>, now: &BTreeMap<Key, Change>) -> Vec<Change> {
    let mut changes = Vec::new();
    for (key, change) in now {
        if before.remove(key).as_ref() != Some(change) {
            changes.push(change.clone());
        }
    }
    changes.extend(before.into_keys().map(|(kind, name)| match kind {
        Kind::Service => Change::ServiceGone(name),
        Kind::EndpointSlice => Change::EndpointSliceGone(name),
        Kind::ServiceCidr => Change::ServiceCidrGone(name),
    }));
    changes
}
