//! Which rows are shown.

use std::net::SocketAddr;

use super::{
    affinity::AffinityRow, backends::BackendRow, flows::FlowRow, services::ServiceRow, sockets::SocketRow,
};
use crate::cli::{BackendFilter, ServiceFilter};

/// A row about a service port.
pub(super) trait OfService {
    /// Its name, like `default/web:http`.
    fn service(&self) -> Option<&str>;
}

/// A row about an endpoint of a service port.
pub(super) trait OfBackend: OfService {
    fn backend(&self) -> SocketAddr;
}

macro_rules! of_service {
    ($($row:ty)*) => {
        $(impl OfService for $row {
            fn service(&self) -> Option<&str> {
                self.service.as_deref()
            }
        })*
    };
}

macro_rules! of_backend {
    ($($row:ty: $field:ident),*) => {
        $(impl OfBackend for $row {
            fn backend(&self) -> SocketAddr {
                self.$field
            }
        })*
    };
}

of_service!(AffinityRow FlowRow ServiceRow SocketRow);
of_backend!(AffinityRow: endpoint, BackendRow: endpoint, FlowRow: backend, SocketRow: backend);

impl OfService for BackendRow {
    fn service(&self) -> Option<&str> {
        Some(&self.service)
    }
}

/// Keeps the rows of a Service. If the limit leaves out some of them, a note goes to standard error.
pub(super) fn by_service<R: OfService>(mut rows: Vec<R>, filter: &ServiceFilter) -> Vec<R> {
    rows.retain(|row| filter.matches(row.service()));
    if let Some(limit) = filter.limit
        && rows.len() > limit
    {
        eprintln!("the first {limit} of {}", rows.len());
        rows.truncate(limit);
    }
    rows
}

/// Keeps the rows of an endpoint and a Service.
pub(super) fn by_backend<R: OfBackend>(mut rows: Vec<R>, filter: &BackendFilter) -> Vec<R> {
    rows.retain(|row| filter.backend.is_none_or(|backend| backend.matches(row.backend())));
    by_service(rows, &filter.service)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain(Option<&'static str>, SocketAddr);

    impl OfService for Plain {
        fn service(&self) -> Option<&str> {
            self.0
        }
    }

    impl OfBackend for Plain {
        fn backend(&self) -> SocketAddr {
            self.1
        }
    }

    #[test]
    fn the_limit_counts_the_remaining_rows() {
        let rows = || {
            let row = |name, port| Plain(name, SocketAddr::new([10, 0, 0, 1].into(), port));
            vec![
                row(None, 1),
                row(Some("default/web:a"), 1),
                row(Some("default/web:b"), 2),
                row(Some("default/db"), 2),
            ]
        };
        let service =
            |service: Option<&str>, limit| ServiceFilter { service: service.map(str::to_owned), limit };
        let count = |filter: ServiceFilter| by_service(rows(), &filter).len();
        assert_eq!(count(service(None, None)), 4);
        assert_eq!(count(service(Some("default/web"), None)), 2);
        assert_eq!(count(service(Some("default/web"), Some(1))), 1);
        assert_eq!(count(service(Some("default/db"), Some(1))), 1);
        let backend = Some("10.0.0.1:2".parse().unwrap());
        let kept = by_backend(rows(), &BackendFilter { service: service(None, None), backend });
        assert_eq!(kept.len(), 2);
    }
}
