//! Requests to the API server. The library's own parameters know neither long watches nor cached lists in pages.

use std::time::Duration;

use form_urlencoded::Serializer;
use http::Request;
use kube::core::Resource;

use super::{subject::Selectors, version::ListFrom};

type Result = kube::Result<Request<Vec<u8>>>;

/// A list, or a page of one.
///
/// With a limit and `resourceVersion=0` the API server answers the whole list from its watch cache, and pages from etcd
/// only where it has no such cache. Any other version with a limit would be read from etcd.
pub(super) fn list<K>(selectors: &Selectors, from: &ListFrom, limit: u32, next: Option<&str>) -> Result
where
    K: Resource<DynamicType = ()>,
{
    let limit = limit.to_string();
    let mut query = vec![];
    match (next, from) {
        (Some(token), _) => query.extend([("limit", limit.as_str()), ("continue", token)]),
        (None, ListFrom::Any) => query.extend([("limit", limit.as_str()), ("resourceVersion", ANY)]),
        (None, ListFrom::NotOlderThan(version)) => {
            query.extend([("resourceVersion", version.as_str()), NOT_OLDER]);
        }
        (None, ListFrom::Newest) => query.push(("limit", limit.as_str())),
    }
    request::<K>(selectors, &query)
}

/// A list of one object, whose version is that of etcd's quorum.
pub(super) fn newest_version<K>() -> Result
where
    K: Resource<DynamicType = ()>,
{
    request::<K>(&Selectors { labels: None, fields: None }, &[("limit", "1")])
}

/// A watch from a version on.
pub(super) fn watch<K>(selectors: &Selectors, version: &str, lifetime: Duration) -> Result
where
    K: Resource<DynamicType = ()>,
{
    request::<K>(selectors, &watching(&lifetime.as_secs().to_string(), &[("resourceVersion", version)]))
}

/// A watch that begins with all objects (KEP-3157).
pub(super) fn streaming_list<K>(selectors: &Selectors, from: &ListFrom, lifetime: Duration) -> Result
where
    K: Resource<DynamicType = ()>,
{
    let lifetime = lifetime.as_secs().to_string();
    let mut query = watching(&lifetime, &[("sendInitialEvents", "true"), NOT_OLDER]);
    match from {
        ListFrom::Any => query.push(("resourceVersion", ANY)),
        ListFrom::NotOlderThan(version) => query.push(("resourceVersion", version)),
        ListFrom::Newest => {}
    }
    request::<K>(selectors, &query)
}

const ANY: &str = "0";
const NOT_OLDER: (&str, &str) = ("resourceVersionMatch", "NotOlderThan");

fn watching<'q>(lifetime: &'q str, more: &[(&'q str, &'q str)]) -> Vec<(&'q str, &'q str)> {
    let mut query = vec![("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", lifetime)];
    query.extend(more);
    query
}

fn request<K>(selectors: &Selectors, query: &[(&str, &str)]) -> Result
where
    K: Resource<DynamicType = ()>,
{
    let mut url = K::url_path(&(), None);
    url.push('?');
    let start = url.len();
    let mut url = Serializer::for_suffix(url, start);
    url.extend_pairs(query);
    for (name, selector) in [("labelSelector", &selectors.labels), ("fieldSelector", &selectors.fields)] {
        if let Some(selector) = selector {
            url.append_pair(name, selector);
        }
    }
    Request::get(url.finish()).body(Vec::new()).map_err(kube::Error::HttpError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::trimmed::TrimmedService;

    #[test]
    fn queries() {
        let selectors = Selectors { labels: Some("!a/b".into()), fields: None };
        let version = ListFrom::NotOlderThan("7".into());
        let minutes = Duration::from_secs(400);
        let watch = "watch=true&allowWatchBookmarks=true&timeoutSeconds=400";
        let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
        for (request, expected) in [
            (list::<TrimmedService>(&selectors, &ListFrom::Any, 5, None), "limit=5&resourceVersion=0"),
            (list::<TrimmedService>(&selectors, &ListFrom::Any, 5, Some("x")), "limit=5&continue=x"),
            (
                list::<TrimmedService>(&selectors, &version, 5, None),
                "resourceVersion=7&resourceVersionMatch=NotOlderThan",
            ),
            (list::<TrimmedService>(&selectors, &ListFrom::Newest, 5, None), "limit=5"),
            (super::watch::<TrimmedService>(&selectors, "9", minutes), &format!("{watch}&resourceVersion=9")),
            (
                streaming_list::<TrimmedService>(&selectors, &ListFrom::Any, minutes),
                &format!("{watch}&{initial}&resourceVersion=0"),
            ),
            (
                streaming_list::<TrimmedService>(&selectors, &version, minutes),
                &format!("{watch}&{initial}&resourceVersion=7"),
            ),
            (
                streaming_list::<TrimmedService>(&selectors, &ListFrom::Newest, minutes),
                &format!("{watch}&{initial}"),
            ),
        ] {
            let expected = format!("/api/v1/services?{expected}&labelSelector=%21a%2Fb");
            assert_eq!(request.unwrap().uri().to_string(), expected);
        }
    }
}
