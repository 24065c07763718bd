//! The server's record of a request.

use std::{collections::BTreeMap, time::Instant};

use super::Resource;

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its resource.
    pub resource: Resource,
    /// Its query parameters, decoded.
    pub query: BTreeMap<String, String>,
    /// Its headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// When it came.
    pub at: Instant,
}

impl Request {
    /// Whether it is a watch (a streaming list too).
    pub fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|value| value != "false" && value != "0")
    }

    /// Whether it lists, in pages or streaming. Pages after the first do not count.
    pub fn is_list(&self) -> bool {
        if self.is_watch() {
            self.query.contains_key("sendInitialEvents")
        } else {
            !self.query.contains_key("continue")
        }
    }
}
