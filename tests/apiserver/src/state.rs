//! The objects, their versions and their history.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::selector::Selector;

/// The resources that can be listed and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// `v1` Services.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlices.
    EndpointSlices,
    /// `v1` Nodes.
    Nodes,
    /// `networking.k8s.io/v1` ServiceCIDRs.
    ServiceCidrs,
}

impl Resource {
    /// Whether this is the resource of the list that must break off.
    pub(super) fn is_cut(self) -> bool {
        matches!(self, Self::Services | Self::EndpointSlices)
    }
}

/// The type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// ADDED.
    Added,
    /// MODIFIED.
    Modified,
    /// DELETED.
    Deleted,
}

/// `kind` and `apiVersion` of a resource's objects.
pub(super) trait Resources {
    fn kind(self) -> &'static str;
    fn api_version(self) -> &'static str;
}

impl Resources for Resource {
    fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
        }
    }
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

type Key = (Resource, String, String);

/// Everything the server knows.
#[derive(Debug, Default)]
pub(super) struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Past>,
    /// Events up to this version are forgotten.
    compacted: u64,
    /// Rests of lists that are fetched in pages, by their continue token.
    pages: HashMap<String, Page>,
}

/// Something that happened.
#[derive(Debug)]
struct Past {
    version: u64,
    resource: Resource,
    /// The object before, if there was one.
    before: Option<Value>,
    /// The object since, if there is one.
    now: Option<Value>,
    /// An injected event: sent, although nothing happened.
    injected: Option<EventType>,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Value>,
}

impl State {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether a watch can begin at this version.
    pub(super) fn remembers(&self, version: u64) -> bool {
        version >= self.compacted
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.pages.clear();
    }

    /// Forgets everything after a version.
    pub(super) fn restore(&mut self, version: u64) {
        self.history.retain(|past| past.version <= version);
        self.objects.clear();
        for past in self.history.iter().filter(|past| past.injected.is_none()) {
            if let Some(key) =
                past.now.as_ref().or(past.before.as_ref()).and_then(|object| key_of(object).ok())
            {
                match &past.now {
                    Some(object) => drop(self.objects.insert(key, object.clone())),
                    None => drop(self.objects.remove(&key)),
                }
            }
        }
        self.version = version;
        self.compacted = self.compacted.min(version);
        self.pages.clear();
    }

    pub(super) fn apply(&mut self, mut object: Value) -> anyhow::Result<u64> {
        let key = key_of(&object)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let before = self.objects.insert(key.clone(), object.clone());
        self.remember(key.0, before, Some(object), None);
        Ok(self.version)
    }

    pub(super) fn delete(&mut self, resource: Resource, namespace: &str, name: &str) -> bool {
        let key = (resource, namespace.to_owned(), name.to_owned());
        let Some(before) = self.objects.remove(&key) else { return false };
        self.version += 1;
        self.remember(resource, Some(before), None, None);
        true
    }

    pub(super) fn inject(&mut self, kind: EventType, mut object: Value) -> anyhow::Result<()> {
        let (resource, ..) = key_of(&object)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.remember(resource, None, Some(object), Some(kind));
        Ok(())
    }

    fn remember(
        &mut self,
        resource: Resource,
        before: Option<Value>,
        now: Option<Value>,
        injected: Option<EventType>,
    ) {
        self.history.push(Past { version: self.version, resource, before, now, injected });
    }

    /// All objects that a selector matches, without an end.
    pub(super) fn list(&self, resource: Resource, selector: &Selector) -> Page {
        let of_kind = self.objects.iter().filter(|((r, ..), _)| *r == resource).map(|(_, object)| object);
        Page {
            version: self.version,
            items: of_kind.filter(|object| selector.matches(object)).cloned().collect(),
        }
    }

    /// Cuts a page from a list; gives the token for the rest, if there is one.
    pub(super) fn cut_page(&mut self, list: &mut Page, limit: usize) -> Option<String> {
        if limit == 0 || list.items.len() <= limit {
            return None;
        }
        let rest = Page { version: list.version, items: list.items.split_off(limit) };
        let token = format!("{}-{}", list.version, self.pages.len());
        self.pages.insert(token.clone(), rest);
        Some(token)
    }

    /// The rest of a list; none if it was compacted away.
    pub(super) fn take_rest(&mut self, token: &str) -> Option<Page> {
        self.pages.remove(token)
    }

    /// The events after a version that concern a watch, as it sees them: an object that ceases to match is deleted for it.
    pub(super) fn events_after(&self, version: u64, resource: Resource, selector: &Selector) -> Vec<Value> {
        let from = self.history.partition_point(|past| past.version <= version);
        let relevant = self.history[from..].iter().filter(|past| past.resource == resource);
        relevant
            .filter_map(|past| {
                let matching =
                    |object: &Option<Value>| object.clone().filter(|object| selector.matches(object));
                let (kind, mut object) = match (past.injected, matching(&past.before), matching(&past.now)) {
                    (Some(kind), _, Some(now)) => (kind, now),
                    (_, None, Some(now)) => (EventType::Added, now),
                    (_, Some(_), Some(now)) => (EventType::Modified, now),
                    (_, Some(before), None) => (EventType::Deleted, past.now.clone().unwrap_or(before)),
                    (_, None, None) => return None,
                };
                object["metadata"]["resourceVersion"] = past.version.to_string().into();
                Some(event(kind.name(), &object))
            })
            .collect()
    }
}

/// A watch event.
pub(super) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// Of a version that the server has not come to yet; programs know it by the cause.
pub(super) const TOO_NEW: &str = "Too large resource version";

/// The Status object of a refusal.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    let cause =
        (message == TOO_NEW).then(|| json!({"reason": "ResourceVersionTooLarge", "message": message}));
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
        "details": {"causes": Vec::from_iter(cause)},
    })
}

fn key_of(object: &Value) -> anyhow::Result<Key> {
    let resource = match object["kind"].as_str() {
        Some("Service") => Resource::Services,
        Some("EndpointSlice") => Resource::EndpointSlices,
        Some("Node") => Resource::Nodes,
        Some("ServiceCIDR") => Resource::ServiceCidrs,
        other => bail!("kind {other:?} is none of Service, EndpointSlice, Node and ServiceCIDR"),
    };
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().context("the object has no name")?;
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    Ok((resource, namespace.to_owned(), name.to_owned()))
}
