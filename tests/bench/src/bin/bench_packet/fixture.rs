//! The node that is measured on: the kernel programs with more or fewer services, and more or fewer flows.

use std::{cell::RefCell, net::IpAddr};

use anyhow::{Context, Result};
use proxy_common::{
    V4, V6,
    decide::memory::MemoryTables,
    layout::{
        backend::{BACKEND_LOCAL, BACKEND_REMOTE, Backend},
        frontend::{FRONTEND_CLUSTER_IP, FrontendKey, Target},
        id::Id,
        set::SetPolicy,
    },
    packet::PROTOCOL_TCP,
};
use proxy_packets::{Host, Kernel, Node, Options, PacketFamily};

use crate::non_service::Filter;

/// Entries of the large flow maps, those of unconfirmed flows as well.
pub(crate) const LARGE: u32 = 1 << 19;

/// Entries of the flow maps that are full.
pub(crate) const SMALL: u32 = 1 << 16;

/// How many services there are, beside those that packets are for.
pub(crate) const SERVICES: [u32; 3] = [10, 10_000, 100_000];

/// The nodePort of the service with many remote backends, so that there are enough source ports for many flows.
pub(crate) const MANY_REMOTE: u16 = 30_009;

const REMOTES: u32 = 32;

/// The kernel programs, loaded several times.
pub(crate) struct Fixture {
    /// With the numbers of services in [`SERVICES`], and few flows.
    pub(crate) kernels: Vec<RefCell<Kernel>>,
    /// The addresses that their programs take for a service's.
    pub(crate) filters: Vec<Filter>,
    /// With few services and few flows, once more: flows that one case removes lie in the caches, and the next one that
    /// opens some finds their memory there. Cases that are compared with other numbers of services must find the same state.
    pub(crate) one: RefCell<Kernel>,
    /// With few services and many flows.
    pub(crate) crowded: Kernel,
    /// With a full map of confirmed flows.
    pub(crate) full: Kernel,
    /// With a full map of unconfirmed ones, to open flows in.
    pub(crate) evicting: Kernel,
    _node: Node,
}

impl Fixture {
    pub(crate) fn new() -> Result<Self> {
        let node = Node::new(Options::default())?;
        let tables = |services: u32| -> Result<(MemoryTables<V4>, MemoryTables<V6>)> {
            let (mut v4, mut v6) = (node.v4.clone(), node.v6.clone());
            fill(&mut v4, services)?;
            fill(&mut v6, services)?;
            locate(&mut v4);
            locate(&mut v6);
            Ok((v4, v6))
        };
        let load = |services: u32, max_flows: u32| -> Result<Kernel> {
            let (v4, v6) = tables(services)?;
            let options = Options {
                max_services: SetPolicy::STRIDE * filler(services, false).index(),
                max_flows,
                max_pending: max_flows,
                // As the agent would load them on this kernel.
                csum_ipv6: node.kernel.knows_csum_ipv6()?,
                fib_src: node.kernel.knows_fib_src()?,
                ..Options::default()
            };
            Kernel::load(options, &v4, &v6)
        };
        let filters = SERVICES.map(|services| tables(services).map(|(v4, v6)| Filter::new(&v4, &v6)));
        let kernels = SERVICES.map(|services| Ok(RefCell::new(load(services, LARGE)?)));
        Ok(Self {
            kernels: kernels.into_iter().collect::<Result<_>>()?,
            filters: filters.into_iter().collect::<Result<_>>()?,
            one: RefCell::new(load(SERVICES[0], LARGE)?),
            crowded: load(SERVICES[0], LARGE)?,
            full: load(SERVICES[0], SMALL)?,
            evicting: load(SERVICES[0], SMALL)?,
            _node: node,
        })
    }
}

/// The service port with this number, of a family.
fn filler(number: u32, is_v4: bool) -> Id {
    const OTHERS: u32 = 1024;
    Id::new(OTHERS + 2 * number + u32::from(!is_v4), 1)
}

/// The cluster IP of a service that only adds to their number. The last four bytes count.
pub(crate) fn filler_address<F: PacketFamily>(number: u32) -> IpAddr {
    const NET: u32 = 10 << 24 | 100 << 16;
    if F::IS_V4 {
        std::net::Ipv4Addr::from(NET + number).into()
    } else {
        std::net::Ipv6Addr::from(0xfd00_0100 << 96 | (NET + number) as u128).into()
    }
}

fn fill<F: PacketFamily>(tables: &mut MemoryTables<F>, services: u32) -> Result<()> {
    for number in 0..services {
        let id = filler(number, F::IS_V4);
        let addr = F::from_ip(filler_address::<F>(number));
        let target = Target::new(id, FRONTEND_CLUSTER_IP).context("an id of 0")?;
        tables.add_frontend(FrontendKey::new(addr, 80u16.to_be(), PROTOCOL_TCP), target);
        let backend = Backend::new(Host::PodB.addr::<F>(), 8080u16.to_be(), id);
        tables.publish(id, SetPolicy::ClusterIp, &[backend]);
    }
    let id = Id::new(100 + 10 * F::NUMBER, 1);
    let target = Target::new(id, 0).context("an id of 0")?;
    tables.add_frontend(FrontendKey::new(F::UNSPECIFIED, MANY_REMOTE.to_be(), PROTOCOL_TCP), target);
    let backends: Vec<_> = (0..REMOTES)
        .map(|number| {
            // Beyond the gateway.
            let ip: IpAddr = if F::IS_V4 {
                std::net::Ipv4Addr::new(10, 245, 0, number as u8 + 1).into()
            } else {
                std::net::Ipv6Addr::new(0xfd00, 0x245, 0, 0, 0, 0, 0, number as u16 + 1).into()
            };
            Backend::new(F::from_ip(ip), 8080u16.to_be(), Id::new(100 * F::NUMBER + number, 1))
        })
        .collect();
    tables.publish(id, SetPolicy::External, &backends);
    Ok(())
}

/// Marks endpoints as local or remote, as the agent does by their `nodeName`.
fn locate<F: PacketFamily>(tables: &mut MemoryTables<F>) {
    let local = [Host::PodA, Host::PodB, Host::PodD, Host::OddPod].map(|host| host.addr::<F>());
    for backend in &mut tables.backends {
        let flag = if local.contains(&backend.addr) { BACKEND_LOCAL } else { BACKEND_REMOTE };
        *backend = backend.with_flags(flag);
    }
}

/// Confirms all flows: packets after the handshake are measured, not the handshake.
pub(crate) fn establish(kernel: &mut Kernel) -> Result<()> {
    kernel.confirm_flows::<V4>()?;
    kernel.confirm_flows::<V6>()
}
