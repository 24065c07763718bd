//! Each program in the kernel on single packets, by `BPF_PROG_TEST_RUN`. Needs root.
//!
//! One program of tests, so that what the verifier has taken serves one test after the other.
#![forbid(unsafe_code)]

mod answers;
mod bystanders;
mod checksums;
mod evidence;
mod expect;
mod flows;
mod fragments;
mod icmp_errors;
mod left_alone;
mod next_hops;
mod outer;
mod ports;
mod random;
mod slow_path;
mod stack;
mod translate;
mod verifier;
mod ways;
mod whole;
