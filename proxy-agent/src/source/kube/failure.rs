//! Why a list or watch ended, and its text.

use std::time::Duration;

use kube::core::Status;

use super::addresses::Addresses;

/// Why a list or watch ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The request failed.
    #[error(transparent)]
    Request(#[from] kube::Error),
    /// The server ended the watch with an error.
    #[error("{}", .0.message)]
    Event(Box<Status>),
    /// The list stopped before it was complete.
    #[error("the list broke off")]
    CutOff,
    /// A streaming list came to a halt.
    #[error("the streaming list stalled")]
    Endless,
    /// A request was not answered in time.
    #[error("no answer")]
    NoAnswer,
    /// A watch sent no event for long, not even a bookmark.
    #[error("the watch is silent")]
    Silent,
    /// The server's version is older than one that was seen.
    #[error("resource version {got} after {had}")]
    Backwards {
        /// The newest version seen.
        had: String,
        /// The version that came after it.
        got: String,
    },
    /// A list without a resource version: nothing to watch from.
    #[error("the list has no resourceVersion")]
    NoVersion,
    /// The receiver of the changes is gone.
    #[error("the receiver is gone")]
    Closed,
}

impl Failure {
    /// The API's status code, if it was the API that refused.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Request(kube::Error::Api(status)) | Self::Event(status) => Some(status.code),
            _ => None,
        }
    }

    /// How long the API server wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let (Self::Request(kube::Error::Api(status)) | Self::Event(status)) = self else { return None };
        let seconds = status.details.as_ref()?.retry_after_seconds;
        Some(Duration::from_secs(seconds.into()).min(LONGEST_RETRY_AFTER)).filter(|wait| !wait.is_zero())
    }

    /// Whether events are lost, so that only a new list gives the present state.
    pub(super) fn lost_events(&self) -> bool {
        let unreadable = matches!(self, Self::Request(kube::Error::SerdeError(_)));
        self.code() == Some(410) || unreadable || self.is_too_new()
    }

    /// Whether the requested version is newer than the server's: it is behind, or etcd was restored from a backup.
    pub(super) fn is_too_new(&self) -> bool {
        /// `metav1.CauseTypeResourceVersionTooLarge`.
        const TOO_LARGE: &str = "ResourceVersionTooLarge";
        let (Self::Request(kube::Error::Api(status)) | Self::Event(status)) = self else { return false };
        status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == TOO_LARGE)
    }

    /// A description of the failure, the same for every watch and attempt that suffers from it, and the details of
    /// this time. `verb` is that of the request.
    pub(super) fn describe(&self, servers: &Addresses, verb: &str, plural: &str) -> (String, String) {
        let server = match self.code() {
            Some(400..=428) => servers.current(),
            _ => servers.all(),
        };
        let (code, message) = match self {
            Self::Request(kube::Error::Api(status)) | Self::Event(status) => (status.code, &status.message),
            Self::Request(kube::Error::SerdeError(error)) => {
                return (
                    format!("the API server at {server} sends {plural} that cannot be read"),
                    error.to_string(),
                );
            }
            other => return (format!("cannot reach the API server at {server}"), root_cause(other)),
        };
        let what = match code {
            401 => format!("the API server at {server} does not accept our credentials"),
            403 => format!(
                "the API server at {server} does not let us {verb} {plural}: see the ClusterRole proxy-agent and its binding"
            ),
            _ => format!("the API server at {server} answers {code}"),
        };
        (what, message.clone())
    }
}

/// A longer wait than this is a mistake.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// The innermost error: outer ones only add "service error" and the like.
fn root_cause(failure: &Failure) -> String {
    let Failure::Request(error) = failure else {
        return failure.to_string();
    };
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, message: &str) -> Failure {
        Failure::Request(kube::Error::Api(Status::failure(message, "Reason").with_code(code).boxed()))
    }

    #[test]
    fn failures_are_distinguished_by_their_remedy() {
        let cases = [
            (refused(401, "who?"), "the API server at http://u does not accept our credentials"),
            (
                refused(403, "no"),
                "the API server at http://u does not let us watch services: see the ClusterRole proxy-agent and its binding",
            ),
            (refused(503, "busy"), "the API server at http://u answers 503"),
            (Failure::NoAnswer, "cannot reach the API server at http://u"),
            (Failure::CutOff, "cannot reach the API server at http://u"),
        ];
        let servers = Addresses::new(vec![http::Uri::from_static("http://u")]);
        for (failure, expected) in cases {
            assert_eq!(failure.describe(&servers, "watch", "services").0, expected);
        }
    }

    #[test]
    fn the_server_decides_how_long_to_wait() {
        let after = |seconds| {
            let status = serde_json::json!({"code": 429, "details": {"retryAfterSeconds": seconds}});
            let status = serde_json::from_value::<Status>(status).unwrap();
            Failure::Request(kube::Error::Api(Box::new(status))).retry_after()
        };
        assert_eq!(after(30), Some(Duration::from_secs(30)));
        assert_eq!(after(1_000_000), Some(LONGEST_RETRY_AFTER));
        assert_eq!(after(0), None);
        assert_eq!(refused(503, "busy").retry_after(), None);
    }

    #[test]
    fn only_some_failures_lose_events() {
        let status =
            serde_json::json!({"code": 504, "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}});
        let too_new = Failure::Event(serde_json::from_value(status).unwrap());
        let cases = [
            (refused(410, "Expired"), true),
            (too_new, true),
            (refused(504, "busy"), false),
            (refused(500, "oops"), false),
            (Failure::Silent, false),
        ];
        for (failure, expected) in cases {
            assert_eq!(failure.lost_events(), expected, "{failure}");
        }
    }
}
