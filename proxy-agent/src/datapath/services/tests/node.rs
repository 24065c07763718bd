//! A node with maps in memory.

use super::*;

pub(super) const NODE: &str = "192.168.0.1";
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// The maps of a node; the tables are shared with the services.
pub(super) struct Node {
    pub(super) services: Services,
    pub(super) frontends: Memory<FrontendKey<V4>, FrontendValue<V4>>,
    pub(super) sources: Memory<SourcePrefix<V4>, u32>,
    pub(super) sources_v6: Memory<SourcePrefix<V6>, u32>,
    pub(super) names: Memory<u32, ServiceName>,
}

impl Node {
    pub(super) fn new() -> Self {
        Self::over(
            MmapArray::anonymous(64),
            MmapArray::anonymous(16 * SetPolicy::STRIDE),
            MmapArray::anonymous(16),
        )
    }

    /// A node whose backends of IPv4, sets and states are there.
    pub(super) fn over(
        backends: MmapArray<Backend<V4>>,
        sets: MmapArray<BackendSet>,
        alive: MmapArray<BackendState>,
    ) -> Self {
        let (frontends, sources) = (Memory::new(100), Memory::new(100));
        let (sources_v6, names) = (Memory::new(100), Memory::new(100));
        let maps = Maps {
            v4: FamilyTables {
                frontends: Box::new(frontends.clone()),
                sources: Box::new(sources.clone()),
                backends,
                has_flows: true,
            },
            v6: FamilyTables {
                frontends: Box::new(Memory::new(100)),
                sources: Box::new(sources_v6.clone()),
                backends: MmapArray::anonymous(64),
                has_flows: true,
            },
            names: Box::new(names.clone()),
            sets,
            alive,
            filter: MmapArray::anonymous(filter::ELEMENTS),
            records: MmapArray::anonymous(64),
        };
        let mut services = Services::restore(maps, 7).unwrap();
        services.set_node_addresses([NODE.parse().unwrap()].into());
        Self { services, frontends, sources, sources_v6, names }
    }

    /// The agent ends and another one starts.
    pub(super) fn restart(self) -> Self {
        let Services { v4, v6, shared, .. } = self.services;
        let Shared { sets, alive, names, filter, records, .. } = shared;
        let filter = filter.into_map();
        let maps = Maps { v4: v4.tables, v6: v6.tables, names, sets, alive, filter, records };
        let mut services = Services::restore(maps, 9).unwrap();
        services.set_node_addresses([NODE.parse().unwrap()].into());
        Self { services, ..self }
    }

    /// The agent ends and one of another release starts, with other layouts of the maps of services.
    pub(super) fn with_other_layouts(self) -> Self {
        let mut node = Self::new();
        let Shared { names, filter, records, .. } = self.services.shared;
        let Services { v4, v6, shared, .. } = node.services;
        let Shared { sets, alive, .. } = shared;
        let filter = filter.into_map();
        let maps = Maps { v4: v4.tables, v6: v6.tables, names, sets, alive, filter, records };
        node.services = Services::restore(maps, 11).unwrap();
        node.services.set_node_addresses([NODE.parse().unwrap()].into());
        Self { names: self.names, ..node }
    }

    pub(super) fn apply(&mut self, plan: &PortPlan) {
        self.services.apply(plan).unwrap();
    }

    /// How often anything but an array was written.
    pub(super) fn writes(&self) -> usize {
        self.frontends.writes() + self.sources.writes() + self.sources_v6.writes() + self.names.writes()
    }

    pub(super) fn id(&self, plan: &PortPlan) -> Id {
        self.services.ports[&plan.name].id
    }

    /// Whose a frontend is, and its flags.
    pub(super) fn frontend(&self, address: &str, protocol: Protocol) -> Option<(Id, u32)> {
        let address: SocketAddr = address.parse().unwrap();
        let protocol = if address.port() == 0 { 0 } else { protocol_number(protocol) };
        let key = FrontendKey::new(V4::from_ip(address.ip()).unwrap(), address.port().to_be(), protocol);
        let target: Target = self.frontends.get(&key)?.checked(&key)?;
        Some((target.service(), target.flags()))
    }

    pub(super) fn may_be_frontend(&self, address: &str) -> bool {
        let address: SocketAddr = address.parse().unwrap();
        let addr = V4::from_ip(address.ip()).unwrap();
        let marks = [
            filter::of_address::<V4>(&addr),
            filter::of_frontend::<V4>(&addr, address.port().to_be(), protocol_number(Protocol::Tcp)),
        ];
        marks.into_iter().any(|mark| self.services.shared.filter.holds(mark))
    }

    pub(super) fn set(&self, plan: &PortPlan, set_policy: SetPolicy) -> BackendSet {
        self.services.shared.sets.read(BackendSet::index(self.id(plan), set_policy)).unwrap()
    }

    pub(super) fn affinity(&self, plan: &PortPlan) -> u64 {
        self.services.shared.sets.read(BackendSet::affinity_index(self.id(plan))).unwrap().0
    }

    /// Ends of the addresses that a policy's set offers, like `12`; a dot stands in front of those that are not members.
    pub(super) fn offered(&self, plan: &PortPlan, set_policy: SetPolicy) -> String {
        let set = self.set(plan, set_policy);
        let slots = (set.base()..set.base() + set.count()).map(|slot| {
            let backend = self.services.v4.tables.backends.read(slot).unwrap();
            let element = self.services.shared.alive.read(BackendState::position(backend.id).0).unwrap();
            let end = V4::to_ip(&backend.addr).to_string().rsplit('.').next().unwrap().to_owned();
            if element.holds_in(backend.id, set_policy) { end } else { format!(".{end}") }
        });
        slots.collect()
    }

    /// All sets, in the order of policies.
    pub(super) fn all_offered(&self, plan: &PortPlan) -> String {
        SetPolicy::ALL.map(|set_policy| self.offered(plan, set_policy)).join("|")
    }

    pub(super) fn is_allowed(&self, plan: &PortPlan, clients: &str) -> bool {
        let net: IpNet = clients.parse().unwrap();
        let source = SourceRange { service: self.id(plan), addr: V4::from_ip(net.addr()).unwrap() };
        self.sources.get(&(32 + u32::from(net.prefix_len()), source)).is_some()
    }
}

/// Endpoints 10.244.0.x:8080, by the digits of their ends.
pub(super) fn endpoints(ends: &str) -> Endpoints {
    ends.chars().map(|end| format!("10.244.0.{end}:8080").parse().unwrap()).collect()
}

pub(super) fn port(service: &str, protocol: Protocol, frontends: &[Frontend]) -> PortPlan {
    PortPlan {
        name: PortName {
            service: ObjectName::new("default", service),
            port: "web".into(),
            protocol,
            family: IpFamily::V4,
        },
        frontends: frontends.to_vec(),
        internal: endpoints("12"),
        external: endpoints("12"),
        cluster: endpoints("12"),
        serving: endpoints("12"),
        places: Places::default(),
        affinity: None,
        sources: None,
    }
}

pub(super) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

pub(super) fn nets(nets: &[&str]) -> Option<Vec<IpNet>> {
    Some(nets.iter().map(|net| net.parse().unwrap()).collect())
}
