//! Real traffic in network namespaces, and the agent against a stand-in for the API server. Needs root.
//!
//! One program of tests: cargo links it once, and tests of all topics fill the time that others wait.
#![forbid(unsafe_code)]

mod bad_objects;
mod baseline;
mod bystander;
mod check;
mod cli;
mod conformance;
mod debug;
mod endpoint_settling;
mod events;
mod flags;
mod flows;
mod fragments;
mod handover;
mod health;
mod hooks_restored;
mod interfaces;
mod ipsec;
mod kube_credentials;
mod kube_servers;
mod kube_source;
mod large_datagrams;
mod larger_maps;
mod late_family;
mod locked_memory;
mod map_layouts;
mod migrate;
mod migrate_ipvs;
mod neighbours;
mod networks;
mod node_addresses;
mod operator_tools;
mod pod_datapaths;
mod remote_endpoints;
mod restart;
mod services;
mod settings;
mod shapes;
mod slow_connections;
mod smoke;
mod socket_endpoints;
mod socket_programs;
mod sockets_bound;
mod source_addresses;
mod udp_sockets;
