//! The agent as a program: ports, health, metrics, restarts.

use super::{Rule, Topic};

pub(super) const RULES: &[Rule] = &[
    Rule::by_tests(
        "health-check-node-port",
        Topic::Surface,
        "healthCheckNodePort of a Service of type LoadBalancer with externalTrafficPolicy Local answers any path and method: 200 while \
         ready endpoints are here and the proxy works, else 503; with the number of them in header and body.",
        &[
            "proxy-agent: health_checks_are_for_load_balancers_with_a_local_policy",
            "proxy-agent: any_question_gets_kube_proxys_answer_to_the_byte",
            "proxy-agent: without_endpoints_or_a_proxy_that_works_load_balancers_stay_away",
            "proxy-tests: health_checks_follow_endpoints_and_policy",
        ],
    ),
    Rule::by_tests(
        "health-check-counts-ready-endpoints",
        Topic::Surface,
        "It counts distinct addresses of ready endpoints of this node over all ports: with terminating endpoints \
         only it returns 503 while they still serve.",
        &[
            "proxy-agent: load_balancers_get_the_number_of_ready_local_endpoints",
            "proxy-tests: health_checks_follow_endpoints_and_policy",
        ],
    ),
    Rule::by_tests(
        "health-check-follows",
        Topic::Surface,
        "The port is closed and opened as the Service changes; one that is taken is reported in an Event and tried again.",
        &[
            "proxy-agent: ports_follow_their_services",
            "proxy-tests: health_checks_follow_endpoints_and_policy",
            "proxy-agent: a_port_that_is_taken_is_reported_and_opened_later",
            "proxy-tests: a_health_check_port_that_is_taken_is_reported_once",
        ],
    ),
    Rule::by_tests(
        "healthz",
        Topic::Surface,
        "/healthz returns 200 while the proxy works and the node is eligible (known, not being deleted or drained \
         by the autoscaler), else 503; /livez covers the proxy only (KEP-3836). The fields are kube-proxy's.",
        &[
            "proxy-agent: a_node_that_goes_is_not_ready_but_its_proxy_is_well",
            "proxy-agent: the_answer_has_kube_proxys_fields_and_the_problems",
            "proxy-agent: ready_once_applied_and_not_when_stuck",
            "proxy-tests: kube_proxys_urls_answer",
        ],
    ),
    Rule::by_tests(
        "metrics",
        Topic::Surface,
        "/metrics has kube-proxy's names: changes pending and done, durations, programming latency from the slices' trigger time, \
         services without local endpoints.",
        &[
            "proxy-agent: changes_are_pending_until_looked_at",
            "proxy-agent: latency_counts_from_the_trigger_and_not_for_what_was_before",
            "proxy-agent: local_policies_without_local_endpoints_are_a_gauge",
        ],
    ),
    Rule::by_tests(
        "proxy-mode",
        Topic::Surface,
        "/proxyMode and /configz show how the proxy works.",
        &[
            "proxy-agent: mode_and_configuration_are_shown",
            "proxy-agent: configz_shows_the_settings_in_effect",
            "proxy-tests: kube_proxys_urls_answer",
        ],
    ),
    Rule::by_tests(
        "events",
        Topic::Surface,
        "Events name the node (Starting) or the Service that something is wrong with.",
        &["proxy-tests: events_name_the_node_or_the_service"],
    ),
    Rule::by_tests(
        "configuration",
        Topic::Surface,
        "kube-proxy's configuration file and flags are understood; settings without effect here are logged once.",
        &[
            "proxy-agent: kubeadm_s_own_file_has_few_notices",
            "proxy-agent: unused_fields_are_reported_once_each",
            "proxy-agent: arguments_of_kube_proxy_s_daemon_sets_are_accepted",
        ],
    ),
    Rule::by_tests(
        "api-outage",
        Topic::Surface,
        "While the API server is away everything stays unchanged.",
        &["proxy-tests: an_outage_changes_nothing_until_the_server_is_back"],
    ),
    Rule::by_tests(
        "cleanup",
        Topic::Surface,
        "`cleanup` takes away all that the agent left on the node.",
        &["proxy-tests: cleanup_leaves_nothing"],
    ),
    Rule::by_tests(
        "conntrack-sysctls",
        Topic::Surface,
        "nf_conntrack_max, timeouts of TCP and UDP and be_liberal are set by the proxy.",
        &[
            "proxy-tests: connection_tracking_is_set",
            "proxy-agent: the_kernel_s_connection_tracking_is_set_as_by_kube_proxy",
            "proxy-agent: what_differs_is_set_and_no_more",
        ],
    )
    .deviates(
        "nf_conntrack_max is raised and never made smaller: the agent has its own table, and others may have set \
         more. The hash is \
         sized by nf_conntrack_buckets, which needs no mount of /sys. A setting that cannot be written is a \
         warning, a problem in `/healthz` and an Event; the agent continues.",
    ),
];
