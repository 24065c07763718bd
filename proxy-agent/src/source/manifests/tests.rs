use std::{fs, os::unix::fs::symlink, path::Path};

use tempfile::TempDir;
use tokio::time::{Instant, timeout_at};

use super::*;
use crate::model::{objects::ObjectName, store::Store};

const NODE: &str = "n1";

/// A source that follows a folder, and the store it feeds.
struct Follower {
    changes: mpsc::Receiver<Change>,
    state: watch::Receiver<SourceState>,
    store: Store,
    cancel: CancellationToken,
}

impl Follower {
    fn start(path: &Path) -> Self {
        let (sender, changes) = mpsc::channel(16);
        let (state_sender, state) = watch::channel(SourceState::default());
        let cancel = CancellationToken::new();
        tokio::spawn(run(path.to_owned(), NODE.to_owned(), sender, state_sender, cancel.clone()));
        Self { changes, state, store: Store::new(), cancel }
    }

    /// Takes in changes until the condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Store) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition(&self.store) {
            let change = timeout_at(deadline, self.changes.recv()).await;
            self.store.apply(change.unwrap_or_else(|_| panic!("{what}: not in time")).expect(what));
        }
    }

    /// Waits until the cluster IPs of the Services are these.
    async fn until_served(&mut self, expected: &[(&str, &str)]) {
        let what = format!("{expected:?}");
        self.until(&what, |store| store.is_complete() && served(store) == *expected).await;
    }

    async fn until_state(&mut self, what: &str, mut condition: impl FnMut(&SourceState) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        timeout_at(deadline, self.state.wait_for(|state| condition(state))).await.expect(what).unwrap();
    }

    async fn until_trouble(&mut self, part: &str) {
        self.until_state(part, |state| state.trouble().is_some_and(|t| t.message.contains(part))).await;
    }

    async fn until_well(&mut self) {
        self.until_state("well", |state| state.is_synced() && state.trouble().is_none()).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn served(store: &Store) -> Vec<(&str, &str)> {
    let mut served: Vec<_> =
        store.all_services().map(|service| (&*service.name.name, last_octet(service))).collect();
    served.sort_unstable();
    served
}

fn last_octet(service: &crate::model::objects::Service) -> &'static str {
    let address = service.cluster_ips[0].to_string();
    ["1", "2", "3"].into_iter().find(|last| address.ends_with(&format!(".{last}"))).unwrap()
}

/// A Service whose cluster IP ends in `last`.
fn service(name: &str, last: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.{last}, ports: [{{port: 80}}]}}\n"
    )
}

fn folder(files: &[(&str, String)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[tokio::test]
async fn the_first_reading_is_complete_lists_and_then_come_differences() {
    let dir =
        folder(&[("b.yaml", service("b", "1")), ("a.yml", service("a", "1")), ("notes.txt", "?".into())]);
    let mut follower = Follower::start(dir.path());
    let mut first = Vec::new();
    for _ in 0..8 {
        first.push(follower.changes.recv().await.unwrap());
    }
    let shape: Vec<_> =
        first.iter().map(|change| format!("{change:?}").split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(
        shape,
        [
            "ListStart(ServiceCidr)",
            "ListDone(ServiceCidr)",
            "ListStart(Service)",
            "Service(Service",
            "Service(Service",
            "ListDone(Service)",
            "ListStart(EndpointSlice)",
            "ListDone(EndpointSlice)"
        ]
    );
    first.into_iter().for_each(|change| follower.store.apply(change));
    follower.until_well().await;

    fs::write(dir.path().join("b.yaml"), service("b", "2")).unwrap();
    let change = follower.changes.recv().await.unwrap();
    assert!(
        matches!(&change, Change::Service(service) if *service.name.name == *"b"),
        "only the difference: {change:?}"
    );
    follower.store.apply(change);
    fs::remove_file(dir.path().join("a.yml")).unwrap();
    assert_eq!(follower.changes.recv().await.unwrap(), Change::ServiceGone(ObjectName::new("default", "a")));
}

#[tokio::test]
async fn every_way_to_change_a_file_is_seen() {
    let dir = folder(&[("a.yaml", service("a", "1"))]);
    let path = |name: &str| dir.path().join(name);
    let mut follower = Follower::start(dir.path());
    follower.until_served(&[("a", "1")]).await;

    fs::write(path("a.yaml"), service("a", "2")).unwrap();
    follower.until_served(&[("a", "2")]).await;

    // Editors: write a copy, keep the old one as a backup, rename the copy.
    fs::write(path(".a.yaml.swp"), service("a", "3")).unwrap();
    fs::rename(path("a.yaml"), path("a.yaml~")).unwrap();
    fs::rename(path(".a.yaml.swp"), path("a.yaml")).unwrap();
    follower.until_served(&[("a", "3")]).await;

    fs::rename(path("a.yaml"), path("z.yaml")).unwrap();
    fs::write(
        path("b.json"),
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"b"},"spec":{"clusterIP":"10.0.0.1"}}"#,
    )
    .unwrap();
    follower.until_served(&[("a", "3"), ("b", "1")]).await;

    fs::remove_file(path("z.yaml")).unwrap();
    follower.until_served(&[("b", "1")]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_exchanged_as_a_whole() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let version = |name: &str, last: &str| {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("web.yaml"), service("web", last)).unwrap();
    };
    version("..1", "1");
    symlink("..1", path("..data")).unwrap();
    symlink("..data/web.yaml", path("web.yaml")).unwrap();
    let mut follower = Follower::start(dir.path());
    follower.until_served(&[("web", "1")]).await;

    version("..2", "2");
    symlink("..2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    fs::remove_dir_all(path("..1")).unwrap();
    follower.until_served(&[("web", "2")]).await;
    follower.until_well().await;
}

#[tokio::test]
async fn a_change_behind_a_link_is_found_without_an_event() {
    let elsewhere = folder(&[("web.yaml", service("web", "1"))]);
    let dir = TempDir::new().unwrap();
    symlink(elsewhere.path().join("web.yaml"), dir.path().join("web.yaml")).unwrap();
    let mut follower = Follower::start(dir.path());
    follower.until_served(&[("web", "1")]).await;
    fs::write(elsewhere.path().join("web.yaml"), service("web", "2") + "# longer").unwrap();
    follower.until_served(&[("web", "2")]).await;
}

#[tokio::test]
async fn a_broken_document_keeps_its_last_good_state_and_the_rest_works() {
    let both = service("a", "1") + &service("b", "1");
    let dir = folder(&[("ab.yaml", both), ("c.yaml", service("c", "1"))]);
    let path = |name: &str| dir.path().join(name);
    let mut follower = Follower::start(dir.path());
    follower.until_served(&[("a", "1"), ("b", "1"), ("c", "1")]).await;

    // `a` can be read and changes; `b` cannot and stays; other files go on.
    fs::write(path("ab.yaml"), service("a", "2") + "---\nkind: Service\nmetadata: {name: b\n").unwrap();
    follower.until_served(&[("a", "2"), ("b", "1"), ("c", "1")]).await;
    follower.until_trouble("ab.yaml:8:").await;
    fs::write(path("c.yaml"), service("c", "2")).unwrap();
    follower.until_served(&[("a", "2"), ("b", "1"), ("c", "2")]).await;

    // A definition in another file counts more than a kept one.
    fs::write(path("d.yaml"), service("b", "3")).unwrap();
    follower.until_served(&[("a", "2"), ("b", "3"), ("c", "2")]).await;
    fs::write(path("ab.yaml"), service("a", "3")).unwrap();
    follower.until_served(&[("a", "3"), ("b", "3"), ("c", "2")]).await;
    follower.until_well().await;

    fs::remove_file(path("ab.yaml")).unwrap();
    follower.until_served(&[("b", "3"), ("c", "2")]).await;
}

#[tokio::test]
async fn a_broken_file_at_the_start_does_not_hold_up_the_others() {
    let dir = folder(&[("a.yaml", "{".into()), ("b.yaml", service("b", "1"))]);
    fs::write(dir.path().join("binary.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let mut follower = Follower::start(dir.path());
    follower.until_served(&[("b", "1")]).await;
    follower.until_trouble("a.yaml:").await;
}

#[tokio::test]
async fn of_two_definitions_the_first_file_wins() {
    let dir = folder(&[("1.yaml", service("a", "1")), ("2.yaml", service("a", "2"))]);
    let mut follower = Follower::start(dir.path());
    follower.until_served(&[("a", "1")]).await;
    follower.until_trouble("2.yaml:2: Service default/a is ignored: it is already in").await;
    fs::remove_file(dir.path().join("1.yaml")).unwrap();
    follower.until_served(&[("a", "2")]).await;
    follower.until_well().await;
}

/// The control plane mirrors Endpoints only if no other controller makes EndpointSlices; here only the agent mirrors them.
#[tokio::test]
async fn endpoints_serve_where_there_are_no_slices() {
    let endpoints = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\nsubsets: [{{addresses: [{{ip: {ip}}}], ports: [{{port: 8080}}]}}]\n"
        )
    };
    let slice = |service: &str, ip: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [{ip}]}}]\n"
        )
    };
    let dir = folder(&[
        ("a.yaml", service("a", "1") + "---\n" + &endpoints("a", "10.1.0.1")),
        ("b.yaml", service("b", "2") + "---\n" + &endpoints("b", "10.1.0.2")),
        ("bs.yaml", slice("b", "10.1.0.3")),
        ("twice.yaml", endpoints("a", "10.1.0.9")),
    ]);
    let path = |name: &str| dir.path().join(name);
    let served = |store: &Store, service: &str| -> Vec<String> {
        let service = ObjectName::new("default", service);
        let slices = store.slices(&service);
        slices.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address.to_string()).collect()
    };
    let mut follower = Follower::start(dir.path());
    follower
        .until("both", |store| {
            store.is_complete() && served(store, "a") == ["10.1.0.1"] && served(store, "b") == ["10.1.0.3"]
        })
        .await;
    follower.until_trouble("twice.yaml:1: Endpoints default/a is ignored: it is already in").await;

    fs::remove_file(path("twice.yaml")).unwrap();
    fs::remove_file(path("bs.yaml")).unwrap();
    follower.until("the slice goes", |store| served(store, "b") == ["10.1.0.2"]).await;
    follower.until_well().await;
    fs::write(path("bs.yaml"), slice("b", "10.1.0.4")).unwrap();
    follower.until("the slice comes", |store| served(store, "b") == ["10.1.0.4"]).await;
    fs::write(path("a.yaml"), service("a", "1")).unwrap();
    follower.until("the endpoints go", |store| served(store, "a").is_empty()).await;
}

#[test]
fn ignored_parts_are_reported_once() {
    let dir = folder(&[
        (
            "a.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n".to_owned() + &service("a", "1"),
        ),
        ("b.yaml", service("b", "2").replace("spec: {", "spec: {port: 80, ")),
    ]);
    let mut folder = Folder::new(dir.path().to_owned(), NODE.to_owned());
    let mut read = |touched: Touched| -> Vec<String> {
        let Reading { new_notices, new_problems, worst, .. } = folder.read(&touched);
        assert_eq!((new_problems, worst), (vec![], None), "it is not a problem");
        new_notices
            .into_iter()
            .map(|notice| notice.text.replace(&dir.path().display().to_string(), ""))
            .collect()
    };
    let first = [
        "/a.yaml:1: Deployment d is ignored: a service proxy does not use its kind",
        "/b.yaml:2: unknown field `spec.port` is ignored",
    ];
    assert_eq!(read(Touched::default()), first);
    assert_eq!(read(Touched::default()), [""; 0]);
    fs::write(dir.path().join("c.yaml"), "{kind: Pod, apiVersion: v1, metadata: {name: p}}").unwrap();
    let mut touched = Touched::default();
    touched.touch_all();
    assert_eq!(read(touched), ["/c.yaml:1: Pod p is ignored: a service proxy does not use its kind"]);

    let pods = "---\n{kind: Pod, apiVersion: v1, metadata: {name: p}}\n".repeat(1000);
    fs::write(dir.path().join("d.yaml"), pods + &service("d", "3").replace("spec: {", "spec: {prot: 1, "))
        .unwrap();
    let mut touched = Touched::default();
    touched.touch_all();
    let notices = read(touched);
    assert_eq!(notices.len(), 51);
    for expected in
        ["/d.yaml: 951 more parts are ignored", "/d.yaml:2002: unknown field `spec.prot` is ignored"]
    {
        assert!(notices.iter().any(|notice| notice == expected), "{expected}: {notices:?}");
    }
}

#[tokio::test]
async fn an_object_with_a_wrong_part_works_and_is_reported() {
    let dir = folder(&[("a.yaml", service("a", "1").replace("port: 80", "port: 80000"))]);
    let mut follower = Follower::start(dir.path());
    follower.until_served(&[("a", "1")]).await;
    follower.until_trouble("a.yaml:2: Service default/a: port 80000").await;
}

#[tokio::test]
async fn the_folder_may_come_late_go_away_and_come_back() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("not/yet");
    let mut follower = Follower::start(&dir);
    follower.until_trouble("cannot read the folder").await;
    assert!(!follower.state.borrow().is_synced());
    assert!(follower.changes.try_recv().is_err(), "no folder is not an empty list");

    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", "1")).unwrap();
    follower.until_served(&[("a", "1")]).await;
    follower.until_well().await;

    fs::remove_dir_all(&dir).unwrap();
    follower.until_trouble("everything stays as it was").await;
    // A half removed folder may have been seen on the way; a removed one changes nothing more.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", "2")).unwrap();
    follower.until_served(&[("a", "2")]).await;
    follower.until_well().await;
    fs::write(dir.join("a.yaml"), service("a", "3")).unwrap();
    follower.until_served(&[("a", "3")]).await;
}

#[tokio::test]
async fn this_node_and_service_cidrs_are_followed_too() {
    let node = |name: &str, zone: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    let cidr = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: a}\nspec: {cidrs: [10.0.0.0/24]}\n";
    let dir = folder(&[("n1.yaml", node("n1", "a")), ("n2.yaml", node("n2", "b")), ("c.yaml", cidr.into())]);
    let mut follower = Follower::start(dir.path());
    let zone = |store: &Store| store.node().and_then(|node| node.zone.clone());
    follower.until("the zone", |store| zone(store).as_deref() == Some("a")).await;
    follower.until("the range", |store| store.is_complete() && store.service_cidrs().len() == 1).await;
    fs::write(dir.path().join("n1.yaml"), node("n1", "c")).unwrap();
    follower.until("another zone", |store| zone(store).as_deref() == Some("c")).await;
    fs::remove_file(dir.path().join("n1.yaml")).unwrap();
    fs::remove_file(dir.path().join("c.yaml")).unwrap();
    follower.until("all gone", |store| store.node_is_gone() && store.service_cidrs().is_empty()).await;

    let twice = [("a.yaml", node("n1", "a")), ("b.yaml", node("n1", "b")), ("c.yaml", cidr.into())];
    let dir = folder(&[twice.as_slice(), &[("d.yaml", cidr.into())]].concat());
    let mut follower = Follower::start(dir.path());
    follower.until_trouble("b.yaml:1: the Node is ignored: it is already in").await;
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    follower.until_trouble("d.yaml:1: ServiceCIDR a is ignored: it is already in").await;
    follower.until("the first", |store| zone(store).as_deref() == Some("a")).await;
}
