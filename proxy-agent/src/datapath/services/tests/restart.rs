//! An agent takes over another one's state.

use super::*;

fn plans() -> Vec<PortPlan> {
    let address = Frontend::ClusterAddress("10.96.0.1".parse().unwrap());
    let mut web = port(
        "web",
        Protocol::Tcp,
        &[
            Frontend::ClusterIp(at("10.96.0.1:80")),
            address,
            Frontend::NodePort(30_080),
            Frontend::ExternalIp(at("192.0.2.7:80")),
            Frontend::LoadBalancer(at("198.51.100.1:80")),
        ],
    );
    web.internal = endpoints("");
    web.external = endpoints("2");
    web.serving = endpoints("1234");
    web.affinity = Some(Duration::from_secs(10_800));
    web.sources = nets(&["10.0.0.0/8", "192.0.2.0/24"]);
    let mut v6 = port("web", Protocol::Tcp, &[]);
    v6.name.family = IpFamily::V6;
    v6.frontends = vec![Frontend::LoadBalancer(at("[2001:db8::1]:80"))];
    v6.sources = nets(&["2001:db8:1::/48"]);
    for list in [&mut v6.internal, &mut v6.external, &mut v6.cluster, &mut v6.serving] {
        *list = [at("[fd00::1]:8080")].into();
    }
    let sctp = port("web", Protocol::Sctp, &[Frontend::ClusterIp(at("10.96.0.1:80")), address]);
    let mut nobody = port("nobody", Protocol::Udp, &[Frontend::LoadBalancer(at("198.51.100.2:53"))]);
    nobody.sources = nets(&[]);
    for list in [&mut nobody.internal, &mut nobody.external, &mut nobody.cluster, &mut nobody.serving] {
        *list = endpoints("");
    }
    let bare = port("bare", Protocol::Tcp, &[]);
    vec![web, v6, sctp, nobody, bare]
}

/// All words of sets and alive.
fn words(node: &Node) -> Vec<u64> {
    let shared = &node.services.shared;
    let sets = (0..shared.sets.len()).filter_map(|i| shared.sets.read(i).map(|set| set.0));
    sets.chain((0..shared.alive.len()).filter_map(|i| shared.alive.read(i).map(|alive| alive.0))).collect()
}

#[test]
fn nothing_is_written_that_does_not_differ() {
    let mut node = Node::new();
    let plans = plans();
    for plan in &plans {
        node.apply(plan);
    }
    let (writes, words_before) = (node.writes(), words(&node));
    let usage = node.services.usage();
    let mut node = node.restart();
    for plan in plans.iter().rev() {
        node.apply(plan);
    }
    assert_eq!((node.writes(), words(&node)), (writes, words_before));
    assert!(node.services.take_quarantine().is_empty() && node.services.take_dead().is_empty());
    let now = node.services.usage();
    assert_eq!(
        (now.service_ports, now.backends, now.slots, now.frontends),
        (usage.service_ports, usage.backends, usage.slots, usage.frontends)
    );
    // The whole cluster's worth comes out again.
    for plan in &plans {
        node.services.remove(&plan.name).unwrap();
    }
    assert!(node.frontends.entries().unwrap().is_empty() && node.sources.entries().unwrap().is_empty());
    assert!(node.sources_v6.entries().unwrap().is_empty() && node.names.entries().unwrap().is_empty());
    assert!(words(&node).iter().all(|word| *word == 0));
}

#[test]
fn what_changed_meanwhile_is_seen() {
    let mut node = Node::new();
    let mut web = plans().remove(0);
    node.apply(&web);
    let mut node = node.restart();
    let ids = |addresses: &str| -> Vec<Id> {
        let backends = &node.services.ports[&web.name].backends;
        endpoints(addresses).iter().map(|endpoint| backends.get(endpoint).unwrap().id).collect()
    };
    let left = ids("34");
    web.affinity = None;
    web.sources = nets(&["10.0.0.0/8"]);
    web.internal = endpoints("1");
    web.serving = endpoints("12");
    web.frontends.retain(|frontend| !matches!(frontend, Frontend::ExternalIp(_)));
    node.apply(&web);
    assert_eq!(node.all_offered(&web), "1|2|12|12");
    assert_eq!(node.affinity(&web), 0);
    assert!(!node.is_allowed(&web, "192.0.2.0/24") && node.is_allowed(&web, "10.0.0.0/8"));
    assert_eq!(node.frontend("192.0.2.7:80", Protocol::Tcp), None);
    let mut dead: Vec<Id> = node.services.take_dead().into_iter().map(|(_, id)| id).collect();
    dead.sort();
    assert_eq!(dead, left);
}

/// Killed between two writes: names, frontends, ranges, backends and bits without an owner.
#[test]
fn traces_of_an_agent_that_was_killed_go() {
    let mut node = Node::new();
    let web = plans().remove(0);
    node.apply(&web);
    let unknown_id = Id::new(9, 3);
    let key = FrontendKey::<V4>::new(7, 80u16.to_be(), 6);
    Table::insert(&mut node.frontends, key, FrontendValue::new(key, Target::new(unknown_id, 0).unwrap()))
        .unwrap();
    Table::insert(&mut node.sources, (40, SourceRange { service: unknown_id, addr: 10 }), 1).unwrap();
    let alive = &node.services.shared.alive;
    alive.half(40).unwrap().store(0x0103, Ordering::Relaxed);
    let member = node.services.ports[&web.name].backends.get(&endpoints("2")[0]).unwrap();
    // It left a set that its record still names, or joined one that its record does not name.
    alive
        .half(member.id.index())
        .unwrap()
        .store(BackendState::entry(member.id, SetPolicy::ClusterIp.bit()), Ordering::Relaxed);
    let node = node.restart();
    assert_eq!(node.frontends.get(&key), None);
    assert!(node.is_allowed(&web, "10.0.0.0/8"));
    assert_eq!(node.sources.entries().unwrap().len(), 2);
    let alive = &node.services.shared.alive;
    assert_eq!(alive.half(40).unwrap().load(Ordering::Relaxed), 0);
    assert_eq!(node.all_offered(&web), "|2|12|1234");
}

fn ids(node: &Node, plan: &PortPlan) -> Vec<(SocketAddr, Id)> {
    node.services.ports[&plan.name].backends.iter().map(|(endpoint, member)| (*endpoint, member.id)).collect()
}

#[test]
fn another_release_gives_the_same_ids() {
    let mut node = Node::new();
    let plans = plans();
    // Not those that are given first.
    let gone = port("gone", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.99:80"))]);
    node.apply(&gone);
    for plan in &plans {
        node.apply(plan);
    }
    node.services.remove(&gone.name).unwrap();
    let before: Vec<_> = plans.iter().map(|plan| (node.id(plan), ids(&node, plan))).collect();
    let mut node = node.with_other_layouts();
    assert!(before.iter().flat_map(|(_, ids)| ids).all(|(_, id)| node.services.is_served(*id)), "flows stay");
    // In another order.
    for plan in plans.iter().rev() {
        node.apply(plan);
    }
    let after: Vec<_> = plans.iter().map(|plan| (node.id(plan), ids(&node, plan))).collect();
    assert_eq!(after, before);
    assert_eq!(node.all_offered(&plans[0]), "|2|12|1234");
    assert!(node.may_be_frontend("10.96.0.99:80"), "connections to a frontend that went live on");
    assert!(node.services.take_dead().is_empty());
    // And back.
    let mut node = node.with_other_layouts();
    for plan in &plans {
        node.apply(plan);
    }
    let after: Vec<_> = plans.iter().map(|plan| (node.id(plan), ids(&node, plan))).collect();
    assert_eq!(after, before);
}

#[test]
fn what_changed_while_releases_did_is_seen() {
    let mut node = Node::new();
    let mut web = plans().remove(0);
    node.apply(&web);
    let left = ids(&node, &web)[2..].to_vec();
    let mut node = node.with_other_layouts();
    // Endpoints go, with sets that are as empty as those of new maps.
    for list in [&mut web.internal, &mut web.external, &mut web.cluster, &mut web.serving] {
        *list = endpoints("");
    }
    let mut some = web.clone();
    for list in [&mut some.external, &mut some.cluster, &mut some.serving] {
        *list = endpoints("12");
    }
    node.apply(&some);
    let dead: Vec<Id> = node.services.take_dead().into_iter().map(|(_, id)| id).collect();
    assert_eq!(dead, left.iter().map(|(_, id)| *id).collect::<Vec<_>>());
    let mut node = node.with_other_layouts();
    node.apply(&web);
    assert_eq!((node.services.take_dead().len(), node.services.usage().backends), (2, 2));
    assert!(ids(&node, &web).is_empty());
    let node = node.with_other_layouts();
    assert!(ids(&node, &web).is_empty());
}

/// Killed between noting an endpoint and publishing it, or in the middle of noting it.
#[test]
fn notes_of_an_agent_that_was_killed_go() {
    let mut node = Node::new();
    let web = plans().remove(0);
    node.apply(&web);
    let (service, before) = (node.id(&web), ids(&node, &web));
    let note = |node: &Node, index: u32, record| assert!(node.services.shared.records.write(index, record));
    note(&node, 40, records::of(service, at("10.244.0.40:80"), Id::new(40, 9)));
    note(&node, 41, records::of(Id::new(12, 1), at("10.244.0.41:80"), Id::new(41, 9)));
    note(&node, 42, records::of(service, at("10.244.0.42:80"), Id::new(43, 9)));
    // Lost: the set knows better.
    note(&node, before[0].1.index(), BackendId::default());
    let mut node = node.restart();
    node.apply(&web);
    assert_eq!(ids(&node, &web), before);
    let noted: Vec<Id> = records::noted(&node.services.shared.records, 64).map(|record| record.id).collect();
    let known: Vec<Id> = before.iter().map(|(_, id)| *id).collect();
    assert_eq!(noted, known);
}

#[test]
fn connections_to_frontends_that_went_while_no_agent_ran_live_on() {
    let mut node = Node::new();
    let plan = port("web", Protocol::Tcp, &[Frontend::ExternalIp(at("192.0.2.7:80"))]);
    node.apply(&plan);
    node.services.remove(&plan.name).unwrap();
    let mut node = node.restart();
    let start = Instant::now();
    node.services.release_stale_filter_bits();
    node.services.expire_filter_bits(start);
    assert!(node.may_be_frontend("192.0.2.7:80"));
    node.services.expire_filter_bits(start + HOUR);
    assert!(!node.may_be_frontend("192.0.2.7:80"));
}

#[test]
fn ports_with_the_longest_names_stay_apart() {
    let mut node = Node::new();
    let label = |end: char| format!("{}{end}", "n".repeat(62));
    let of = |end: char| {
        let mut plan =
            port("web", Protocol::Tcp, &[Frontend::ClusterIp(at(&format!("10.96.0.1:{}", end as u16)))]);
        plan.name.service = ObjectName::new(&label('n'), &label('s'));
        plan.name.port = label(end).into();
        plan
    };
    let (a, b) = (of('a'), of('b'));
    node.apply(&a);
    node.apply(&b);
    let ids = [node.id(&a), node.id(&b)];
    let node = node.restart();
    assert_eq!([node.id(&a), node.id(&b)], ids);
}
