//! Services and EndpointSlices as an API server writes them: with the metadata that a proxy has to read over.

use std::{fmt::Write as _, net::Ipv4Addr};

/// How many services, and how many endpoints each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
}

impl Size {
    /// As `1000x10`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().map_err(|error| format!("`{text}`: {error}"));
        let (services, endpoints) = text.split_once('x').ok_or("sizes are like 1000x10")?;
        let size = Self { services: number(services)?, endpoints: number(endpoints)? };
        // What fits the addresses below, and one slice.
        let fits = (1..=40_000).contains(&size.services) && (1..=100).contains(&size.endpoints);
        if fits { Ok(size) } else { Err("1 to 40000 services of 1 to 100 endpoints".to_owned()) }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", grouped(self.services), self.endpoints)
    }
}

/// With a comma between thousands.
pub(crate) fn grouped(number: usize) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1000), number % 1000),
    }
}

/// One of the services, and in which state its endpoints are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) index: usize,
    pub(crate) endpoints: usize,
    /// How many endpoints were replaced since the beginning, the first one first.
    pub(crate) replaced: usize,
    pub(crate) node_port: Option<u16>,
}

/// The port of every service, and that of its endpoints.
pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET_PORT: u16 = 8080;
const NODES: usize = 500;

impl Service {
    pub(crate) fn new(size: Size, index: usize) -> Self {
        Self { index, endpoints: size.endpoints, replaced: 0, node_port: None }
    }

    pub(crate) fn cluster_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + self.index as u32)
    }

    /// The address of an endpoint: another one each time that it was replaced.
    pub(crate) fn endpoint(&self, number: usize) -> Ipv4Addr {
        let rounds = (self.replaced + self.endpoints - 1 - number) / self.endpoints;
        // Ranges for several rounds: no two live endpoints of the cluster have one address.
        const ROUND: usize = 2_500_000;
        let offset = (self.index * self.endpoints + number + rounds * ROUND) % (3 * ROUND);
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + offset as u32)
    }

    /// Replaces so many endpoints.
    pub(crate) fn replace(&mut self, count: usize) {
        self.replaced += count;
    }

    fn name(&self) -> (String, String) {
        (format!("team-{:03}", self.index % 200), format!("service-{:05}", self.index))
    }

    /// The Service, of a resource version.
    pub(crate) fn service(&self, version: u64) -> String {
        let (namespace, name) = self.name();
        let (ip, index) = (self.cluster_ip(), self.index);
        let (kind, node_port) = match self.node_port {
            Some(port) => ("NodePort", format!(r#","nodePort":{port}"#)),
            None => ("ClusterIP", String::new()),
        };
        format!(
            r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"{namespace}","uid":"a3f0c9d2-5b1e-4c6f-8f11-{index:012x}","resourceVersion":"{version}","creationTimestamp":"2026-05-04T09:12:37Z","labels":{{"app.kubernetes.io/name":"{name}","app.kubernetes.io/managed-by":"Helm","helm.sh/chart":"{name}-1.4.2"}},"annotations":{{"meta.helm.sh/release-name":"{name}","meta.helm.sh/release-namespace":"{namespace}"}},"managedFields":[{{"manager":"helm","operation":"Update","apiVersion":"v1","time":"2026-05-04T09:12:37Z","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:annotations":{{".":{{}},"f:meta.helm.sh/release-name":{{}},"f:meta.helm.sh/release-namespace":{{}}}},"f:labels":{{".":{{}},"f:app.kubernetes.io/managed-by":{{}},"f:app.kubernetes.io/name":{{}},"f:helm.sh/chart":{{}}}}}},"f:spec":{{"f:internalTrafficPolicy":{{}},"f:ports":{{".":{{}},"k:{{\"port\":80,\"protocol\":\"TCP\"}}":{{".":{{}},"f:name":{{}},"f:port":{{}},"f:protocol":{{}},"f:targetPort":{{}}}}}},"f:selector":{{}},"f:sessionAffinity":{{}},"f:type":{{}}}}}}}}]}},"spec":{{"ports":[{{"name":"http","protocol":"TCP","port":{PORT},"targetPort":{TARGET_PORT}{node_port}}}],"selector":{{"app.kubernetes.io/name":"{name}"}},"clusterIP":"{ip}","clusterIPs":["{ip}"],"type":"{kind}","sessionAffinity":"None","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}"#
        )
    }

    /// Its EndpointSlice, of a resource version.
    pub(crate) fn slice(&self, version: u64) -> String {
        let (namespace, name) = self.name();
        let index = self.index;
        let mut text = format!(
            r#"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{{"name":"{name}-x7k2p","generateName":"{name}-","namespace":"{namespace}","uid":"c81d4e2e-bcf2-41e6-b1c4-{index:012x}","resourceVersion":"{version}","generation":{generation},"creationTimestamp":"2026-05-04T09:12:37Z","labels":{{"app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/name":"{name}","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","helm.sh/chart":"{name}-1.4.2","kubernetes.io/service-name":"{name}"}},"annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"2026-05-04T09:13:02Z"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"{name}","uid":"a3f0c9d2-5b1e-4c6f-8f11-{index:012x}","controller":true,"blockOwnerDeletion":true}}],"managedFields":[{{"manager":"kube-controller-manager","operation":"Update","apiVersion":"discovery.k8s.io/v1","time":"2026-05-04T09:13:02Z","fieldsType":"FieldsV1","fieldsV1":{{"f:addressType":{{}},"f:endpoints":{{}},"f:metadata":{{"f:annotations":{{".":{{}},"f:endpoints.kubernetes.io/last-change-trigger-time":{{}}}},"f:generateName":{{}},"f:labels":{{".":{{}},"f:app.kubernetes.io/managed-by":{{}},"f:app.kubernetes.io/name":{{}},"f:endpointslice.kubernetes.io/managed-by":{{}},"f:helm.sh/chart":{{}},"f:kubernetes.io/service-name":{{}}}},"f:ownerReferences":{{".":{{}},"k:{{\"uid\":\"a3f0c9d2-5b1e-4c6f-8f11-{index:012x}\"}}":{{}}}}}},"f:ports":{{}}}}}}]}},"addressType":"IPv4","endpoints":["#,
            generation = self.replaced + 1,
        );
        for number in 0..self.endpoints {
            let comma = if number == 0 { "" } else { "," };
            let id = self.index * self.endpoints + number;
            let (ip, node) = (self.endpoint(number), id.wrapping_mul(7919) % NODES);
            let zone = char::from(b'a' + (node % 3) as u8);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                r#"{comma}{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"targetRef":{{"kind":"Pod","namespace":"{namespace}","name":"{name}-6b7f9c5d4-{id:05x}","uid":"7be1f5c4-02a3-4d0e-9a5c-{id:012x}"}},"nodeName":"worker-{node:03}.example.internal","zone":"eu-1{zone}"}}"#
            );
        }
        let _ = write!(text, r#"],"ports":[{{"name":"http","protocol":"TCP","port":{TARGET_PORT}}}]}}"#);
        text
    }
}

/// The Node that the agent runs on.
pub(crate) fn node(name: &str, address: Ipv4Addr, version: u64) -> String {
    format!(
        r#"{{"kind":"Node","apiVersion":"v1","metadata":{{"name":"{name}","resourceVersion":"{version}","labels":{{"topology.kubernetes.io/zone":"eu-1a"}}}},"spec":{{}},"status":{{"addresses":[{{"type":"InternalIP","address":"{address}"}}]}}}}"#
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn objects_are_json_and_replacing_replaces_one_endpoint_after_the_other() {
        let size = Size::parse("40000x10").unwrap();
        assert_eq!(size.to_string(), "40,000 x 10");
        let mut service = Service::new(size, 39_999);
        service.node_port = Some(30_001);
        for text in [service.service(1), service.slice(2), node("n", Ipv4Addr::LOCALHOST, 3)] {
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
        let addresses = |service: &Service| -> BTreeSet<_> { (0..10).map(|n| service.endpoint(n)).collect() };
        let mut before = addresses(&service);
        for _ in 0..40 {
            service.replace(1);
            let now = addresses(&service);
            assert_eq!((now.len(), now.difference(&before).count()), (10, 1));
            before = now;
        }
        for wrong in ["", "10", "0x1", "1x0", "x", "1x101"] {
            assert!(Size::parse(wrong).is_err(), "{wrong}");
        }
    }
}
