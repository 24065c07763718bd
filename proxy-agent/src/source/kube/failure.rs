//! Why a list or watch ended, and how to say it.

use kube::core::Status;

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
    #[error("the list does not end")]
    Endless,
    /// Nothing at all came for longer than the server lets a watch live.
    #[error("the connection is dead")]
    Silent,
    /// A list without a resource version: nothing to watch from.
    #[error("the list has no resourceVersion")]
    NoVersion,
    /// Nobody receives the changes any more.
    #[error("nobody listens")]
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

    /// Did we miss events, so that only a new list gives the truth?
    pub(super) fn lost_events(&self) -> bool {
        let unreadable = matches!(self, Self::Request(kube::Error::SerdeError(_)));
        // 504 with this reason: the version is from a future that a restored backup does not know.
        let future = matches!(self, Self::Request(kube::Error::Api(status)) | Self::Event(status)
            if status.message.contains("Too large resource version"));
        self.code() == Some(410) || unreadable || future
    }

    /// What is wrong, the same for every watch and attempt that suffers from it, and what was seen of it this time.
    pub(super) fn describe(&self, server: &str, plural: &str) -> (String, String) {
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
            403 => format!("the API server at {server} does not let us watch {plural}"),
            _ => format!("the API server at {server} answers {code}"),
        };
        (what, message.clone())
    }
}

/// The innermost error: what wraps it says "service error" and the like.
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
    fn failures_are_told_by_what_can_be_done_about_them() {
        let cases = [
            (refused(401, "who?"), "the API server at U does not accept our credentials"),
            (refused(403, "no"), "the API server at U does not let us watch services"),
            (refused(503, "busy"), "the API server at U answers 503"),
            (Failure::Silent, "cannot reach the API server at U"),
            (Failure::CutOff, "cannot reach the API server at U"),
        ];
        for (failure, expected) in cases {
            assert_eq!(failure.describe("U", "services").0, expected);
        }
    }

    #[test]
    fn only_some_failures_lose_events() {
        let cases = [
            (refused(410, "Expired"), true),
            (refused(504, "Too large resource version: 9, current: 3"), true),
            (refused(504, "busy"), false),
            (refused(500, "oops"), false),
            (Failure::Silent, false),
        ];
        for (failure, expected) in cases {
            assert_eq!(failure.lost_events(), expected, "{failure}");
        }
    }
}
