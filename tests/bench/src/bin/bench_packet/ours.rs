//! Our programs as cases.

use std::{cell::RefCell, collections::HashSet, net::IpAddr, os::fd::AsFd as _, rc::Rc};

use anyhow::{Context as _, Result, ensure};
use proxy_common::{
    V4, V6,
    layout::{counter::Counter, flow::FlowKey},
};
use proxy_packets::{Kernel, PacketFamily, helpers::SYN, sys};

use crate::{
    cases::{After, CLIENTS, Case, MANY, REPEAT_NEW, Sort, Table},
    fixture::{Fixture, MANY_REMOTE, SERVICES, SMALL, establish, filler_address},
    non_service::Filter,
    paths::{Path, PathKind, paths},
    wrapper::{Vary, Wrapper},
};

/// All cases of our programs.
pub(crate) fn all(fixture: &mut Fixture) -> Result<Vec<Case<'_>>> {
    let v4 = open::<V4>(fixture)?;
    let v6 = open::<V6>(fixture)?;
    for kernel in &fixture.kernels {
        establish(&mut kernel.borrow_mut())?;
    }
    establish(&mut fixture.one.borrow_mut())?;
    establish(&mut fixture.crowded)?;
    establish(&mut fixture.full)?;
    let mut cases = of_family::<V4>(fixture, &v4)?;
    cases.extend(of_family::<V6>(fixture, &v6)?);
    Ok(cases)
}

/// Packets for each of the kernels.
struct Paths {
    by_services: Vec<Vec<Path>>,
    one: Vec<Path>,
    crowded: Vec<Path>,
    full: Vec<Path>,
}

/// Opens the flows.
fn open<F: PacketFamily>(fixture: &mut Fixture) -> Result<Paths> {
    let by_services = fixture.kernels.iter().map(|kernel| paths::<F>(&kernel.borrow()));
    let by_services = by_services.collect::<Result<_>>()?;
    let crowded = paths::<F>(&fixture.crowded)?;
    for path in crowded.iter().filter(|path| path.kind == PathKind::New) {
        run(&fixture.crowded, path, path.round_robin(), MANY)?;
    }
    for path in crowded.iter().filter(|path| path.program == "uplink_ingress" && path.is_remote_request()) {
        let mut opens = path.clone();
        opens.frame.transport = SYN;
        run(&fixture.crowded, &opens, path.clients(), CLIENTS)?;
    }
    // First full, then the flows that are measured.
    for kernel in [&fixture.full, &fixture.evicting] {
        let paths = paths::<F>(kernel)?;
        let path = paths.iter().find(|path| path.kind == PathKind::New).context("no new flows")?;
        run(kernel, path, path.fresh(), 2 * SMALL)?;
    }
    establish(&mut fixture.full)?;
    let one = paths::<F>(&fixture.one.borrow())?;
    Ok(Paths { by_services, one, crowded, full: paths::<F>(&fixture.full)? })
}

fn run(kernel: &Kernel, path: &Path, varied: Vec<Vary>, repeat: u32) -> Result<()> {
    let kind = Kernel::kind(path.program);
    let packet = path.packet(varied)?;
    let wrapper = Wrapper::new(kind, kernel.program(path.program)?.as_fd(), &packet)?;
    sys::run(wrapper.fd(), kind, &packet.frame, sys::at(path.device().index()?), repeat)?;
    Ok(())
}

fn of_family<'w, F: PacketFamily>(fixture: &'w Fixture, paths: &Paths) -> Result<Vec<Case<'w>>> {
    let mut cases = Vec::new();
    with_one_flow::<F>(&mut cases, &fixture.one, &paths.one)?;
    for (number, services) in SERVICES.into_iter().enumerate() {
        let (kernel, filter) = (&fixture.kernels[number], &fixture.filters[number]);
        with_services::<F>(&mut cases, (kernel, filter), &paths.by_services[number], services)?;
    }
    with_many_clients::<F>(&mut cases, &fixture.crowded, &paths.crowded)?;
    with_many_flows::<F>(&mut cases, &fixture.crowded, &paths.crowded)?;
    with_full_map::<F>(&mut cases, fixture, &paths.full)?;
    Ok(cases)
}

/// Cases with one flow at a time; and others that open no flows and are compared over numbers of services.
fn with_one_flow<'w, F: PacketFamily>(
    cases: &mut Vec<Case<'w>>,
    kernel: &'w RefCell<Kernel>,
    paths: &[Path],
) -> Result<()> {
    let opened = Opened::<F>::of(kernel)?;
    for path in paths {
        cases.push(if path.kind == PathKind::New {
            opened.new_flow(Table::One, path, path.fresh())?
        } else {
            path.case::<F>(&kernel.borrow(), Table::One, Vec::new())?
        });
        if path.shows_services() && path.kind != PathKind::New {
            cases.push(of_known_flow::<F>(&kernel.borrow(), Table::Again, path)?);
        }
    }
    Ok(())
}

fn with_services<'w, F: PacketFamily>(
    cases: &mut Vec<Case<'w>>,
    (kernel, filter): (&'w RefCell<Kernel>, &Filter),
    paths: &[Path],
    services: u32,
) -> Result<()> {
    let table = Table::Services(services);
    let opened = Opened::<F>::of(kernel)?;
    for path in paths.iter().filter(|path| path.shows_services()) {
        cases.push(if path.kind == PathKind::New {
            opened.new_flow(table, path, path.fresh())?
        } else {
            let mut case = of_known_flow::<F>(&kernel.borrow(), table, path)?;
            let is_filtered = path.kind == PathKind::NotOurs && !path.program.ends_with("egress");
            case.mistaken = is_filtered.then(|| filter.mistaken::<F>(&path.frame));
            case
        });
    }
    let path = paths.iter().find(|path| path.kind == PathKind::New).context("no new flows")?;
    let mut path = Path { row: "ClusterIP, new flow, services in turn", ..path.clone() };
    let first = filler_address::<F>(0);
    path.frame.dst.set_ip(first);
    let mut varied = path.fresh();
    let at = path.frame.transport_offset() - 4;
    varied.push(Vary { at, bytes: 4, first: last_word(first), shift: 0, values: services });
    cases.push(opened.new_flow(table, &path, varied)?);
    Ok(())
}

/// A packet that opens nothing, as numbers of services are compared with: non-service packets go to many destinations.
fn of_known_flow<'w, F: PacketFamily>(kernel: &Kernel, table: Table, path: &Path) -> Result<Case<'w>> {
    if path.kind != PathKind::NotOurs {
        return path.case::<F>(kernel, table, Vec::new());
    }
    let mut case = path.case::<F>(kernel, table, path.round_robin())?.through_many();
    case.row.push_str(", 65,536 destinations in turn");
    Ok(case)
}

fn last_word(ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => u128::from(ip) as u32,
    }
}

/// Packets to and from remote backends: more clients than a CPU caches routes.
fn with_many_clients<F: PacketFamily>(
    cases: &mut Vec<Case<'_>>,
    kernel: &Kernel,
    paths: &[Path],
) -> Result<()> {
    let before = kernel.flows::<F>()?.len();
    for path in paths {
        if matches!(path.kind, PathKind::Request { snat: true } | PathKind::Answer { snat: true }) {
            let case = path.case::<F>(kernel, Table::Clients, path.clients())?.through_many();
            case.run(CLIENTS)?;
            cases.push(case);
        }
    }
    let after = kernel.flows::<F>()?.len();
    ensure!(before == after, "{} of the clients' flows were not open", after.abs_diff(before));
    Ok(())
}

fn with_many_flows<F: PacketFamily>(
    cases: &mut Vec<Case<'_>>,
    kernel: &Kernel,
    paths: &[Path],
) -> Result<()> {
    let before = kernel.flows::<F>()?.len();
    for path in paths {
        let mut path = path.clone();
        match path.kind {
            // Their source port is not known.
            PathKind::NotOurs | PathKind::New | PathKind::Answer { snat: true } => continue,
            PathKind::Request { snat: true } => path.frame.dst.set_port(MANY_REMOTE),
            PathKind::Request { .. } | PathKind::Answer { .. } => {}
        }
        let case = path.case::<F>(kernel, Table::Many, path.round_robin())?.through_entries();
        case.run(MANY)?;
        cases.push(case);
    }
    let after = kernel.flows::<F>()?.len();
    ensure!(before == after, "{} of the many flows were not open", after.abs_diff(before));
    Ok(())
}

fn with_full_map<'w, F: PacketFamily>(
    cases: &mut Vec<Case<'w>>,
    fixture: &'w Fixture,
    paths: &[Path],
) -> Result<()> {
    for path in paths {
        match path.kind {
            PathKind::NotOurs => {}
            PathKind::Request { .. } | PathKind::Answer { .. } => {
                cases.push(path.case::<F>(&fixture.full, Table::Full, Vec::new())?);
            }
            PathKind::New => {
                let mut case = path.case::<F>(&fixture.evicting, Table::Full, path.fresh())?;
                case.repeat = 2 * REPEAT_NEW;
                case = case.counted_by(|| fixture.evicting.counter(Counter::FlowNew));
                // The cost of a new flow does not depend on how full the map is.
                let one = cases.iter().find(|other| other.table == Table::One && other.row == case.row);
                case.sort = one.context("no case with room")?.sort;
                cases.push(case);
            }
        }
    }
    Ok(())
}

/// A kernel with flows that stay, all of them confirmed; those that are opened while measuring are removed.
struct Opened<'w, F: PacketFamily> {
    kernel: &'w RefCell<Kernel>,
    keep: Rc<HashSet<FlowKey<F>>>,
}

impl<'w, F: PacketFamily> Opened<'w, F> {
    fn of(kernel: &'w RefCell<Kernel>) -> Result<Self> {
        let keep = Rc::new(kernel.borrow().flows::<F>()?.into_keys().collect());
        Ok(Self { kernel, keep })
    }

    /// Removes all flows that were not there before.
    fn clean(&self) -> Result<()> {
        self.kernel.borrow_mut().retain_flows::<F>(|key| self.keep.contains(key))
    }

    /// A case that opens a flow each time; counts the entries that this makes.
    fn new_flow(&self, table: Table, path: &Path, varied: Vec<Vary>) -> Result<Case<'w>> {
        const TRIED: u32 = 1000;
        let mut case = path.case::<F>(&self.kernel.borrow(), table, varied)?;
        self.clean()?;
        case.run(TRIED)?;
        let made = self.kernel.borrow().flows::<F>()?.len() - self.keep.len();
        case.sort = Sort::New { entries: made as f64 / f64::from(TRIED) };
        self.clean()?;
        let opened = Self { kernel: self.kernel, keep: Rc::clone(&self.keep) };
        let kernel = self.kernel;
        Ok(case
            .counted_by(move || kernel.borrow().counter(Counter::FlowNew))
            .cleaned_by(After::Call(Box::new(move || opened.clean()))))
    }
}
