use super::*;
use crate::model::objects::Change;

const NODE: &str = "n1";

fn names(parsed: &Parsed) -> Vec<String> {
    let name = |content: &Content| match content {
        Content::Change(Change::Service(service)) => format!("service {}", service.name),
        Content::Change(Change::EndpointSlice(slice)) => format!("slice {}", slice.name),
        Content::Change(Change::Node(node)) => format!("node of zone {:?}", node.zone),
        Content::Change(Change::ServiceCidr(cidr)) => format!("cidr {} {:?}", cidr.name.name, cidr.cidrs),
        Content::Change(other) => format!("{other:?}"),
        Content::Endpoints(mirrored) => {
            format!("endpoints {} in {}", mirrored.service, mirrored.slices.len())
        }
    };
    parsed.objects.iter().map(|object| format!("{}:{}", object.line, name(&object.content))).collect()
}

fn ignored(parsed: &Parsed) -> Vec<String> {
    parsed.ignored.iter().map(|notice| format!("{}:{}", notice.line, notice.what)).collect()
}

fn problems(parsed: &Parsed) -> Vec<String> {
    parsed.problems.iter().map(|Problem { line, column, what }| format!("{line}:{column}: {what}")).collect()
}

const GOOD: &str = "\
# the shop
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.0.0.1
  ports: [{port: 80, targetPort: http}]
--- # its pods
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints: [{addresses: [10.1.0.1]}]
---

---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
# nothing
...
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: not-ours}
";

#[test]
fn a_file_may_hold_several_documents_of_all_kinds() {
    let parsed = parse(GOOD, Format::Yaml, NODE);
    assert_eq!(names(&parsed), ["2:service shop/web", "9:slice default/web-1"]);
    assert_eq!(parsed.problems, []);
    assert_eq!(
        ignored(&parsed),
        [
            "15:an empty document is ignored",
            "18:Deployment web is ignored: a service proxy does not use its kind",
            "25:Service not-ours is ignored: a service proxy does not use its kind",
        ]
    );

    for text in ["", "\n# nothing\n", "---\n", "%YAML 1.2\n---\n"] {
        let parsed = parse(text, Format::Yaml, NODE);
        assert!(parsed.objects.is_empty() && parsed.problems.is_empty(), "{text:?}: {parsed:?}");
    }
    let windows = GOOD.replace('\n', "\r\n");
    assert_eq!(names(&parse(&windows, Format::Yaml, NODE)).len(), 2);
}

#[test]
fn lists_are_taken_apart() {
    let yaml = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: a}
  spec: {clusterIP: 10.0.0.1}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}
- apiVersion: v1
  kind: Service
  metadata: {name: b}
  spec: {clusterIP: 10.0.0.2, ports: [{port: eighty}]}
- apiVersion: v1
  kind: Service
  metadata: {name: d}
  spec: {clusterIP: 10.0.0.3}
";
    let parsed = parse(yaml, Format::Yaml, NODE);
    assert_eq!(names(&parsed), ["5:service default/a", "14:service default/d"]);
    assert_eq!(problems(&parsed), ["10:1: items[2]: invalid type: string \"eighty\", expected i64"]);

    let json = r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [
	{"metadata": {"name": "a", "namespace": "x"}, "spec": {"clusterIP": "10.0.0.1"}}]}"#;
    assert_eq!(names(&parse(json, Format::Json, NODE)), ["2:service x/a"]);
}

const SERVICE: &str =
    r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"NAME"},"spec":{"clusterIP":"10.0.0.1"}}"#;

fn service(name: &str) -> String {
    SERVICE.replace("NAME", name)
}

/// kubectl looks at the content, not at the file's name.
#[test]
fn everything_that_kubectl_takes_is_taken() {
    let (a, b, c) = (service("a"), service("b"), service("c"));
    let yaml = |name| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.1}}\n")
    };
    let (x, y) = (yaml("x"), yaml("y"));
    let list =
        |items: &[&str]| format!(r#"{{"apiVersion":"v1","kind":"List","items":[{}]}}"#, items.join(",\n"));
    let yaml_list = "apiVersion: v1\nkind: List\nitems:\n";
    let cases: &[(&str, String, &[&str])] = &[
        ("JSON, one after the other", format!("{a}\n{b}{c}\n\n"), &["1:a", "2:b", "2:c"]),
        ("JSON between separators", format!("---\n{a}\n---\n{b}\n{c}\n---\n"), &["2:a", "4:b", "5:c"]),
        ("JSON and YAML", format!("{a}\n---\n{x}---\n{b}"), &["1:a", "3:x", "8:b"]),
        ("a mark at the start", format!("\u{feff}{x}"), &["1:x"]),
        ("a mark and a separator", format!("\u{feff}---\n{x}"), &["2:x"]),
        ("a mark after a separator", format!("{x}---\n\u{feff}{y}"), &["1:x", "6:y"]),
        ("a mark before a separator", format!("\u{feff}{x}\u{feff}---\n{y}"), &["1:x", "6:y"]),
        ("marks in JSON", format!("\u{feff}{a}\n\u{feff}{b}\u{feff}{c}"), &["1:a", "2:b", "2:c"]),
        (
            "YAML in flow style",
            "{apiVersion: v1, kind: Service, metadata: {name: f}, spec: {}} # .\n".into(),
            &["1:f"],
        ),
        ("JSON with a comment is YAML", format!("{a}\n# the end\n"), &["1:a"]),
        ("a list in a list", list(&[&a, &list(&[&b, &list(&[&c])])]), &["1:a", "2:b", "3:c"]),
        (
            "a list in a list, YAML",
            format!("{yaml_list}- {a}\n- {}\n", list(&[&b, &list(&[&c])]).replace('\n', " ")),
            &["4:a", "5:b", "5:c"],
        ),
        ("an empty list", format!("{}\n{a}", list(&[])), &["2:a"]),
        ("a list of nothing", r#"{"apiVersion": "v1", "kind": "List", "items": null}"#.into(), &[]),
    ];
    for (what, text, expected) in cases {
        for (format, text) in [
            (Format::Yaml, text.clone()),
            (Format::Yaml, text.replace('\n', "\r\n")),
            (Format::Json, text.clone()),
        ] {
            // JSON has no comments.
            if format == Format::Json && (what.contains("comment") || what.contains("flow")) {
                continue;
            }
            let parsed = parse(&text, format, NODE);
            let expected: Vec<_> =
                expected.iter().map(|name| name.replace(':', ":service default/")).collect();
            assert_eq!((names(&parsed), problems(&parsed)), (expected, vec![]), "{what} {format:?}");
        }
    }
}

#[test]
fn problems_in_a_stream_or_list_have_their_place() {
    let (a, b) = (service("a"), service("b"));
    let bad = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"ports":[{"port":"eighty"}]}}"#;
    let cases: &[(&str, String, &[&str], &[&str])] = &[
        (
            "in a stream",
            format!("{a}\n  {bad}\n{b}"),
            &["1:a", "3:b"],
            &["2:95: invalid type: string \"eighty\", expected i64"],
        ),
        ("it breaks off", format!("{a}\n{{\"kind\":\n"), &["1:a"], &["3:1: EOF while parsing a value"]),
        ("rubbish behind", format!("{a}\n}} {b}"), &["1:a"], &["2:1: expected value"]),
        (
            "in a list",
            format!(
                "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{a},\n {bad},\n{b}, 7, {{\"kind\":\"List\"}}]}}"
            ),
            &["1:a", "3:b"],
            &[
                "2:94: items[1]: invalid type: string \"eighty\", expected i64",
                "3:95: items[3]: invalid type: integer `7`, expected struct Header",
                "3:1: items[4]: the List has no `apiVersion`",
            ],
        ),
    ];
    for (what, text, good, bad) in cases {
        let parsed = parse(text, Format::Json, NODE);
        let good: Vec<_> = good.iter().map(|name| name.replace(':', ":service default/")).collect();
        assert_eq!(
            (names(&parsed), problems(&parsed)),
            (good, bad.iter().map(|&b| b.to_owned()).collect()),
            "{what}"
        );
    }
}

#[test]
fn what_has_no_effect_is_named() {
    let yaml = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: x, label: {a: b}, annotations: {any: thing}, creationTimestamp: null}
spec:
  clusterIp: 10.0.0.1
  port: 80
  ports:
  - {port: 80, targetport: 8080, protocol: TCP}
  - {port: 81, targetPort: http, name: b}
status: {loadBalancer: {}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: b}
addressType: IPv4
endpoints:
- {address: 10.1.0.1, addresses: [10.1.0.2], conditions: {ready: true, servng: true}}
---
{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"c\", \"namespace\": \"x\"}}
---
null
---
apiVersion: v1
kind: Endpoints
metadata: {name: d, labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}}
subset: []
subsets: [{adresses: [{ip: 10.1.0.1}]}]
";
    let parsed = parse(yaml, Format::Yaml, NODE);
    let mut found = ignored(&parsed);
    found.sort();
    let field = |line, name| format!("{line}:unknown field `{name}` is ignored");
    let mut expected = vec![
        field(2, "metadata.label"),
        field(2, "spec.clusterIp"),
        field(2, "spec.port"),
        field(2, "spec.ports[0].targetport"),
        field(13, "endpoints[0].address"),
        field(13, "endpoints[0].conditions.servng"),
        "20:ConfigMap x/c is ignored: a service proxy does not use its kind".to_owned(),
        "22:an empty object is ignored".to_owned(),
        // An empty list has no effect.
        field(24, "subsets[0].adresses"),
        "24:Endpoints default/d is ignored: it has the label skip-mirror".to_owned(),
    ];
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(
        (names(&parsed), problems(&parsed)),
        (
            vec![
                "2:service x/a".into(),
                "13:EndpointSliceGone(ObjectName { namespace: \"default\", name: \"b\" })".into()
            ],
            vec![]
        )
    );
    let warnings = parsed.ignored.iter().filter(|notice| notice.is_warning).count();
    assert_eq!(warnings, 7, "fields are warned of");
}

#[test]
fn endpoints_are_read() {
    let yaml = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Endpoints
  metadata: {name: web}
  subsets: [{addresses: [{ip: 10.1.0.1}, {ip: 'fd00::1'}], ports: [{port: 80}]}]
";
    assert_eq!(names(&parse(yaml, Format::Yaml, NODE)), ["5:endpoints default/web in 2"]);
    let json = r#"{"apiVersion": "v1", "kind": "EndpointsList", "items": [{"metadata": {"name": "a"}, "subsets": null}]}"#;
    assert_eq!(names(&parse(json, Format::Json, NODE)), ["1:endpoints default/a in 0"]);
}

#[test]
fn this_node_and_service_cidrs_are_read_and_other_nodes_are_not() {
    let yaml = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {topology.kubernetes.io/zone: b}}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n1}}
- {apiVersion: v1, kind: Node, metadata: {name: n3}}
- {apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: ['fd00::/112']}}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
spec: {cidrs: [10.97.0.0/16]}
";
    let parsed = parse(yaml, Format::Yaml, NODE);
    let expected = [
        "2:node of zone Some(\"a\")",
        "10:cidr kubernetes [10.96.0.0/16]",
        "18:node of zone None",
        "20:cidr more [fd00::/112]",
    ];
    assert_eq!(names(&parsed), expected);
    assert_eq!(problems(&parsed), ["22:1: the ServiceCIDR has no `metadata.name`"]);

    let json = r#"{"apiVersion": "v1", "kind": "NodeList", "items": [
	{"metadata": {"name": "n2"}}, {"metadata": {"name": "n1"}}]}"#;
    assert_eq!(names(&parse(json, Format::Json, NODE)), ["2:node of zone None"]);
}

#[test]
fn a_large_list_is_read() {
    let mut yaml = "apiVersion: v1\nkind: ServiceList\nitems:\n".to_owned();
    for n in 0..5000 {
        yaml += &format!(
            "- {{metadata: {{name: s{n}}}, spec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}}}\n"
        );
    }
    let parsed = parse(&yaml, Format::Yaml, NODE);
    assert_eq!((parsed.objects.len(), parsed.problems.len()), (5000, 0), "{:?}", parsed.problems.first());
}

#[test]
fn a_bad_document_is_named_by_line_and_column_and_spoils_nothing_else() {
    let cases = [
        ("a tab", "kind: Service\n\tmetadata: x", "9:7: "),
        (
            "a wrong type",
            "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec:\n  ports:\n  - port: eighty",
            "14:11: invalid i64 (`- port: eighty`)",
        ),
        ("an open bracket", "kind: [Service", "9:"),
        ("no kind", "apiVersion: v1\nmetadata: {name: b}", "9:1: the document has no `kind`"),
        ("no version", "kind: Service\nmetadata: {name: b}", "9:1: the Service has no `apiVersion`"),
        ("no name", "apiVersion: v1\nkind: Service", "9:1: the Service has no `metadata.name`"),
        ("a scalar", "hello", "9:1: "),
        (
            "a key twice",
            "apiVersion: v1\nkind: Service\nkind: Service",
            "11:1: duplicate mapping key: kind (`kind: Service`)",
        ),
        (
            "old version",
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}",
            "9:1: apiVersion of",
        ),
    ];
    for (what, bad, expected) in cases {
        let good = |name| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.0.0.1\n  ports: []\n"
            )
        };
        let text = format!("{}---\n{bad}\n---\n{}", good("a"), good("c"));
        let parsed = parse(&text, Format::Yaml, NODE);
        assert_eq!(parsed.objects.len(), 2, "{what}: {parsed:?}");
        let problems = problems(&parsed);
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{what}: {problems:?}");
        assert!(!problems[0].contains(" at line") && !problems[0].contains('\n'), "{what}: {problems:?}");
    }
    let parsed = parse("{\n  \"apiVersion\": \"v1\", \"kind\": \"Service\",\n  oops\n}", Format::Json, NODE);
    assert_eq!(problems(&parsed), ["3:3: key must be a string"]);
}
