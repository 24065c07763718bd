//! Tests of the whole that need no privileges: the conformance table on the decision core, and fuzz targets without a fuzzer.

mod conformance;
mod fuzz_replay;
mod rules;
