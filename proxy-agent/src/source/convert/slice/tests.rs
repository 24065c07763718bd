use std::{net::IpAddr, time::Duration};

use serde_json::{Value, json};

use super::*;
use crate::model::objects::Protocol;

/// A slice of `web` with these fields changed.
fn slice(changes: Value) -> Converted {
    let mut value = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
        "addressType": "IPv4",
    });
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    endpoint_slice(&serde_json::from_value(value).unwrap())
}

#[test]
fn a_slice_is_converted_with_the_defaults_of_its_conditions() {
    let converted = slice(json!({
        "ports": [
            {"name": "http", "port": 8080}, {"name": "", "protocol": "UDP", "port": 53},
            {"port": 1}, {"name": null, "port": 2}, {"name": "none"}, {"name": "zero", "port": 0},
        ],
        "endpoints": [
            {"addresses": ["10.1.0.1", "10.1.0.9"], "nodeName": "n1"},
            {"addresses": ["10.1.0.002"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.1.0.3"], "conditions": null},
            {"addresses": ["10.1.0.4"], "conditions": {"ready": null, "serving": false}, "hints": null,
             "zone": "z", "hostname": "h", "targetRef": {"kind": "Pod"}, "deprecatedTopology": {"a": "b"}},
        ],
    }));
    assert_eq!(converted.problems, [""; 0]);
    let endpoint = |last, node: Option<&str>, ready, serving, terminating| Endpoint {
        address: IpAddr::from([10, 1, 0, last]),
        node: node.map(Into::into),
        ready,
        serving,
        terminating,
        hints: Hints::default(),
    };
    assert_eq!(
        converted.change,
        Change::EndpointSlice(EndpointSlice {
            name: ObjectName::new("shop", "web-1"),
            service: ObjectName::new("shop", "web"),
            ipv6: false,
            ports: vec![
                SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 },
                SlicePort { name: "".into(), protocol: Protocol::Udp, port: 53 },
                SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 1 },
                SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 2 },
            ],
            endpoints: vec![
                endpoint(1, Some("n1"), true, true, false),
                endpoint(2, None, false, true, true),
                endpoint(3, None, true, true, false),
                endpoint(4, None, true, false, false),
            ],
            ..EndpointSlice::default()
        })
    );
}

#[test]
fn slices_that_are_not_ours_are_gone() {
    let labels =
        |labels: Value| json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": labels}});
    let cases = [
        ("no service", slice(labels(json!({}))), 0),
        ("no labels", slice(labels(Value::Null)), 0),
        ("headless", slice(labels(json!({SERVICE_NAME: "web", HEADLESS: ""}))), 0),
        ("host names", slice(json!({"addressType": "FQDN"})), 0),
        ("nonsense", slice(json!({"addressType": "IPX"})), 1),
    ];
    for (what, converted, problems) in cases {
        assert_eq!(converted.change, Change::EndpointSliceGone(ObjectName::new("shop", "web-1")), "{what}");
        assert_eq!(converted.problems.len(), problems, "{what}");
    }
}

#[test]
fn wrong_endpoints_are_dropped_alone() {
    let converted = slice(json!({"ports": null, "endpoints": [
        {"addresses": ["10.1.0.1"]}, {"addresses": ["fd00::1"]}, {"addresses": ["pod"]}, {"addresses": null},
    ]}));
    assert_eq!(converted.problems.len(), 3, "{:?}", converted.problems);
    let Change::EndpointSlice(slice) = converted.change else { panic!() };
    assert_eq!(slice.endpoints.len(), 1);
}

#[test]
fn hints_name_zones_and_nodes() {
    let converted = slice(json!({"endpoints": [
        {"addresses": ["10.1.0.1"], "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": null}},
        {"addresses": ["10.1.0.2"], "hints": {"forNodes": [{"name": "n1"}]}},
        {"addresses": ["10.1.0.3"], "hints": {}},
    ]}));
    let Change::EndpointSlice(slice) = converted.change else { panic!() };
    let found: Vec<_> = slice.endpoints.into_iter().map(|endpoint| endpoint.hints).collect();
    let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
    let expected = [
        Hints::new(names(&["a", "b"]), names(&[])),
        Hints::new(names(&[]), names(&["n1"])),
        Hints::default(),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_time_of_the_last_change_is_in_an_annotation() {
    let after = |seconds, nanos| Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
    let cases = [
        (json!({"annotations": {LAST_CHANGE: "2024-05-06T07:08:09Z"}}), after(1_714_979_289, 0), 0),
        (
            json!({"annotations": {LAST_CHANGE: "2024-05-06T09:08:09.5+02:00"}}),
            after(1_714_979_289, 500_000_000),
            0,
        ),
        (json!({"annotations": {LAST_CHANGE: "yesterday"}}), None, 1),
        (json!({"annotations": {"other": "2024-05-06T07:08:09Z"}}), None, 0),
        (json!({"annotations": null}), None, 0),
        (json!({}), None, 0),
    ];
    for (mut metadata, expected, problems) in cases {
        metadata["name"] = "web-1".into();
        metadata["labels"] = json!({SERVICE_NAME: "web"});
        let converted = slice(json!({"metadata": metadata}));
        assert_eq!(converted.problems.len(), problems, "{metadata}: {:?}", converted.problems);
        let Change::EndpointSlice(slice) = converted.change else { panic!() };
        assert_eq!(slice.triggered, expected, "{metadata}");
    }
}

#[test]
fn of_annotations_and_managed_fields_nothing_else_is_kept() {
    let trimmed: TrimmedEndpointSlice = serde_json::from_value(json!({"metadata": {
        "name": "a", "annotations": {LAST_CHANGE: "t", "other": "x"}, "managedFields": [{"manager": "m"}],
    }}))
    .unwrap();
    let kept = trimmed.metadata.annotations.unwrap();
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [(LAST_CHANGE.to_owned(), "t".to_owned())]);
    assert_eq!(trimmed.metadata.managed_fields, None);
}
