use super::*;
use crate::model::objects::Change;

const NODE: &str = "n1";

fn names(parsed: &Parsed) -> Vec<String> {
    let name = |object: &Object| match &object.converted.change {
        Change::Service(service) => format!("{}:service {}", object.line, service.name),
        Change::EndpointSlice(slice) => format!("{}:slice {}", object.line, slice.name),
        Change::Node(node) => format!("{}:node of zone {:?}", object.line, node.zone),
        Change::ServiceCidr(cidr) => format!("{}:cidr {} {:?}", object.line, cidr.name.name, cidr.cidrs),
        other => format!("{}:{other:?}", object.line),
    };
    parsed.objects.iter().map(name).collect()
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
    assert_eq!(names(&parse(json, Format::Json, NODE)), ["1:service x/a"]);
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
    assert_eq!(names(&parse(json, Format::Json, NODE)), ["1:node of zone None"]);
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
