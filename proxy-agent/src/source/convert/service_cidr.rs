//! ServiceCIDRs.

use super::{Converted, parse_all, parse_cidr};
use crate::{
    model::objects::{Change, ObjectName, ServiceCidr},
    source::trimmed::TrimmedServiceCidr,
};

/// The name of a ServiceCIDR: it is in no namespace.
pub fn service_cidr_name(name: &str) -> ObjectName {
    ObjectName::new("", name)
}

/// Converts a ServiceCIDR.
pub fn service_cidr(trimmed: &TrimmedServiceCidr) -> Converted {
    let name = service_cidr_name(trimmed.metadata.name.as_deref().unwrap_or_default());
    let mut problems = Vec::new();
    let cidrs = parse_all(&trimmed.spec.cidrs, parse_cidr, ("cidr", "a CIDR"), &mut problems);
    Converted { change: Change::ServiceCidr(ServiceCidr { name, cidrs }), problems }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_prefixes_are_dropped_alone() {
        for (cidrs, expected, problems) in [
            (json!(["10.96.0.0/16", "fd00:10:96::/112"]), vec!["10.96.0.0/16", "fd00:10:96::/112"], 0),
            (json!(["10.96.0.0", "fd00:10:96::/112"]), vec!["fd00:10:96::/112"], 1),
            (json!(null), vec![], 0),
        ] {
            let trimmed = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
            let converted = service_cidr(&serde_json::from_value(trimmed).unwrap());
            let cidrs = expected.iter().map(|net| net.parse().unwrap()).collect();
            let name = ObjectName::new("", "kubernetes");
            assert_eq!(converted.change, Change::ServiceCidr(ServiceCidr { name, cidrs }));
            assert_eq!(converted.problems.len(), problems);
        }
    }
}
