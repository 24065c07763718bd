//! More services than single tests need: several backends, policies, affinity, source ranges.

use proxy_common::{
    decide::memory::MemoryTables,
    layout::{
        backend::{BACKEND_LOCAL, BACKEND_REMOTE, Backend},
        filter,
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES, FrontendKey, Target},
        id::Id,
        set::{BackendSet, SetPolicy},
    },
    packet::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP},
};

use crate::{Host, PacketFamily};

/// A service with one backend or two; of two, the second is one of [`SECONDS`].
struct Service {
    vip: Host,
    node_port: u16,
    backends: &'static [Host],
    /// For clients outside, if a policy gives them others.
    outside: Option<&'static [Host]>,
    /// An address of a load balancer or an external IP, and its flags.
    address: Option<(Host, u32)>,
}

/// The second backends: their addresses show which of two was chosen.
const SECONDS: [Host; 2] = [Host::Remote, Host::PodC];

const fn service(vip: Host, node_port: u16, backends: &'static [Host]) -> Service {
    Service { vip, node_port, backends, outside: None, address: None }
}

const SERVICES: [Service; 7] = [
    Service {
        address: Some((Host::OpenIp, 0)),
        ..service(Host::SpreadVip, 30_583, &[Host::PodB, Host::Remote])
    },
    service(Host::AffinityVip, 30_590, &[Host::PodB, Host::Remote]),
    Service {
        outside: Some(&[Host::PodB]),
        ..service(Host::LocalOnlyVip, 30_600, &[Host::PodB, Host::Remote])
    },
    Service { outside: Some(&[]), ..service(Host::NoLocalVip, 30_610, &[Host::Remote]) },
    Service {
        address: Some((Host::GuardedIp, FRONTEND_SOURCE_RANGES)),
        ..service(Host::GuardedVip, 30_620, &[Host::PodB])
    },
    service(Host::OwnVip, 30_630, &[Host::PodA, Host::PodC]),
    service(Host::L3Vip, 30_640, &[Host::L3Pod]),
];

/// In no run do clients lose their backend by time: it would not be at the same packet in the kernel.
const FOREVER: u32 = 1 << 30;

/// Adds the services.
pub fn add_services<F: PacketFamily>(tables: &mut MemoryTables<F>) {
    for (number, Service { vip, node_port, backends, outside, address }) in (0..).zip(&SERVICES) {
        // Both families share the sets.
        let id = Id::new(20 * F::NUMBER + number, 1);
        if *vip == Host::AffinityVip {
            tables.affinity_timeouts.insert(id, FOREVER);
        }
        if *vip == Host::GuardedVip {
            tables.sources.extend([Host::Client, Host::PodA].map(|host| (id, host.addr::<F>())));
        }
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_SCTP] {
            let frontends = [(vip.addr::<F>(), 80u16, FRONTEND_CLUSTER_IP), (F::UNSPECIFIED, *node_port, 0)];
            let others = address.iter().map(|(host, flags)| (host.addr::<F>(), 80, *flags));
            for (addr, port, flags) in frontends.into_iter().chain(others) {
                let key = FrontendKey::new(addr, port.to_be(), protocol);
                Target::new(id, flags).into_iter().for_each(|target| tables.add_frontend(key, target));
            }
        }
        let backend = |(place, host): (u32, &Host)| {
            let id = Id::new(50 * F::NUMBER + 2 * number + place, 1);
            // Some backends have no place, and some a wrong one. Sets of several have none: a dropped packet does not show
            // which backend was chosen.
            const HOSTS: [u16; 4] = [0, BACKEND_LOCAL, BACKEND_REMOTE, BACKEND_REMOTE];
            let flags = if backends.len() > 1 { 0 } else { HOSTS[number as usize % HOSTS.len()] };
            Backend::new(host.addr::<F>(), 8080u16.to_be(), id).with_flags(flags)
        };
        let all: Vec<_> = (0..).zip(*backends).map(backend).collect();
        for set_policy in SetPolicy::ALL {
            match outside {
                Some([]) if matches!(set_policy, SetPolicy::External | SetPolicy::ClusterIp) => {
                    tables.sets.insert(BackendSet::index(id, set_policy), BackendSet::NO_LOCAL_ENDPOINTS);
                }
                Some(few) if set_policy == SetPolicy::External => {
                    tables.publish(id, set_policy, &all[..few.len()])
                }
                _ => tables.publish(id, set_policy, &all),
            }
        }
    }
    // Only the load balancer has it.
    let addr = Host::GuardedIp.addr::<F>();
    if let Some(guarded) = SERVICES.iter().position(|service| service.vip == Host::GuardedVip) {
        let target = Target::new(Id::new(20 * F::NUMBER + guarded as u32, 1), FRONTEND_ADDRESS);
        tables.frontends.extend(target.map(|target| (FrontendKey::of_address(addr), target)));
        tables.filter.insert(filter::of_address::<F>(&addr));
    }
    tables.service_addresses = [Host::LocalVip, Host::EmptyVip, Host::SpreadVip, Host::UnallocatedVip]
        .map(|host| host.addr::<F>())
        .into();
}

/// The MTU of all devices.
const MTU: u32 = 1500;

/// Routes as the kernel has them: with the MTU of their device.
pub(super) fn add_mtus<F: PacketFamily>(tables: &mut MemoryTables<F>) {
    tables.routes.values_mut().for_each(|route| route.mtu = MTU);
    tables.default_route.mtu = MTU;
}

/// Whether it is the second backend of its service.
pub(super) fn is_second<F: PacketFamily>(addr: &F::Addr) -> bool {
    SECONDS.iter().any(|host| host.addr::<F>() == *addr)
}

/// The backends that can be marked as gone and as back.
pub(super) fn backends<F: PacketFamily>(tables: &MemoryTables<F>) -> Vec<Id> {
    let mut ids: Vec<_> = tables.members.iter().map(|(id, _)| *id).collect();
    ids.sort_by_key(|id| id.0);
    ids.dedup();
    ids
}
