//! Tests of the whole that need no privileges: the conformance table on the decision core, fuzz targets without a fuzzer,
//! and generated files.
#![forbid(unsafe_code)]

mod conformance;
mod fuzz_replay;
mod generated;
mod rules;
