//! Each program in the kernel on single packets, by `BPF_PROG_TEST_RUN`. Needs root.
//!
//! Set-up: `Node` of `proxy-packets`, a namespace for each test with devices that carry no traffic. A test writes the packet that a
//! program gets at a device, and compares what it returns.
//!
//! ```text
//!   Client -- Gateway --+-- uplink [uplink_*] Node --+-- [pod_*] pod-a -- PodA
//!                       |                            +-- [pod_*] pod-b -- PodB
//!   Remote -- OtherNode +                            +-- bridge -- [pod_*] port-c -- PodC, PodD
//! ```
//!
//! One program of tests, so that loaded programs serve one test after the other.
#![forbid(unsafe_code)]

mod bystanders;
mod checksums;
mod evidence;
mod expect;
mod flows;
mod fragments;
mod generated_replies;
mod growth;
mod icmp_errors;
mod next_hops;
mod non_service;
mod outer_headers;
mod paths;
mod ports;
mod random;
mod slow_path;
mod slow_path_limits;
mod to_stack;
mod translate;
mod verifier;
