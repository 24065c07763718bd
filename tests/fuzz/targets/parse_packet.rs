#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_tests::fuzz::parse_packet(bytes));
