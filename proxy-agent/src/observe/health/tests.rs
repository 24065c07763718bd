use super::*;

fn health() -> Health {
    // The last state of a source stays readable after the source is gone.
    Health::new(watch::channel(SourceState::default()).1, Duration::ZERO)
}

fn long_ago(health: &Health) {
    let since = Instant::now().checked_sub(STUCK_AFTER + Duration::from_secs(1));
    health.work().pending = Some(since.unwrap());
}

fn no_turn(health: &Health) {
    let since = Instant::now().checked_sub(STUCK_AFTER + Duration::from_secs(1));
    health.work().last_turn = since.unwrap();
}

#[test]
fn alive_while_the_loop_turns_and_only_then() {
    let health = health();
    assert!(health.live(Audience::Node).is_healthy());
    no_turn(&health);
    assert!(!health.live(Audience::Node).is_healthy());
    health.turns();
    long_ago(&health);
    health.failed(&anyhow::anyhow!("no room"));
    health.set_serves_outside(false);
    assert!(health.live(Audience::Node).is_healthy(), "a restart makes no room");
}

#[test]
fn changes_may_wait_for_the_configured_time() {
    let health = Health::new(watch::channel(SourceState::default()).1, Duration::from_secs(120));
    health.applied();
    long_ago(&health);
    assert_eq!(both(&health), (true, true));
}

#[test]
fn what_an_earlier_agent_left_serves() {
    let health = health();
    health.inherit();
    assert_eq!(both(&health), (true, true));
    health.set_serves_outside(false);
    assert_eq!(both(&health), (false, true));
    let json = serde_json::to_value(health.ready(Audience::Node)).unwrap();
    assert!(json["problems"][0].as_str().unwrap().contains("uplink"));
}

fn both(health: &Health) -> (bool, bool) {
    (health.ready(Audience::Node).is_healthy(), health.live(Audience::Node).is_healthy())
}

#[test]
fn ready_once_applied_and_not_when_stuck() {
    let health = health();
    assert_eq!(both(&health), (false, true), "not programmed yet, but a restart would not help");
    health.queued();
    health.applied();
    assert_eq!(both(&health), (true, true));
    health.set_failed_services(vec!["service default/web: no room".into()]);
    assert_eq!(both(&health), (true, true), "the others are served");
    health.failed(&anyhow::anyhow!("no room"));
    assert_eq!(both(&health), (true, true), "it may yet succeed");
    long_ago(&health);
    assert_eq!(both(&health), (false, true));
    health.failed(&anyhow::anyhow!("no room"));
    health.queued();
    assert_eq!(both(&health), (false, true), "a retry does not restart the clock");
    health.applied();
    assert_eq!(both(&health), (true, true));
}

#[test]
fn one_of_several_agents_is_ready() {
    let health = health();
    health.set_role(Role::Standby);
    assert_eq!(both(&health), (false, true), "a restart would not help");
    let json = serde_json::to_value(health.ready(Audience::Node)).unwrap();
    assert!(json["problems"][0].as_str().unwrap().starts_with("standing by"), "{json}");
    health.set_role(Role::Active);
    health.applied();
    assert_eq!(both(&health), (true, true));
    health.set_role(Role::Overtaken);
    assert_eq!(both(&health), (true, true), "the successor begins in a moment");
    long_ago(&health);
    no_turn(&health);
    assert_eq!(both(&health), (false, false), "it does not");
    health.set_role(Role::Retired);
    assert_eq!(both(&health), (false, true), "restarted, it would take over again");
}

#[test]
fn a_node_that_goes_is_not_ready_but_its_proxy_is_well() {
    let health = health();
    health.applied();
    health.set_node_eligible(false);
    assert_eq!(both(&health), (false, true));
    assert!(health.is_programmed());
    let json = serde_json::to_value(health.ready(Audience::Node)).unwrap();
    assert_eq!(json["nodeEligible"], false);
    assert_eq!(json["healthy"], false);
    assert_eq!(json["status"]["IPv6"]["healthy"], true, "the families are not to blame");
    assert!(json["problems"][0].as_str().unwrap().contains("Node object"));
    health.set_node_eligible(true);
    assert_eq!(both(&health), (true, true));
    long_ago(&health);
    assert!(!health.is_programmed());
}

#[test]
fn the_answer_has_kube_proxys_fields_and_the_problems() {
    let health = health();
    health.applied();
    let json = serde_json::to_value(health.ready(Audience::Node)).unwrap();
    assert_eq!(json["healthy"], true);
    assert_eq!(json["nodeEligible"], true);
    assert_eq!(json["status"]["IPv4"]["healthy"], true);
    assert!(json["lastUpdated"].as_str().unwrap().ends_with('Z'));
    assert_eq!(json.get("problems"), None);
    assert_eq!(serde_json::to_value(health.live(Audience::Node)).unwrap().get("nodeEligible"), None);

    health.failed(&anyhow::anyhow!("no room"));
    health.set_failed_services(vec!["service default/web: full".into()]);
    health.set_network(vec!["no interface has the address 192.0.2.7".into()]);
    health.set_failed_hooks(vec!["uplink_ingress at eth9: no such device".into()]);
    health.set_failed_service_health(vec!["port taken".into()]);
    health.set_drops(vec!["3 packets were dropped".into()]);
    let json = serde_json::to_value(health.ready(Audience::Node)).unwrap();
    let expected = serde_json::json!([
        "cannot apply changes: no room",
        "service default/web: full",
        "no interface has the address 192.0.2.7",
        "uplink_ingress at eth9: no such device",
        "port taken",
        "3 packets were dropped"
    ]);
    assert_eq!(json["problems"], expected);
}
