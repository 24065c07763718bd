//! Real traffic in network namespaces, and the agent against a stand-in for the API server. Needs root.
//!
//! One program of tests: cargo links it once, and tests of all topics fill the time that others wait.
#![forbid(unsafe_code)]

mod addresses;
mod bad_objects;
mod baseline;
mod bystander;
mod check;
mod cli;
mod conformance;
mod datagrams;
mod debug;
mod events;
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
mod larger_maps;
mod layouts;
mod listeners;
mod locked_memory;
mod migrate;
mod migrate_ipvs;
mod neighbours;
mod networks;
mod operators;
mod options;
mod pods;
mod remote;
mod restart;
mod services;
mod settings;
mod settling;
mod shapes;
mod smoke;
mod socket_endpoints;
mod socket_programs;
mod sockets_bound;
mod source_addresses;
mod udp_sockets;
