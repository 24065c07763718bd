//! A node with maps in memory and routes.

use super::*;

pub(super) const UPLINK: u32 = 2;
pub(super) const POD_PORT: u32 = 7;
pub(super) const NODE: &str = "192.168.0.1";
pub(super) const WEB: Id = Id::new(1, 1);
pub(super) const EMPTY: Id = Id::new(2, 1);
pub(super) const ELSEWHERE: Id = Id::new(3, 1);

/// A node with the Services `web` (cluster IP, node port and load balancer; a local and a remote endpoint), `empty` (no
/// endpoints) and `elsewhere` (endpoints on other nodes, policies Local).
#[derive(Default)]
pub(super) struct Node {
    pub(super) filter: HashMap<u32, u64>,
    pub(super) frontends: HashMap<FrontendKey<V4>, Frontend<V4>>,
    pub(super) sets: HashMap<u32, BackendSet>,
    pub(super) backends: Vec<Backend<V4>>,
    pub(super) node_addresses: HashMap<u32, NodeAddress>,
    pub(super) flows: HashMap<FlowKey<V4>, Flow<V4>>,
    pub(super) pending: HashMap<FlowKey<V4>, Flow<V4>>,
    pub(super) outbound: HashMap<FlowKey<V4>, Outbound>,
    pub(super) devices: HashMap<u32, Device>,
    pub(super) affinity: HashMap<AffinityKey<V4>, Affinity<V4>>,
    pub(super) sources: HashSet<(Id, u32)>,
    pub(super) netns: HashMap<u64, u32>,
}

pub(super) fn addr(ip: &str) -> u32 {
    V4::from_ip(ip.parse().unwrap()).unwrap()
}

impl Node {
    pub(super) fn new() -> Self {
        let mut node = Self::default();
        for (ip, port, id, flags) in [
            ("10.96.0.1", 80, WEB, FRONTEND_CLUSTER_IP),
            ("0.0.0.0", 30016, WEB, 0),
            ("198.51.100.1", 80, WEB, FRONTEND_SOURCE_RANGES),
            ("10.96.0.2", 80, EMPTY, FRONTEND_CLUSTER_IP),
            ("10.96.0.3", 80, ELSEWHERE, FRONTEND_CLUSTER_IP),
        ] {
            let key = FrontendKey::new(addr(ip), u16::to_be(port), PROTOCOL_TCP);
            node.frontends.insert(key, Frontend::new(key, Target::new(id, flags).unwrap()));
            node.fingerprint(filter::of_address::<V4>(&addr(ip)));
        }
        let whole = FrontendKey::of_address(addr("10.96.0.1"));
        let target = Target::new(WEB, FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS).unwrap();
        node.frontends.insert(whole, Frontend::new(whole, target));
        node.sets.insert(BackendSet::index(ELSEWHERE, SetPolicy::ClusterIp), BackendSet::NO_LOCAL_ENDPOINTS);
        node.fingerprint(filter::of_frontend::<V4>(&addr(NODE), 30016u16.to_be(), PROTOCOL_TCP));
        for (ip, id) in [("10.244.1.5", 1), ("10.244.2.5", 2)] {
            node.backends.push(Backend::new(addr(ip), 8080u16.to_be(), Id::new(id, 1)));
        }
        for set_policy in SetPolicy::ALL {
            node.sets
                .insert(BackendSet::index(WEB, set_policy), BackendSet::new(0, 2, BackendSetKind::Uniform));
        }
        node.node_addresses.insert(addr(NODE), NodeAddress(NODE_ADDR_NODEPORT | NODE_ADDR_SNAT));
        let uplink = Device { flags: DEVICE_UPLINK, snat_v4: addr(NODE), ..Device::default() };
        node.devices.insert(UPLINK, uplink);
        node
    }

    pub(super) fn fingerprint(&mut self, fingerprint: Fingerprint) {
        *self.filter.entry(fingerprint.element).or_default() |= fingerprint.mask;
    }

    pub(super) fn only(mut self, slot: u32) -> Self {
        for set_policy in SetPolicy::ALL {
            self.sets.insert(
                BackendSet::index(WEB, set_policy),
                BackendSet::new(slot, 1, BackendSetKind::Uniform),
            );
        }
        self
    }

    pub(super) fn ask(&self, from: &str, to: &str, from_outside: bool, attached: Attached) -> Answer {
        self.ask_over(PROTOCOL_TCP, from, to, from_outside, attached)
    }

    pub(super) fn ask_over(
        &self,
        protocol: u8,
        from: &str,
        to: &str,
        from_outside: bool,
        attached: Attached,
    ) -> Answer {
        let names: Names =
            [(WEB, "default/web:http"), (EMPTY, "default/empty"), (ELSEWHERE, "default/elsewhere")]
                .map(|(id, name)| (id, ServiceName::new(name, PROTOCOL_TCP, 4)))
                .into_iter()
                .collect();
        let question =
            Question { from: from.parse().unwrap(), to: to.parse().unwrap(), protocol, from_outside };
        let settings = Settings {
            snat_first: 20_000,
            snat_last: 29_999,
            idle: 2_500,
            snat_sources: 0,
            external_cluster_ips: false,
            reset_removed_tcp: false,
        };
        answer::<V4>(self, &Routes, &names, settings, attached, &question).unwrap()
    }
}

impl LiveMaps<V4> for Node {
    fn filter(&self, element: u32) -> u64 {
        self.filter.get(&element).copied().unwrap_or_default()
    }
    fn frontend(&self, key: &FrontendKey<V4>) -> Option<Frontend<V4>> {
        self.frontends.get(key).copied()
    }
    fn set(&self, index: u32) -> BackendSet {
        self.sets.get(&index).copied().unwrap_or_default()
    }
    fn backend(&self, slot: u32) -> Option<Backend<V4>> {
        self.backends.get(slot as usize).copied()
    }
    fn alive(&self, _element: u32) -> BackendState {
        // All of generation 1, and members of every set.
        BackendState(0x0f01_0f01_0f01_0f01)
    }
    fn node_address(&self, addr: &u32) -> NodeAddress {
        self.node_addresses.get(addr).copied().unwrap_or_default()
    }
    fn flow(&self, key: &FlowKey<V4>) -> Option<Flow<V4>> {
        self.flows.get(key).copied()
    }
    fn pending(&self, key: &FlowKey<V4>) -> Option<Flow<V4>> {
        self.pending.get(key).copied()
    }
    fn outbound(&self, key: &FlowKey<V4>) -> Option<Outbound> {
        self.outbound.get(key).copied()
    }
    fn snat_source(&self, _index: u32) -> Option<u32> {
        None
    }
    fn devices(&self) -> &HashMap<u32, Device> {
        &self.devices
    }
    fn affinity(&self, key: &AffinityKey<V4>) -> Option<Affinity<V4>> {
        self.affinity.get(key).copied()
    }
    fn is_allowed(&self, service: Id, client: &u32) -> bool {
        self.sources.contains(&(service, *client))
    }
    fn service_cidrs(&self) -> ServiceCidrs<V4> {
        let mut cidrs = ServiceCidrs::default();
        cidrs.0[0] = Cidr { base: addr("10.96.0.0"), mask: addr("255.240.0.0") };
        cidrs
    }
    fn netns(&self) -> &HashMap<u64, u32> {
        &self.netns
    }
    fn node_netns(&self) -> u64 {
        1
    }
    fn now(&self) -> u32 {
        10_000
    }
}

/// 10.244.1.0/24 is here, everything else behind the uplink.
struct Routes;

impl Routing for Routes {
    fn lookup(&self, _input: Option<u32>, _src: Option<IpAddr>, dst: IpAddr) -> Option<Hop> {
        let is_local = dst.to_string() == NODE;
        let ifindex = if dst.to_string().starts_with("10.244.1.") { POD_PORT } else { UPLINK };
        Some(Hop { is_local, ifindex, next_hop: dst, source: NODE.parse().ok() })
    }
    fn neighbour(&self, _ifindex: u32, _ip: IpAddr) -> Option<Mac> {
        Some(Mac([1, 2, 3]))
    }
    fn interface(&self, ifindex: u32) -> String {
        format!("if{ifindex}")
    }
}
