//! The upstream end-to-end tests of Services, and the tests here that show the same.

use Proven::{NotOurs, Rules, Tests};

/// An upstream test.
#[derive(Clone, Copy, Debug)]
pub struct E2eTest {
    /// Its file in `test/e2e/network`.
    pub file: &'static str,
    /// Its name, shortened.
    pub name: &'static str,
    /// It is part of Conformance.
    pub conformance: bool,
    /// The test that shows the same.
    pub proven: Proven,
}

/// The kind of proof.
#[derive(Clone, Copy, Debug)]
pub enum Proven {
    /// Rules of the table, by id.
    Rules(&'static [&'static str]),
    /// Tests, named `package: function`.
    Tests(&'static [&'static str]),
    /// No proxy is involved: why.
    NotOurs(&'static str),
    /// Not covered: why.
    No(&'static str),
}

const fn yes(file: &'static str, name: &'static str, proven: Proven) -> E2eTest {
    E2eTest { file, name, conformance: true, proven }
}

const fn no(file: &'static str, name: &'static str, proven: Proven) -> E2eTest {
    E2eTest { file, name, conformance: false, proven }
}

const SERVICE: &str = "service.go";
const BALANCER: &str = "loadbalancer.go";
const NETWORKING: &str = "networking.go";
const CONNTRACK: &str = "conntrack.go";
const API: Proven = NotOurs("The API server's business.");

/// All of them, those of Conformance first.
pub const E2E: &[E2eTest] = &[
    yes(SERVICE, "serve a basic endpoint from pods", Rules(&["basic-cluster-ip", "evicted"])),
    yes(SERVICE, "serve multiport endpoints from pods", Rules(&["multiple-ports"])),
    yes(SERVICE, "create a functioning NodePort service", Rules(&["basic-node-port"])),
    yes(SERVICE, "change the type: ExternalName, ClusterIP, NodePort (4 tests)", Rules(&["type-changes"])),
    yes(SERVICE, "session affinity: clusterIP, NodePort", Rules(&["affinity"])),
    yes(SERVICE, "session affinity switched: clusterIP, NodePort", Rules(&["affinity-switched"])),
    yes(SERVICE, "same port and different protocols", Rules(&["same-port-different-protocols"])),
    yes(SERVICE, "list all namespaces; status lifecycle; delete a collection", API),
    yes(
        "endpointslice.go",
        "multiple ports; multiple IPs in multiple slices",
        Rules(&["union-of-slices", "multiple-ports"]),
    ),
    yes(
        "endpointslicemirroring.go",
        "mirror a custom Endpoints resource",
        Rules(&["named-target-ports", "node-name"]),
    ),
    yes("endpoints.go", "three tests of the API", API),
    yes(
        "dns.go",
        "look-ups by way of the DNS service",
        Rules(&["same-port-different-protocols", "udp-moves"]),
    ),
    yes(
        "hostport.go",
        "hostPorts of the CNI beside the proxy",
        Tests(&["proxy-tests: packet_of_others_is_left_alone"]),
    ),
    yes("proxy.go", "the API server as a proxy to a Service", Rules(&["basic-cluster-ip"])),
    yes("apiserver.go", "the kubernetes Service", Rules(&["host-network-endpoints"])),
    yes("service_latency.go", "endpoints are not slow to appear", Rules(&["evicted"])),
    no(SERVICE, "be updated after adding or deleting ports", Rules(&["ports-come-and-go"])),
    no(
        SERVICE,
        "preserve the source pod IP through a cluster IP",
        Rules(&["pods-are-seen-through-cluster-ips"]),
    ),
    no(SERVICE, "allow pods to hairpin back to themselves", Rules(&["hairpin"])),
    no(SERVICE, "be able to up and down services", Rules(&["up-and-down"])),
    no(SERVICE, "work after the service has been recreated", Rules(&["up-and-down"])),
    no(SERVICE, "work after restarting kube-proxy", Tests(&["proxy-tests: no_request_is_lost_by_sockets"])),
    no(
        SERVICE,
        "work after restarting the API server",
        Tests(&["proxy-tests: an_outage_changes_nothing_until_the_server_is_back"]),
    ),
    no(SERVICE, "connect to an external IP that no node has", Rules(&["external-ips"])),
    no(
        SERVICE,
        "NodePort service with the same number for TCP and UDP",
        Rules(&["same-port-different-protocols"]),
    ),
    no(SERVICE, "NodePort collisions, out of range, released on deletion", API),
    no(SERVICE, "create endpoints for unready pods", Rules(&["not-ready-addresses"])),
    no(
        SERVICE,
        "terminating and unready pods with publishNotReadyAddresses true and false",
        Rules(&["not-ready-addresses"]),
    ),
    no(
        SERVICE,
        "session affinity timeout: clusterIP, NodePort",
        Rules(&["affinity-timeout", "affinity-is-refreshed"]),
    ),
    no(SERVICE, "implement service-proxy-name", Rules(&["service-proxy-name"])),
    no(SERVICE, "implement service headless", Rules(&["headless-slice", "headless-service"])),
    no(SERVICE, "be rejected when no endpoints exist", Rules(&["no-endpoints"])),
    no(SERVICE, "be rejected for evicted pods", Rules(&["evicted"])),
    no(SERVICE, "internalTrafficPolicy Local: pod to pod", Rules(&["internal-policy-local"])),
    no(
        SERVICE,
        "internalTrafficPolicy Local: to and from host network",
        Rules(&["internal-policy-local-host-network"]),
    ),
    no(
        SERVICE,
        "externalTrafficPolicy Local for type NodePort",
        Rules(&["external-policy-local", "clients-are-seen-under-local"]),
    ),
    no(
        SERVICE,
        "fail the health check node port if there are only terminating endpoints",
        Tests(&["proxy-tests: health_checks_follow_endpoints_and_policy"]),
    ),
    no(
        SERVICE,
        "fall back to terminating endpoints, policies Cluster",
        Rules(&["terminating-fallback-cluster"]),
    ),
    no(
        SERVICE,
        "fall back to local terminating endpoints, policies Local",
        Rules(&["terminating-fallback-local"]),
    ),
    no(
        SERVICE,
        "same port and protocols, internal traffic of type LoadBalancer",
        Rules(&["same-port-different-protocols", "load-balancer-ips"]),
    ),
    no(SERVICE, "a basic SCTP service", Rules(&["sctp"])),
    no(
        SERVICE,
        "NodePort and HealthCheckNodePort when externalTrafficPolicy changes",
        Rules(&["external-policy-changes", "health-check-follows"]),
    ),
    no(
        SERVICE,
        "ports of restartable init containers; named targetPorts that differ",
        Rules(&["named-target-ports"]),
    ),
    no(
        BALANCER,
        "change type and ports, TCP and UDP",
        Rules(&["type-changes", "node-port-changes", "node-port-zero"]),
    ),
    no(BALANCER, "only allow access from source ranges", Rules(&["source-ranges", "source-ranges-change"])),
    no(
        BALANCER,
        "session affinity with policy Local and Cluster, switched",
        Rules(&["affinity-and-policy-local", "affinity-switched"]),
    ),
    no(BALANCER, "clean up the finalizer", API),
    no(BALANCER, "a load balancer without nodePort, then with", Rules(&["node-port-zero"])),
    no(BALANCER, "preserve UDP when the server pod cycles", Rules(&["udp-moves"])),
    no(
        BALANCER,
        "no disruption during a rolling update",
        Rules(&["rolling-update", "terminating-fallback-local"]),
    ),
    no(
        BALANCER,
        "externalTrafficPolicy Local: source IP, only nodes with endpoints, from pods",
        Rules(&[
            "clients-are-seen-under-local",
            "external-policy-local",
            "external-policy-local-from-inside",
        ]),
    ),
    no(NETWORKING, "check kube-proxy's URLs", Rules(&["healthz", "proxy-mode"])),
    no(
        NETWORKING,
        "pod, node and endpoint to Service by http, udp",
        Rules(&["basic-cluster-ip", "basic-node-port"]),
    ),
    no(NETWORKING, "the same by sctp", Rules(&["sctp"])),
    no(NETWORKING, "multiple services of the same pods", Rules(&["several-services-of-the-same-pods"])),
    no(NETWORKING, "update endpoints; update nodePort", Rules(&["evicted", "node-port-changes"])),
    no(NETWORKING, "client IP session affinity, http and udp", Rules(&["affinity"])),
    no(NETWORKING, "large requests, http", Rules(&["bulk"])),
    no(NETWORKING, "large requests, udp", Rules(&["large-datagrams"])),
    no(NETWORKING, "endpoints in the host network", Rules(&["host-network-endpoints"])),
    no(NETWORKING, "recreate iptables rules", NotOurs("There are none.")),
    no(
        CONNTRACK,
        "UDP when the server pod cycles: NodePort, ClusterIP, host network client",
        Rules(&["udp-moves", "udp-survives-without-endpoints"]),
    ),
    no(CONNTRACK, "the same under internalTrafficPolicy Local", Rules(&["udp-moves-under-policy-local"])),
    no(CONNTRACK, "UDP when initially unready endpoints get ready", Rules(&["udp-served-when-ready"])),
    no(CONNTRACK, "the invalid conntrack state bug", Rules(&["no-window-tracking"])),
    no(CONNTRACK, "UDP when the targetPort changes", Rules(&["udp-follows-the-target-port"])),
    no(
        "kube_proxy.go",
        "timeout of CLOSE_WAIT in the kernel's connection tracking",
        Rules(&["conntrack-sysctls"]),
    ),
    no(
        "kube_proxy.go",
        "metric of localhost nodePorts of iptables",
        NotOurs("The test skips other proxies."),
    ),
    no(
        "dual_stack.go",
        "Service families and their traffic",
        Rules(&["cluster-ip-per-family", "no-cluster-ip-no-family"]),
    ),
    no("topology_hints.go", "distribute endpoints evenly", Rules(&["zone-hints"])),
    no("traffic_distribution.go", "PreferClose, PreferSameZone", Rules(&["zone-hints", "hints-for-others"])),
    no(
        "traffic_distribution.go",
        "PreferSameNode: zone fall-back, loss and return of the endpoint",
        Rules(&["node-hints", "same-node-endpoint-comes-and-goes"]),
    ),
    no(
        "service_cidrs.go",
        "serve on different Service CIDRs",
        Tests(&["proxy-tests: service_cidrs_are_followed"]),
    ),
    no(
        "pod_lifecycle.go",
        "connect to and from terminating pods; blue-green without loss",
        Rules(&["tcp-outlives-its-endpoint", "terminating-fallback-cluster"]),
    ),
    no(
        "no_snat.go",
        "pods reach each other without masquerade",
        NotOurs("The CNI's part; non-service packets are left alone."),
    ),
];
